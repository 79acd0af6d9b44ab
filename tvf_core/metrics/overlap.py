"""Overlap and distance of label maps as the Learn2Reg challenge measures them: Dice and HD95."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from surface_distance import metrics as surface_distance

from ..checks import check_labels, check_one_pair
from ..labels import positions, whole_numbers


def dice(
    warped: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor, labels: Iterable[int]
) -> np.ndarray:
    """Hard Dice per label as Learn2Reg computes it.

    Parameters
    ----------
    warped, fixed, moving : (1, 1, *S) label maps of any integer type; ``warped`` is ``moving`` after a
        nearest-neighbour warp.
    labels : the label numbers to score.

    Returns
    -------
    (len(labels),) in [0, 1]. A label that is missing in ``fixed`` or in ``moving`` gets NaN, so that a mean
    can leave it out; a label that is in both, and that only the warp lost, gets 0.

    Raises
    ------
    ValueError : a batch of several pairs, or maps of different sizes.

    Notes
    -----
    Hering et al., Learn2Reg, IEEE TMI 2022, and the challenge's evaluation program.
    """
    order, count, (w, f, m) = _places("dice", labels, warped=warped, fixed=fixed, moving=moving)
    size_w, size_f, size_m, overlap = (_sizes(x, count) for x in (w, f, m, f[w == f]))
    score = 2 * overlap / (size_w + size_f)
    score[(size_f == 0) | (size_m == 0)] = torch.nan
    return score.cpu().numpy()[order]


def hd95(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    moving: torch.Tensor,
    labels: Iterable[int],
    spacing: float | Sequence[float] = 1.0,
) -> np.ndarray:
    """95th percentile of the surface distance per label, as Learn2Reg computes it.

    Parameters
    ----------
    warped, fixed, moving : (1, 1, *S) label maps of any integer type; ``warped`` is ``moving`` after a
        nearest-neighbour warp.
    labels : the label numbers to score.
    spacing : size of a voxel, one number or one for each axis. With the default, distances are in voxels,
        whatever the size of these in millimetres, as in the challenge.

    Returns
    -------
    (len(labels),) in the unit of ``spacing``: the larger of the percentiles of the two directions. A label
    that is missing in ``fixed`` or in ``moving`` gets NaN, so that a mean can leave it out; a label that is
    in both, and that only the warp lost, gets infinity (which makes the challenge's mean infinite, too).

    Raises
    ------
    ValueError : a batch of several pairs, maps of different sizes, or a ``spacing`` that is none.

    Notes
    -----
    The ``surface-distance`` package, as the challenge uses it, places surface elements between voxels and
    weights each with its area (in 2D: its length). Most other packages take distances between the centres of
    border voxels, which differ by about a tenth of a voxel.
    """
    order, count, maps = _places("hd95", labels, warped=warped, fixed=fixed, moving=moving)
    spacing = _spacing(spacing, fixed.dim() - 2)
    left, in_fixed, in_moving = (_sizes(x, count) > 0 for x in maps)
    w, f = (x[0, 0].cpu().numpy() for x in maps[:2])
    scores = np.full(count, math.nan)
    for k in (in_fixed & in_moving).nonzero()[:, 0].tolist():
        scores[k] = _hd95(f == k, w == k, spacing) if left[k] else math.inf
    return scores[order]


def _places(name: str, labels: Iterable[int], **maps) -> tuple[list[int], int, list[torch.Tensor]]:
    """Check the arguments and count the labels that differ, from the smallest on.

    Returns the place of every label in that order, how many differ, and maps of places. Voxels of other
    labels have the place after the last.
    """
    for role, value in maps.items():
        check_labels(value, maps["fixed"], role)
        check_one_pair(value, name)
    labels = whole_numbers(labels)
    numbers = sorted(set(labels))
    place = {k: n for n, k in enumerate(numbers)}
    return [place[k] for k in labels], len(numbers), [positions(x, numbers) for x in maps.values()]


def _sizes(places: torch.Tensor, count: int) -> torch.Tensor:
    """How many voxels have each of the places below ``count``."""
    return torch.bincount(places.flatten(), minlength=count + 1)[:count].double()


def _spacing(spacing: float | Sequence[float], rank: int) -> tuple[float, ...]:
    """Voxel size along each axis."""
    try:
        sizes = np.asarray(spacing, float)
    except (TypeError, ValueError):
        sizes = np.array(math.nan)
    if sizes.shape not in ((), (rank,)) or not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise ValueError(
            f"spacing: expected the size of a voxel, one number above 0 or {rank} for the {rank} axes, "
            f"got {spacing!r}"
        )
    return tuple(np.broadcast_to(sizes, rank).tolist())


def _hd95(one: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Percentile for two masks, neither of them empty (the package fails on an empty one with NumPy 2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package uses old names of SciPy's functions
        distances = surface_distance.compute_surface_distances(one, other, spacing)
        return float(surface_distance.compute_robust_hausdorff(distances, 95))
