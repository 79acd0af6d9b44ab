"""Images and label maps through a chain of maps onto any grid, interpolated once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from ..checks import one_of
from .grids import Grid, index_blocks, inside, map_tensor, sample_at
from .maps import Map, check_chain, move_along

KINDS = ("linear", "nearest", "smooth")


def apply_image(scan, reference: Grid, chain: Sequence[Map], kind: str = "linear", outside=0) -> np.ndarray:
    """Pull an image or a label map onto a grid: ``out(x) = image(chain(x))``, x in the reference.

    Parameters
    ----------
    scan : has ``values`` (an array on its grid) and ``grid``, as :class:`tvf_core.scans.images.Scan` has.
    chain : in the order of ``antsApplyTransforms``, so that the last listed map acts on the image first.
    kind : ``linear``; ``nearest`` (the value of the nearest voxel, for label maps: no new values);
        ``smooth`` (for label maps: every label's own image of zeros and ones is interpolated linearly, and
        the label with the largest value wins, the smaller one of two that are equal).
    outside : value of the places that the chain sends outside the image.

    Returns
    -------
    An array on ``reference``, of the type of ``values``; integers with ``linear`` become float32.

    Notes
    -----
    The border is that of ITK (:func:`tvf_core.scans.grids.inside`), so that ANTs gives the same image with
    the same files. Nothing is smoothed before it is sampled, as ``antsApplyTransforms`` does not.
    """
    one_of(kind, KINDS, "kind of interpolation")
    values = np.asarray(scan.values)
    whole = np.issubdtype(values.dtype, np.integer)
    if kind == "smooth" and not whole:
        raise ValueError(f"the kind 'smooth' is for label maps (whole numbers), got {values.dtype}")
    if values.shape != scan.grid.shape:
        raise ValueError(f"image: its shape {values.shape} is not that of its grid, {scan.grid.shape}")
    if reference.dim != scan.grid.dim:
        raise ValueError(f"the image is {scan.grid.dim}D, the reference is {reference.dim}D")
    check_chain(chain, reference.dim)
    values = values.astype(np.float32 if kind == "linear" else values.dtype, copy=False)
    tensor = torch.from_numpy(np.ascontiguousarray(values))[None, None]
    back = np.linalg.inv(scan.grid.affine)
    out = np.empty(math.prod(reference.shape), values.dtype)
    for here, index in index_blocks(reference.shape):
        points = move_along(chain, map_tensor(reference.affine, index))
        index = map_tensor(back, points)
        if kind == "smooth":
            out[here] = most_weight(tensor, index, outside).numpy()
        else:
            out[here] = sample_at(tensor, index, kind, outside)[0].numpy()
    return out.reshape(reference.shape)


def most_weight(labels: torch.Tensor, index: torch.Tensor, outside: int = 0) -> torch.Tensor:
    """Label that has the largest weight among the voxels around each index point.

    Parameters
    ----------
    labels : (1, 1, *S) integers.
    index : (N, D) index points.

    Returns
    -------
    (N,). The 2**D voxels around a point have the weights of linear interpolation; those of equal labels are
    added. That is what the largest of the interpolated images of zeros and ones gives, with no such image:
    the memory does not depend on the number of labels.
    """
    shape = labels.shape[2:]
    lower = index.floor()
    fraction = index - lower
    found, weights = [], []
    for corner in itertools.product((0, 1), repeat=len(shape)):
        weight, voxel = 1.0, []
        for axis, upper in enumerate(corner):
            weight = weight * (fraction[:, axis] if upper else 1 - fraction[:, axis])
            voxel.append(lower[:, axis] + upper)
        weights.append(weight)
        found.append(sample_at(labels, torch.stack(voxel, 1), "nearest", None)[0])
    winner = found[0].clone()
    mixed = torch.stack([other != winner for other in found]).any(0).nonzero()[:, 0]
    found = [
        other[mixed] for other in found
    ]  # elsewhere, which is nearly everywhere, there is one label only
    weights = [weight[mixed] for weight in weights]
    best, choice = torch.zeros_like(weights[0]), found[0]
    for label in found:
        score = sum(torch.where(other == label, weight, 0) for other, weight in zip(found, weights))
        better = (score > best) | ((score == best) & (label < choice))
        best, choice = torch.where(better, score, best), torch.where(better, label, choice)
    winner[mixed] = choice
    return winner.masked_fill_(~inside(index, shape), outside)
