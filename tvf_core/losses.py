"""Losses of the paper and its baselines: similarity, label overlap, smoothness. All are minimised.

Reductions are means, so that a weight keeps its meaning when the image size changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .checks import check_field, check_labels, spatial_rank
from .fields import warp


def lncc(a: torch.Tensor, b: torch.Tensor, window: int = 9, eps: float = 1e-5) -> torch.Tensor:
    """Negative mean squared local correlation of two images, in [-1, 0] (NCC of the paper's eq. 3).

    Parameters
    ----------
    a, b : (B, 1, *S) intensities in [0, 1].
    window : odd edge of the cubic window; outside the image counts as zero, as in the released code.
    eps : added to the product of the windows' variance sums; a window without contrast gives 0.

    Notes
    -----
    Box sums are separable: one pass per axis over the five moments together. Always float32 or
    wider, because the variances are differences of nearly equal sums.
    """
    rank = spatial_rank(a, "a")
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    if window % 2 == 0:
        raise ValueError(f"window: expected an odd size, got {window}")
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    sums = _box_sums(torch.cat([a, b, a * a, b * b, a * b], dim=1), window, rank)
    sum_a, sum_b, sum_aa, sum_bb, sum_ab = sums.unbind(1)
    n = window**rank
    cross = sum_ab - sum_a * sum_b / n
    var_a = (sum_aa - sum_a * sum_a / n).clamp_min(0)
    var_b = (sum_bb - sum_b * sum_b / n).clamp_min(0)
    return -(cross * cross / (var_a * var_b + eps)).mean()


def mse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two images of one shape."""
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    return F.mse_loss(a, b)


def soft_dice(moving_labels: torch.Tensor, displacement: torch.Tensor, fixed_labels: torch.Tensor,
              classes: int, eps: float = 1e-5) -> torch.Tensor:
    """1 - mean soft Dice of a linearly warped label map (Dice of the paper's eq. 3).

    Parameters
    ----------
    moving_labels, fixed_labels : (B, 1, *S) integers, 0 is background.
    displacement : (B, D, *S) voxels.
    classes : number of classes including background, which counts too (as released). A class in
        neither map contributes Dice 0 and no gradient.
    """
    warped, fixed = _warped_and_fixed(moving_labels, displacement, fixed_labels, classes)
    axes = tuple(range(2, warped.dim()))
    overlap = (warped * fixed).sum(axes)
    size = (warped * warped).sum(axes) + (fixed * fixed).sum(axes)
    return 1 - (2 * overlap / (size + eps)).mean()


def label_mse(moving_labels: torch.Tensor, displacement: torch.Tensor, fixed_labels: torch.Tensor,
              classes: int) -> torch.Tensor:
    """Mean squared difference of warped and fixed one-hot label maps (segmentation term of eq. 1)."""
    return F.mse_loss(*_warped_and_fixed(moving_labels, displacement, fixed_labels, classes))


def diffusion(field: torch.Tensor) -> torch.Tensor:
    """Mean squared forward difference of a field ``(B, D, *S)``, averaged over the axes.

    The methods apply it to the final displacement, as the released code does; the paper's eq. 3
    writes it for the velocity at the end point.
    """
    rank = check_field(field, "field")
    return sum(torch.diff(field, dim=2 + a).square().mean() for a in range(rank)) / rank


def lddmm_energy(velocity: torch.Tensor, alpha: float = 0.01, gamma: float = 0.01, beta: int = 2) -> torch.Tensor:
    """Energy of a path of velocities: integral over t of the voxel mean of ``|L v_t|^2`` (eq. 1).

    Parameters
    ----------
    velocity : (B, T, D, *S) voxels per unit time.
    alpha, gamma, beta : ``L = (-alpha Laplacian + gamma)^beta``; beta is how often the operator is
        applied. The Laplacian is the 2D + 1 point stencil with unit spacing and mirrored borders
        (zero normal derivative), so a constant field is penalised by gamma alone.
    """
    if beta < 1:
        raise ValueError(f"beta: expected a whole number >= 1, got {beta}")
    v = velocity.flatten(0, 1)
    rank = check_field(v, "velocity at one time")
    for _ in range(beta):
        v = gamma * v - alpha * _laplacian(v, rank)
    return v.square().sum(1).mean()


def _laplacian(v: torch.Tensor, rank: int) -> torch.Tensor:
    padded = F.pad(v, [1, 1] * rank, mode="replicate")
    inner = (..., *[slice(1, -1)] * rank)
    total = -2 * rank * v
    for axis in range(rank):
        for side in (slice(0, -2), slice(2, None)):
            total = total + padded[(*inner[: axis + 1], side, *inner[axis + 2 :])]
    return total


def _box_sums(x: torch.Tensor, window: int, rank: int) -> torch.Tensor:
    pool = F.avg_pool2d if rank == 2 else F.avg_pool3d
    for axis in range(rank):
        size, last = [1] * rank, rank - 1 - axis  # F.pad counts axes from the last one
        size[axis] = window
        pad = [0, 0] * last + [window // 2] * 2
        x = pool(F.pad(x, pad), size, 1)  # the padding counts, so this is the sum / window
    return x * window**rank


def _warped_and_fixed(moving_labels, displacement, fixed_labels, classes):
    """Both label maps as one-hot float, the moving one warped: all classes through one grid."""
    check_labels(moving_labels, displacement, "moving_labels")
    check_labels(fixed_labels, displacement, "fixed_labels")
    highest = int(max(moving_labels.max(), fixed_labels.max()))
    if highest >= classes:
        raise ValueError(f"classes: labels reach {highest}, so at least {highest + 1} classes are needed, got {classes}")
    return warp(_one_hot(moving_labels, classes), displacement), _one_hot(fixed_labels, classes)


def _one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    numbers = torch.arange(classes, device=labels.device).view(1, -1, *[1] * (labels.dim() - 2))
    return (labels == numbers).float()
