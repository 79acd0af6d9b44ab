"""Overlap and distance of label maps as the Learn2Reg challenge measures them: Dice and HD95."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from surface_distance import metrics as surface_distance

from ..checks import check_labels


def dice(warped: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor, labels) -> np.ndarray:
    """Hard Dice per label as Learn2Reg computes it.

    Parameters
    ----------
    warped, fixed, moving : (1, 1, *S) integer label maps; ``warped`` is ``moving`` after a nearest-neighbour
        warp.
    labels : the label numbers to score.

    Returns
    -------
    (len(labels),) in [0, 1]. A label that is missing in ``fixed`` or in ``moving`` gets NaN, so that a mean
    can leave it out; a label that is in both, and that only the warp lost, gets 0.

    Notes
    -----
    Hering et al., Learn2Reg, IEEE TMI 2022, and the challenge's evaluation program.
    """
    for name, value in (("warped", warped), ("fixed", fixed), ("moving", moving)):
        check_labels(value, fixed, name)
    top = max(int(x.max()) for x in (warped, fixed, moving)) + 1
    top = max(top, max(labels) + 1)
    w, f, m = (x.flatten().long() for x in (warped, fixed, moving))
    size_w, size_f, size_m = (torch.bincount(x, minlength=top).double() for x in (w, f, m))
    overlap = torch.bincount(f[w == f], minlength=top).double()
    score = 2 * overlap / (size_w + size_f)
    score[(size_f == 0) | (size_m == 0)] = torch.nan
    return score[list(labels)].cpu().numpy()


def hd95(warped: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor, labels) -> np.ndarray:
    """95th percentile of the surface distance per label, as Learn2Reg computes it.

    Parameters
    ----------
    warped, fixed, moving : (1, 1, *S) integer label maps; ``warped`` is ``moving`` after a nearest-neighbour
        warp.
    labels : the label numbers to score.

    Returns
    -------
    (len(labels),) in voxels, whatever their size in millimetres: the larger of the percentiles of the two
    directions. A label that is missing in ``fixed`` or in ``moving`` gets NaN, so that a mean can leave it
    out; a label that is in both, and that only the warp lost, gets infinity (which makes the challenge's
    mean infinite, too).

    Notes
    -----
    The ``surface-distance`` package, as the challenge uses it, places surface elements between voxels and
    weights each with its area (in 2D: its length). Most other packages take distances between the centres of
    border voxels, which differ by about a tenth of a voxel.
    """
    for name, value in (("warped", warped), ("fixed", fixed), ("moving", moving)):
        check_labels(value, fixed, name)
    w, f = (x[0, 0].cpu().numpy() for x in (warped, fixed))
    here = set(fixed.unique().tolist()) & set(moving.unique().tolist())
    left = set(warped.unique().tolist())
    return np.array(
        [(_hd95(f == k, w == k) if k in left else math.inf) if k in here else math.nan for k in labels]
    )


def _hd95(one: np.ndarray, other: np.ndarray) -> float:
    """Percentile for two masks, neither of them empty (the package fails on an empty one with NumPy 2)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package uses old names of SciPy's functions
        distances = surface_distance.compute_surface_distances(one, other, (1,) * one.ndim)
        return float(surface_distance.compute_robust_hausdorff(distances, 95))
