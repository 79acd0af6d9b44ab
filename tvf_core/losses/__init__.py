"""Losses of the paper and its baselines: similarity, label overlap, smoothness. All are minimised.

Reductions are means, so that a weight keeps its meaning when the image size changes. What each method
minimises is put together in :mod:`tvf_core.losses.objectives`.
"""

from .label_overlap import label_mse, soft_dice
from .local_ncc import lncc, multiscale_lncc
from .regularisers import diffusion, lddmm_energy, lddmm_operator, velocity_kl
from .similarity import mse, ssim

__all__ = [
    "diffusion",
    "label_mse",
    "lddmm_energy",
    "lddmm_operator",
    "lncc",
    "mse",
    "multiscale_lncc",
    "soft_dice",
    "ssim",
    "velocity_kl",
]
