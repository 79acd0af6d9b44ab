"""Image similarities other than local NCC, as losses: mean squared difference and structural similarity."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..checks import check_range, spatial_rank
from ..fields import at_least_float32, for_sums
from ..metrics.structural_similarity import window_axes


def mse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two images of equal shape; ValueError if the shapes differ."""
    spatial_rank(a, "a")
    spatial_rank(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    return F.mse_loss(a, b)


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Negative mean structural similarity of two images in [0, 1] (Wang et al. 2004); it lies in [-1, 1].

    The window is a Gaussian of 11 voxels with sigma 1.5, K = (0.01, 0.03), and the 5 voxels at each border
    are left out. The value is minus :func:`tvf_core.metrics.ssim`, but differentiable. The released 2D script
    of TransMorph trains with it.

    Parameters
    ----------
    a, b : (B, 1, *S), at least 11 voxels along each axis but for one axis in 3D; ValueError otherwise. Where
        the window does not fit along one axis, it is one of 2D, within the slices across that axis.

    Raises
    ------
    ValueError : the shapes differ, the images are too small, or values lie outside [0, 1] (looked at on a
        processor only, because the host would have to wait for a GPU).
    """
    rank = spatial_rank(a, "a")
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must have the same shape")
    axes = window_axes(a.shape[2:])
    if a.device.type == "cpu" and not torch.compiler.is_compiling():  # a compiled step cannot look at values
        for image in (a, b):
            check_range(image, "ssim")
    precise, dtype = for_sums(a.device), at_least_float32(a)
    a, b = a.to(precise), b.to(precise)
    bell = torch.exp(-(torch.arange(-5, 6, device=a.device, dtype=precise) / 1.5).square() / 2)
    bell = bell / bell.sum()
    convolve = F.conv2d if rank == 2 else F.conv3d
    moments = torch.cat([a, b, a * a, b * b, a * b]).flatten(0, 1)[:, None]
    for axis in axes:
        moments = convolve(moments, bell.view(1, 1, *[-1 if k == axis else 1 for k in range(rank)]))
    mean_a, mean_b, aa, bb, ab = moments.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return -(luminance * structure).mean().to(dtype)
