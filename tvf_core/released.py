"""Rules of the released TransMorph code that differ from the paper's equations.

Each function has the name of the one that it replaces: ``warp``, ``halve`` and ``double`` of ``fields``,
``advance`` of ``integrate`` and ``lddmm_energy`` of ``losses``.

Only with these rules does a network with released weights return what that code returns. The code is
``junyuchen245/TransMorph_TVF`` (2022-07-14). Everywhere else the project follows the equations of the
paper; chapter 9, "The paper and its code", measures the difference that each rule makes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import fields
from .checks import check_field, spatial_rank


def sampled(displacement: torch.Tensor) -> torch.Tensor:
    """Displacement that the released warp applies in effect when it is given ``displacement``.

    The released sampler uses ``align_corners=False``, but its coordinates are normalised for True. Position p
    along an axis of s voxels is therefore read at ``p s / (s - 1) - 1/2``: half a voxel off at both ends,
    exact in the middle. Both displacements are ``(B, D, *S)`` in voxels.
    """
    check_field(displacement)
    shape = displacement.shape[2:]
    grid = fields.identity_grid(shape, displacement.device, fields.at_least_float32(displacement))
    size = grid.new_tensor(shape).view(1, -1, *[1] * len(shape))
    # An axis of one voxel has no span; the released code divides by zero there.
    span = (size - 1).clamp_min(1)
    return displacement * size / span + grid / span - 0.5


def warp(image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Warp ``image`` as the released code does: mismatched corners (:func:`sampled`), zeros outside."""
    return fields.warp(image, sampled(displacement))


def halve(image: torch.Tensor) -> torch.Tensor:
    """Halve an image by means of width 3 at every second voxel, with zeros beyond the border.

    Sample i is centred on voxel 2i, whereas the doubling of fields places it at 2i + 1/2.
    """
    return fields.pool(F.pad(image, [1, 1] * spatial_rank(image)), 3)


def double(displacement: torch.Tensor, shape) -> torch.Tensor:
    """Resample a half-grid field to the full grid ``shape``, values unchanged, which halves the motion."""
    return fields.double(displacement, shape) / 2


def advance(interval: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Released update ``u + v o (Id + v)``: v is sampled at its own displacement, not at the accumulated u.

    Parameters
    ----------
    interval : (B, D, *S) voxels; v, the motion of one time interval, v_t / N; negated for the "inverse".
    displacement : (B, D, *S) voxels; u, the sum of the updates so far.
    """
    return displacement + warp(interval, interval)


def lddmm_energy(velocity: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """The released "LDDMM energy": the sum of the fourth powers of ``(-alpha Laplacian + gamma) v``.

    Squared twice and summed over voxels without their number; ``beta`` does not enter; the outermost
    voxels are left out. The paper's term (eq. 2) is :func:`tvf_core.losses.lddmm_energy`.

    Parameters
    ----------
    velocity : (B, T, D, *S) voxels per unit time, at least 3 voxels along each axis; the released term sees
        the motion of an interval, v_t / T.
    """
    v = velocity.flatten(0, 1) / velocity.shape[1]
    rank = check_field(v, "velocity at one time")
    has_inner_voxels(v.shape[2:])
    inner = (..., *[slice(1, -1)] * rank)
    laplacian = sum(v.roll(side, axis) for axis in range(2, 2 + rank) for side in (1, -1)) - 2 * rank * v
    return (gamma * v - alpha * laplacian)[inner].pow(4).sum()


def has_inner_voxels(shape) -> None:
    """Refuse a size of velocities for which :func:`lddmm_energy` is not defined."""
    if min(shape) < 3:
        raise ValueError(
            "lddmm_released: it leaves out the outermost voxels, so the velocity needs at least 3 voxels "
            f"along each axis, got {tuple(shape)}"
        )
