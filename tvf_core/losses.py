"""Losses of the paper and its baselines: similarity, label overlap, smoothness. All are minimised.

Reductions are means, so that a weight keeps its meaning when the image size changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .checks import check_field, check_labels, spatial_rank
from .fields import at_least_float32, for_sums
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


def multiscale_lncc(a: torch.Tensor, b: torch.Tensor, windows=(7, 5, 3), eps: float = 1e-5) -> torch.Tensor:
    """Sum of :func:`lncc` over a pyramid of the images, scale i weighted by 2^-i (Mok & Chung 2020).

    Parameters
    ----------
    a, b : (B, 1, *S) intensities in [0, 1].
    windows : edge of the window at each scale, finest first. Between scales both images are averaged down (width 3 at
        every second voxel, what lies outside does not count), as in the authors' code.

    Notes
    -----
    In [-1.75, 0] for three scales: the authors' code does not divide by the sum of the weights.
    """
    total = 0
    for scale, window in enumerate(windows):
        if scale:
            a, b = average_down(a), average_down(b)
        total = total + lncc(a, b, window, eps) / 2**scale
    return total


def average_down(image: torch.Tensor) -> torch.Tensor:
    """Image ``(B, C, *S)`` at half resolution, ``ceil(S / 2)``: means of width 3 at every second voxel, without what lies outside."""
    pool = F.avg_pool2d if spatial_rank(image) == 2 else F.avg_pool3d
    return pool(image, 3, 2, 1, count_include_pad=False)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Negative mean structural similarity of two images in [0, 1] (Wang et al. 2004), in [-1, 1].

    Gaussian window of 11 voxels with sigma 1.5, K = (0.01, 0.03), the 5 voxels at each border left out: minus
    :func:`tvf_core.metrics.ssim`, with gradients. The released 2D script of TransMorph trains with it.

    Parameters
    ----------
    a, b : (B, 1, *S), at least 11 voxels along each axis.
    """
    rank = spatial_rank(a, "a")
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    if min(a.shape[2:]) < 11:
        raise ValueError(f"ssim: needs at least 11 voxels along each axis, got {tuple(a.shape[2:])}")
    precise, dtype = for_sums(a.device), at_least_float32(a)
    a, b = a.to(precise), b.to(precise)
    bell = torch.exp(-(torch.arange(-5, 6, device=a.device, dtype=precise) / 1.5).square() / 2)
    bell = bell / bell.sum()
    convolve = F.conv2d if rank == 2 else F.conv3d
    moments = torch.cat([a, b, a * a, b * b, a * b]).flatten(0, 1)[:, None]
    for axis in range(rank):
        moments = convolve(moments, bell.view(1, 1, *[-1 if k == axis else 1 for k in range(rank)]))
    mean_a, mean_b, aa, bb, ab = moments.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return -(luminance * structure).mean().to(dtype)


def velocity_kl(mean: torch.Tensor, log_variance: torch.Tensor, prior: float) -> torch.Tensor:
    """Divergence of a Gaussian velocity from a smooth prior, per voxel and up to a constant (Dalca et al. 2019).

    The velocity is N(mean, diag(variance)), the prior N(0, Lambda^-1) with ``Lambda = prior (D - A)``, the Laplacian of
    the grid: A connects neighbouring voxels, D counts each voxel's neighbours. So
    ``2 KL = trace(prior D variance) - log |variance| + prior * sum over neighbours of (difference of means)^2 + constant``.

    Parameters
    ----------
    mean, log_variance : (B, D, *S).
    prior : lambda, how smooth; larger is smoother.

    Notes
    -----
    At the same lambda the authors' code weighs the last sum 2 D times less (it halves it and divides it by the number of
    axes once more); the copy in the TransMorph repository leaves out further terms of it.
    """
    rank, voxels = check_field(mean, "mean"), mean[0, 0].numel()
    degree = torch.zeros_like(mean[0, 0])
    for axis in range(rank):
        degree.narrow(axis, 1, degree.shape[axis] - 1).add_(1)
        degree.narrow(axis, 0, degree.shape[axis] - 1).add_(1)
    spread = (prior * degree * log_variance.exp() - log_variance).sum()
    roughness = sum(torch.diff(mean, dim=2 + a).square().sum() for a in range(rank))
    return (spread + prior * roughness) / (2 * voxels * len(mean))


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
    v = velocity.flatten(0, 1)
    check_field(v, "velocity at one time")
    return lddmm_operator(v, alpha, gamma, beta).square().sum(1).mean()


def lddmm_operator(field: torch.Tensor, alpha: float = 0.01, gamma: float = 0.01, beta: int = 2) -> torch.Tensor:
    """``L field`` of a (B, D, *S) field: the operator within :func:`lddmm_energy`, its stencil and its borders."""
    if beta < 1:
        raise ValueError(f"beta: expected a whole number >= 1, got {beta}")
    rank = check_field(field, "field")
    for _ in range(beta):
        field = gamma * field - alpha * _laplacian(field, rank)
    return field


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
