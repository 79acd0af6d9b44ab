"""Image pairs for training and evaluation; ``load("demo_faces", "test")`` is the way in."""

from .loading import batches
from .pairs import DATASETS, PairData, load

__all__ = ["DATASETS", "PairData", "batches", "load"]
