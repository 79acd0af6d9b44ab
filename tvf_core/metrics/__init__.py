"""Scores of a registration: label overlap and distance, smoothness and folding of the map, image similarity, inverse error."""

from .feature_similarity import fsim
from .folding import folding_percent, ndv_percent, sdlogj
from .inverse_error import inverse_consistency_error
from .overlap import dice, hd95
from .similarity import ssim

__all__ = [
    "dice",
    "folding_percent",
    "fsim",
    "hd95",
    "inverse_consistency_error",
    "ndv_percent",
    "sdlogj",
    "ssim",
]
