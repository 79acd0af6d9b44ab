"""Image pairs for training and evaluation.

``load("demo_faces", "test")`` loads a known data set, ``load("./my_scans", "test")`` that of a folder.
"""

from .loading import batches
from .pairs import DATASETS, PairData, load, load_pairs, name_of, without_pairs

__all__ = ["DATASETS", "PairData", "batches", "load", "load_pairs", "name_of", "without_pairs"]
