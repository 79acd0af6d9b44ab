"""Structural similarity (SSIM) of two images: Wang, Bovik, Sheikh & Simoncelli, IEEE TIP 13(4), 2004.

Feature similarity (FSIM) is in :mod:`tvf_core.metrics.feature_similarity`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from skimage.metrics import structural_similarity

from ..checks import check_one_pair, check_range, spatial_rank

WINDOW = 11  # edge of the window in voxels: 3.5 standard deviations of 1.5 voxels on either side


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two images in 2D or 3D, 1 for equal ones.

    Parameters
    ----------
    a, b : (1, 1, *S) in [0, 1], at least 11 voxels along each axis but for one axis in 3D.

    Returns
    -------
    SSIM; NaN where an image has NaN or infinite values. In 3D, where the window does not fit along one axis,
    as in a stack of few slices, it is the mean over the slices across that axis of their SSIM in 2D.

    Raises
    ------
    ValueError : the shapes differ, or are not those of one image each; the images are too small; or values
        lie outside [0, 1].

    Notes
    -----
    The settings are those of Wang et al. (2004): a Gaussian window of 11 voxels with sigma 1.5, and
    K = (0.01, 0.03). The mean leaves out the 5 voxels at each border, where the window does not fit.
    """
    for image in (a, b):
        spatial_rank(image, "ssim")
    if a.shape != b.shape or a.shape[1] != 1:
        raise ValueError(
            f"ssim: expected two images (1, 1, *space) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    check_one_pair(a, "ssim")
    within = window_axes(a.shape[2:])
    for image in (a, b):
        check_range(image, "ssim")
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    one, two = (image[0, 0].detach().cpu().double().numpy() for image in (a, b))
    if len(within) == one.ndim:
        return _ssim(one, two)
    (across,) = set(range(one.ndim)) - set(within)
    slices = zip(np.moveaxis(one, across, 0), np.moveaxis(two, across, 0))
    return float(np.mean([_ssim(*pair) for pair in slices]))


def window_axes(shape, name: str = "ssim") -> list[int]:
    """The axes of images of a size along which the window of SSIM fits; ValueError if there are too few.

    It must fit along two axes at least, and in 2D these are all. ``name`` says in the error what needs them.
    """
    axes = [axis for axis, size in enumerate(shape) if size >= WINDOW]
    if len(axes) < 2:
        raise ValueError(
            f"{name}: needs at least {WINDOW} voxels along {'each axis' if len(shape) == 2 else 'two axes'}, "
            f"got {tuple(shape)}"
        )
    return axes


def _ssim(one: np.ndarray, two: np.ndarray) -> float:
    return float(
        structural_similarity(
            one, two, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )
