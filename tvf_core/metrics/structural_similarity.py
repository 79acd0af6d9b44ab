"""Structural similarity (SSIM) of two images: Wang, Bovik, Sheikh & Simoncelli, IEEE TIP 13(4), 2004.

Feature similarity (FSIM) is in :mod:`tvf_core.metrics.feature_similarity`.
"""

from __future__ import annotations

import torch
from skimage.metrics import structural_similarity


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two images in 2D or 3D, 1 for equal ones.

    Parameters
    ----------
    a, b : (1, 1, *S) in [0, 1].

    Raises
    ------
    ValueError : the shapes differ, or are not those of one image each.

    Notes
    -----
    The settings are those of Wang et al. (2004): a Gaussian window of 11 voxels with sigma 1.5, and
    K = (0.01, 0.03). The mean leaves out the 5 voxels at each border, where the window does not fit.
    """
    if a.shape != b.shape or a.shape[:2] != (1, 1):
        raise ValueError(
            f"ssim: expected two images (1, 1, *space) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    return float(
        structural_similarity(
            a[0, 0].double().numpy(),
            b[0, 0].double().numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
