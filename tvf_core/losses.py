"""Losses of the paper and its baselines: similarity, label overlap, smoothness. All are minimised.

Reductions are means, so that a weight keeps its meaning when the image size changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .checks import check_field, check_labels, spatial_rank
from .fields import at_least_float32
from .label_overlap import label_overlap
from .lncc import lncc as lncc_with_gradients


def lncc(a: torch.Tensor, b: torch.Tensor, window: int = 9, eps: float = 1e-5) -> torch.Tensor:
    """Negative mean squared local correlation of two images, in [-1, 0] (NCC of the paper's eq. 3).

    Parameters
    ----------
    a, b : (B, 1, *S) intensities in [0, 1].
    window : edge of the cubic window, odd and at least 3; outside the image counts as zero, as in the released code.
    eps : added to the product of the windows' variance sums; a window without contrast gives 0.

    Notes
    -----
    :mod:`tvf_core.lncc` says how it is computed. Sums are float64 whatever the images are (float32 on
    Apple's GPUs, which know no other), because the variances are differences of nearly equal sums. First derivatives only.
    """
    spatial_rank(a, "a")
    if a.shape[1] != 1:
        raise ValueError(f"a: expected one channel (batch, 1, *space), got shape {tuple(a.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window: expected an odd size of at least 3, got {window}")
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    wanted = [image.requires_grad and torch.is_grad_enabled() for image in (a, b)]
    return lncc_with_gradients(a, b, window, eps, *wanted)[0]


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

    Notes
    -----
    Computed from the label maps themselves (:mod:`tvf_core.label_overlap`), equal to warping one channel per
    class.
    """
    common, warped, fixed = _overlap(moving_labels, displacement, fixed_labels, classes)
    return 1 - (2 * common / (warped + fixed + eps)).mean().to(displacement.dtype)


def label_mse(moving_labels: torch.Tensor, displacement: torch.Tensor, fixed_labels: torch.Tensor,
              classes: int) -> torch.Tensor:
    """Mean squared difference of warped and fixed one-hot label maps (segmentation term of eq. 1)."""
    common, warped, fixed = _overlap(moving_labels, displacement, fixed_labels, classes)
    return ((warped + fixed - 2 * common).sum() / (common.numel() * displacement[0, 0].numel())).to(displacement.dtype)


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


def _overlap(moving_labels, displacement, fixed_labels, classes):
    """Sums over voxels of p f, p^2 and f^2, each (B, classes): p and f the warped and the fixed one-hot map."""
    check_field(displacement)
    for labels, name in ((moving_labels, "moving_labels"), (fixed_labels, "fixed_labels")):
        check_labels(labels, displacement, name, values=False)
        if labels.shape[0] != displacement.shape[0]:
            raise ValueError(f"{name}: a batch of {labels.shape[0]}, but the displacement is a batch of {displacement.shape[0]}")
    return label_overlap(moving_labels, displacement.to(at_least_float32(displacement)), fixed_labels, classes)[0]
