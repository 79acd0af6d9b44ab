"""The score of a network on validation pairs, by which a training chooses its best weights."""

from __future__ import annotations

import functools

import numpy as np
import torch
from accelerate import Accelerator

from .. import fields, losses, metrics
from ..data import PairData
from ..data.folder_checks import occurring
from ..methods import NetworkConfig
from ..metrics.structural_similarity import window_axes
from ..model import Model


class NotFinitePairs(FloatingPointError):
    """A network gave fields that are not finite; ``pairs`` are the names of the pairs that it saw at once."""

    def __init__(self, pairs: list[str]):
        super().__init__(f"the displacement of {', '.join(pairs)} is not finite")
        self.pairs = pairs


def scorable(data: PairData, limit: int) -> list[int]:
    """Numbers of the validation pairs that have a score, among ``limit`` evenly spread ones (0 is all).

    A pair without a common label has no Dice. Which pairs these are does not depend on the network.

    Raises
    ------
    ValueError : there is no such pair, or the images are too small for SSIM, which scores data without
        labels.
    """
    chosen = data.spread(limit)
    if not data.label_names:
        try:
            window_axes(data.shape)
        except ValueError as error:
            raise ValueError(f"{data.name}: without labels, SSIM chooses the best weights; {error}") from None
        return chosen
    present = functools.cache(
        lambda image: {*occurring(data.labels[image : image + 1], image)} & {*data.label_names}
    )
    found = [k for k in chosen if present(data.pairs[k][0]) & present(data.pairs[k][1])]
    if not found:
        raise ValueError(
            f"{data.name}: none of the {len(chosen)} validation pairs has a label that is in both images, so "
            "that no score could choose the best weights; give the split other pairs, or leave out the labels"
        )
    return found


def validate(
    network: torch.nn.Module,
    config: NetworkConfig,
    data: PairData,
    chosen: list[int],
    accelerator: Accelerator,
    at_once: int = 1,
) -> float:
    """Mean Dice (data with labels) or mean SSIM (data without) over validation pairs.

    Parameters
    ----------
    network, config : the network and what it is.
    data : the validation split.
    chosen : numbers of its pairs that are scored, as :func:`scorable` gives them.
    accelerator : says which of them this process scores, and on which device. Every process must call this
        function, and every one gets the same mean over all pairs.
    at_once : pairs that go through the network at once.

    Raises
    ------
    NotFinitePairs : a displacement is not finite; in every process, whichever found it.
    """
    model, scores, failed = Model(config, network), [], -1
    processes, device = accelerator.num_processes, accelerator.device
    mine = chosen[accelerator.process_index :: processes]
    for first in range(0, len(mine), at_once):
        pair = {name: x.to(device) for name, x in data.batch(mine[first : first + at_once]).items()}
        try:
            found = _scores(pair, model.register(pair["moving"], pair["fixed"]).displacement, data)
        except FloatingPointError:
            found = [np.nan]
        if not np.isfinite(found).all():
            failed = first
            break  # the other processes wait for this one below
        scores += found
    for process, first in enumerate(accelerator.gather(torch.tensor([failed], device=device)).tolist()):
        if first >= 0:
            pairs = chosen[process::processes][first : first + at_once]
            raise NotFinitePairs([data.pair_name(k) for k in pairs])
    total, count = accelerator.reduce(
        torch.tensor([sum(scores), len(scores)], device=device, dtype=torch.float32), "sum"
    ).tolist()
    return total / count


def _scores(pair: dict, displacement: torch.Tensor, data: PairData) -> list[float]:
    """Dice or SSIM of every pair of a batch."""
    each = [slice(k, k + 1) for k in range(len(displacement))]
    if not data.label_names:
        warped = fields.warp(pair["moving"], displacement)
        return [-float(losses.ssim(warped[k], pair["fixed"][k])) for k in each]
    warped = fields.warp_labels(pair["moving_labels"], displacement)
    labels = [x.cpu() for x in (warped, pair["fixed_labels"], pair["moving_labels"])]
    return [np.nanmean(metrics.dice(*(x[k] for x in labels), list(data.label_names))) for k in each]
