"""What the released TransMorph code does differently, each rule under the name of the one it stands in for.

``warp``, ``halve`` and ``double`` replace those of ``fields``, ``advance`` that of ``integrate`` and
``lddmm_energy`` that of ``losses``.

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
    """Displacement that the released warp really applies when it is given ``displacement``.

    Its sampler takes ``align_corners=False`` while the coordinates are normalised for True, so that
    position p along an axis of s voxels is read at ``p s / (s - 1) - 1/2``: half a voxel off at
    both ends, right in the middle. Shapes ``(B, D, *S)``, voxels.
    """
    check_field(displacement)
    shape = displacement.shape[2:]
    grid = fields.identity_grid(shape, displacement.device, fields.at_least_float32(displacement))
    size = grid.new_tensor(shape).view(1, -1, *[1] * len(shape))
    span = (size - 1).clamp_min(
        1
    )  # an axis of one voxel has no span; the released code divides by zero there
    return displacement * size / span + grid / span - 0.5


def warp(image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """``image`` under the released warp: corners mismatched (:func:`sampled`), zeros outside."""
    return fields.warp(image, sampled(displacement))


def halve(image: torch.Tensor) -> torch.Tensor:
    """Image at half resolution: means of width 3 at every second voxel; zeros beyond the border count.

    Sample i is centred on voxel 2i, half a voxel from where the doubling of fields puts it (2i + 1/2).
    """
    pool = F.avg_pool2d if spatial_rank(image) == 2 else F.avg_pool3d
    return pool(image, 3, 2, 1)


def double(displacement: torch.Tensor, shape) -> torch.Tensor:
    """Field of a halved grid on the full grid ``shape``, its values unchanged: the motion becomes half as far."""
    return fields.double(displacement, shape) / 2


def advance(interval: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """The released update ``u + v o (Id + v)``: the new field samples itself, the map so far never enters.

    Parameters
    ----------
    interval : (B, D, *S) motion of one time interval, v_t / N, in voxels; negated for the "inverse".
    displacement : (B, D, *S) the sum so far.
    """
    return displacement + warp(interval, interval)


def lddmm_energy(velocity: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """The released "LDDMM energy": the sum of the fourth powers of ``(-alpha Laplacian + gamma) v``.

    Squared twice and summed over voxels without their number; ``beta`` does not enter; the outermost
    voxels are left out. The paper's term (eq. 2) is :func:`tvf_core.losses.lddmm_energy`.

    Parameters
    ----------
    velocity : (B, T, D, *S) voxels per unit time; the released term sees the motion of an interval, v_t / T.
    """
    v = velocity.flatten(0, 1) / velocity.shape[1]
    rank = check_field(v, "velocity at one time")
    inner = (..., *[slice(1, -1)] * rank)
    laplacian = sum(v.roll(side, axis) for axis in range(2, 2 + rank) for side in (1, -1)) - 2 * rank * v
    return (gamma * v - alpha * laplacian)[inner].pow(4).sum()
