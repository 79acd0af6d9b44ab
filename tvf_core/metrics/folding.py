"""How smooth and how invertible a map is: SDlogJ, folded voxels, non-diffeomorphic volume.

Where the field uses one name for several things, all of them are here: two measures called SDlogJ (``kind``)
and three ways to count folded voxels (``convention``), which differ at the border of the image. Each measures
one map, and gives NaN for one that is not finite everywhere.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from ..checks import check_field, check_one_pair, one_of
from ..fields import determinant, jacobian_determinant

SDLOGJ_KINDS = ("official", "textbook")
CONVENTIONS = ("one-sided", "inner", "replicated")
MARGIN = 2  # voxels that Learn2Reg drops on each side before it looks at the determinant


def sdlogj(displacement: torch.Tensor, kind: str = "official") -> float:
    """Spread of the Jacobian determinant of ``Id + u`` on a log scale; smaller is smoother.

    Parameters
    ----------
    displacement : (1, D, *S) voxels, at least 5 along each axis.
    kind : both kinds drop a margin of two voxels on each side. ``official`` is Learn2Reg's number, the one in
        the paper's Table 2: the standard deviation of log(det J + 3), where det J + 3 is clipped to
        [1e-9, 1e9]; it is about a quarter of the spread of det J. ``textbook`` is the standard deviation of
        log det J over the voxels that do not fold (det J > 0); NaN where every voxel folds.

    Raises
    ------
    ValueError : an unknown kind, a batch of several maps, or an image of which the margin leaves nothing.

    Notes
    -----
    Hering et al., Learn2Reg, IEEE TMI 2022, and the challenge's evaluation program.
    """
    one_of(kind, SDLOGJ_KINDS, "SDlogJ kind")
    det = _inner_determinant(_one_map(displacement, "sdlogj"))
    det = (det + 3).clamp(1e-9, 1e9) if kind == "official" else det[~(det <= 0)]  # NaN is no fold, and stays
    return float(det.log().std(correction=0)) if det.numel() else math.nan


def folding_percent(displacement: torch.Tensor, convention: str = "one-sided") -> float:
    """Per cent (0 to 100) of voxels whose Jacobian determinant is zero or negative, by central differences.

    Parameters
    ----------
    displacement : (1, D, *S) voxels.
    convention : a central difference needs a neighbour on both sides, which a voxel at the border lacks. The
        three conventions agree on every voxel that is not at the border, and differ in what they do there.

        ``one-sided``: every voxel counts; at the border the difference is the one to the neighbour inside
        (``numpy.gradient``). The released test script of the paper's faces (Table 1) counts like this, but
        prints a fraction instead of per cent.

        ``inner``: a margin of two voxels on each side is dropped, and the per cent are of the voxels that
        are left, at least 5 along each axis. The Learn2Reg challenge (Table 2) looks at the determinant of
        these voxels. (Its own count of folds is always 0, because it first makes every determinant positive.)

        ``replicated``: every voxel counts; beyond the border the displacement of the border goes on. The
        programs that measure non-diffeomorphic volume (Liu et al., IJCV 2024) count like this.

    Raises
    ------
    ValueError : an unknown convention, a batch of several maps, or an image of which the margin of ``inner``
        leaves nothing.
    """
    u = _one_map(displacement, "folding_percent")
    dim = u.shape[1]
    if one_of(convention, CONVENTIONS, "folding convention") == "inner":
        det = _inner_determinant(u)
    elif convention == "replicated":
        det = jacobian_determinant(F.pad(u, (1, 1) * dim, mode="replicate"))
        det = det[(slice(None), *[slice(1, -1)] * dim)]
    else:
        det = jacobian_determinant(u)
    return float(((det <= 0) + 0 * det).mean() * 100)  # 0 * det is NaN where det is not finite


def ndv_percent(displacement: torch.Tensor) -> float:
    """Non-diffeomorphic volume (in 2D: area) of ``Id + u`` in per cent of the grid's voxels.

    Parameters
    ----------
    displacement : (1, D, *S) voxels; beyond the border the displacement of the border goes on.

    Returns
    -------
    The volume of the simplices between neighbouring voxels that the map turns inside out, divided by the
    number of voxels, times 100. This is stricter than :func:`folding_percent`: it looks at each voxel through
    all of its one-sided differences (in 3D also along two diagonal corners), while central differences can
    miss a fold. A value of 0 means that the piecewise linear map does not fold.

    Notes
    -----
    Liu et al., On Finite Difference Jacobian Computation in Deformable Image Registration, IJCV 2024. The
    paper does not report it.
    """
    u = _one_map(displacement, "ndv_percent")
    dim = u.shape[1]
    u = F.pad(u, (1, 1) * dim, mode="replicate")
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


def _one_map(displacement: torch.Tensor, name: str) -> torch.Tensor:
    """The displacement ``(1, D, *S)`` of one map in float64; NaN everywhere if it is not finite somewhere."""
    check_field(displacement)
    check_one_pair(displacement, name)
    u = displacement.double()
    return u if u.isfinite().all() else torch.full_like(u, torch.nan)


def _inner_determinant(u: torch.Tensor) -> torch.Tensor:
    """Determinant of the voxels that Learn2Reg looks at, ``(B, *(S - 4))``; ValueError if none is left."""
    inner_voxels(u.shape[2:])
    return jacobian_determinant(u)[(slice(None), *[slice(MARGIN, -MARGIN)] * (u.dim() - 2))]


def inner_voxels(shape) -> None:
    """Refuse a size of grids of which Learn2Reg's margin leaves nothing."""
    if min(shape) <= 2 * MARGIN:
        raise ValueError(
            f"Learn2Reg's margin of {MARGIN} voxels on each side leaves nothing of a grid of {tuple(shape)}"
        )
