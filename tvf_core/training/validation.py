"""The score of a network on validation pairs, by which a training chooses its best weights."""

from __future__ import annotations

import math

import numpy as np
import torch
from accelerate import Accelerator

from .. import fields, losses, metrics
from ..data import PairData
from ..methods import NetworkConfig
from ..model import Model


def validate(
    network: torch.nn.Module,
    config: NetworkConfig,
    data: PairData,
    limit: int,
    accelerator: Accelerator,
    at_once: int = 1,
) -> float:
    """Mean Dice (data with labels) or mean SSIM (data without) over validation pairs.

    Parameters
    ----------
    network, config : the network and what it is.
    data : the validation split.
    limit : how many of its pairs are scored, evenly spread; 0 is all.
    accelerator : says which of them this process scores, and on which device. Every process must call this
        function, and every one gets the same mean over all pairs.
    at_once : pairs that go through the network at once.
    """
    model, scores = Model(config, network), []
    chosen = data.spread(limit)[accelerator.process_index :: accelerator.num_processes]
    for first in range(0, len(chosen), at_once):
        pair = {
            name: value.to(accelerator.device)
            for name, value in data.batch(chosen[first : first + at_once]).items()
        }
        try:
            displacement = model.register(pair["moving"], pair["fixed"]).displacement
        except FloatingPointError:  # as half precision may give: no score, but no reason to end the training
            scores += [math.nan] * len(pair["moving"])
        else:
            scores += _scores(pair, displacement, data)
    total, count = accelerator.reduce(
        torch.tensor([sum(scores), len(scores)], device=accelerator.device, dtype=torch.float32), "sum"
    ).tolist()
    return total / count


def _scores(pair: dict, displacement: torch.Tensor, data: PairData) -> list[float]:
    """Dice or SSIM of every pair of a batch."""
    each = [slice(k, k + 1) for k in range(len(displacement))]
    if not data.label_numbers:
        warped = fields.warp(pair["moving"], displacement)
        return [-float(losses.ssim(warped[k], pair["fixed"][k])) for k in each]
    warped = fields.warp_labels(pair["moving_labels"], displacement)
    labels = [x.cpu() for x in (warped, pair["fixed_labels"], pair["moving_labels"])]
    return [np.nanmean(metrics.dice(*(x[k] for x in labels), list(data.label_names))) for k in each]
