"""How smooth and how invertible a map is: SDlogJ, folded voxels, non-diffeomorphic volume.

Where the field uses one name for two things, both are here: the Learn2Reg challenge's SDlogJ
(``kind="official"``, the one in the paper's Table 2) and the standard deviation of log det J.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

from ..checks import check_field, one_of
from ..fields import determinant, jacobian_determinant

SDLOGJ_KINDS = ("official", "textbook")
BORDERS = ("one-sided", "replicated")


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
