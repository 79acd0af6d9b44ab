"""Scores of a registration: label overlap and distance, smoothness of the map, image similarity.

Where the field uses one name for two things, both are here: the Learn2Reg challenge's SDlogJ
(``kind="official"``, the one in the paper's Table 2) and the standard deviation of log det J.
FSIM has a module of its own, :mod:`tvf_core.fsim`.
"""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from surface_distance import metrics as surface_distance

from .checks import check_field, check_labels, one_of
from .fields import determinant, jacobian_determinant

SDLOGJ_KINDS = ("official", "textbook")
BORDERS = ("one-sided", "replicated")


def dice(warped: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor, labels) -> np.ndarray:
    """Hard Dice per label as Learn2Reg computes it.

    Parameters
    ----------
    warped, fixed, moving : (1, 1, *S) integer label maps; ``warped`` is ``moving`` after a
        nearest-neighbour warp.
    labels : the label numbers to score.

    Returns
    -------
    (len(labels),) in [0, 1]; NaN where a label is missing in ``fixed`` or in ``moving`` (it is left
    out of the mean), 0 where only the warp lost it.
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
    """95th percentile of the surface distance per label as Learn2Reg computes it (the ``surface-distance`` package).

    Parameters
    ----------
    warped, fixed, moving : (1, 1, *S) integer label maps; ``warped`` is ``moving`` after a
        nearest-neighbour warp.
    labels : the label numbers to score.

    Returns
    -------
    (len(labels),) in voxels, whatever their size in millimetres: the larger of the two directions. NaN where a label is
    missing in ``fixed`` or in ``moving``, infinite where only the warp lost it (the challenge lets it make the mean
    infinite, too).

    Notes
    -----
    Surface elements lie between voxels and count with their area (in 2D: length). Distances between the
    centres of border voxels, as most packages take them, differ by about a tenth of a voxel.
    """
    for name, value in (("warped", warped), ("fixed", fixed), ("moving", moving)):
        check_labels(value, fixed, name)
    w, f = (x[0, 0].cpu().numpy() for x in (warped, fixed))
    here = set(fixed.unique().tolist()) & set(moving.unique().tolist())
    left = set(warped.unique().tolist())
    return np.array([(_hd95(f == k, w == k) if k in left else math.inf) if k in here else math.nan for k in labels])


def _hd95(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks, neither of them empty: the package takes names from NumPy that are gone, where one is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its old names of SciPy's functions
        distances = surface_distance.compute_surface_distances(one, other, (1,) * one.ndim)
        return float(surface_distance.compute_robust_hausdorff(distances, 95))


def sdlogj(displacement: torch.Tensor, kind: str = "official") -> float:
    """Spread of the Jacobian determinant of ``Id + u`` on a log scale; smaller is smoother.

    Parameters
    ----------
    displacement : (1, D, *S) voxels.
    kind : ``official``: Learn2Reg's std of log(det J + 3), clipped to [1e-9, 1e9], two voxels cut
        off each side; about a quarter of the spread of det J. ``textbook``: std of log det J over
        the same voxels, folded voxels (det J <= 0) left out.
    """
    one_of(kind, SDLOGJ_KINDS, "SDlogJ kind")
    det = jacobian_determinant(displacement.double())
    if min(det.shape[1:]) < 5:
        raise ValueError(f"SDlogJ cuts 2 voxels off each side; got a grid of only {tuple(det.shape[1:])}")
    det = det[(slice(None), *[slice(2, -2)] * (det.dim() - 1))]
    det = (det + 3).clamp(1e-9, 1e9) if kind == "official" else det[det > 0]
    return float(det.log().std(correction=0))


def folding_percent(displacement: torch.Tensor, border: str = "one-sided") -> float:
    """Per cent (0 to 100) of voxels whose Jacobian determinant is not positive; all voxels count.

    Parameters
    ----------
    displacement : (1, D, *S) voxels.
    border : central differences need a neighbour beyond the border. ``one-sided`` takes the difference to the one
        inside, as the released test script of the faces does (which prints a fraction, not per cent); ``replicated``
        repeats the border's displacement, as the programs that measure non-diffeomorphic volume do.
    """
    dim = check_field(displacement)
    u = displacement.double()
    if one_of(border, BORDERS, "border") == "replicated":
        u = F.pad(u, (1, 1) * dim, mode="replicate")
    det = jacobian_determinant(u)
    if border == "replicated":
        det = det[(slice(None), *[slice(1, -1)] * dim)]
    return float((det <= 0).double().mean() * 100)


def ndv_percent(displacement: torch.Tensor) -> float:
    """Non-diffeomorphic volume (in 2D: area) of ``Id + u`` in per cent of the grid's voxels.

    Parameters
    ----------
    displacement : (1, D, *S) voxels; it goes on beyond the grid as at the border.

    Returns
    -------
    The volume that simplices between neighbouring voxels turn inside out, over the number of voxels, times 100. Stricter
    than :func:`folding_percent`: each voxel is seen through all its one-sided differences (in 3D also along two diagonal
    corners), where central differences can miss a fold. 0 means that the piecewise linear map does not fold.

    Notes
    -----
    Liu et al., On Finite Difference Jacobian Computation in Deformable Image Registration, IJCV 2024. Not in the paper.
    """
    dim = check_field(displacement)
    u = F.pad(displacement.double(), (1, 1) * dim, mode="replicate")
    centre = u[(..., *[slice(1, -1)] * dim)]

    def edge(*steps):
        """From every voxel to the one that lies ``steps`` away: T(x + steps) - T(x), (B, D, *S)."""
        there = u[(..., *(slice(1 + s, n - 1 + s) for s, n in zip(steps, u.shape[2:])))]
        return there - centre + there.new_tensor(steps).view(1, -1, *[1] * dim)

    unit = np.eye(dim, dtype=int)
    volume, weight = 0.0, 0.5 / math.factorial(dim)
    for signs in itertools.product((1, -1), repeat=dim):
        columns = [s * edge(*(s * e)) for s, e in zip(signs, unit)]
        volume += (-determinant(torch.stack(columns, 2))).clamp_min(0).sum()
    if dim == 3:  # the two tetrahedra of the cube that touch no corner of those above
        for corners in (((-1, -1, 0), (-1, 0, -1), (0, -1, -1)), ((1, 1, 0), (0, 1, 1), (1, 0, 1))):
            volume += (-determinant(torch.stack([edge(*c) for c in corners], 2))).clamp_min(0).sum()
    return float(weight * volume / centre[0, 0].numel() * 100)


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two images in [0, 1] (Wang et al. 2004), 2D or 3D.

    Parameters
    ----------
    a, b : (1, 1, *S). Gaussian window of 11 voxels, sigma 1.5, K = (0.01, 0.03); the border of 5
        voxels that the window does not cover is left out.
    """
    if a.shape != b.shape or a.shape[:2] != (1, 1):
        raise ValueError(f"ssim: expected two images (1, 1, *space) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}")
    return float(structural_similarity(
        a[0, 0].double().numpy(), b[0, 0].double().numpy(), data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    ))
