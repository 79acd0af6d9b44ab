"""Structural similarity of two images. (Feature similarity, FSIM, is in :mod:`tvf_core.metrics.feature_similarity`.)"""

from __future__ import annotations

import torch
from skimage.metrics import structural_similarity


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity of two images in [0, 1] (Wang et al. 2004), 2D or 3D.

    Parameters
    ----------
    a, b : (1, 1, *S). Gaussian window of 11 voxels, sigma 1.5, K = (0.01, 0.03); the border of 5
        voxels that the window does not cover is left out.
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
