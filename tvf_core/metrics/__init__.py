"""Scores of a registration.

They measure the overlap and the distance of labels, the distance of landmarks, how smooth the map is and
where it folds, how similar the images are, and how well the map and its inverse undo each other.
"""

from .feature_similarity import fsim
from .folding import folding_percent, ndv_percent, sdlogj
from .inverse_error import inverse_consistency_error
from .landmarks import landmark_error
from .overlap import dice, hd95
from .structural_similarity import ssim

__all__ = [
    "dice",
    "folding_percent",
    "fsim",
    "hd95",
    "inverse_consistency_error",
    "landmark_error",
    "ndv_percent",
    "sdlogj",
    "ssim",
]
