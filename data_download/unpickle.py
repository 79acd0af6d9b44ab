"""Read arrays out of a pickle from elsewhere without running what else it may hold."""

from __future__ import annotations

import _codecs
import pickle
from pathlib import Path

import numpy as np

# Asked of an array, since where NumPy keeps them changed with NumPy 2; pickles name either place.
RECONSTRUCT, FROMBUFFER = np.empty(0).__reduce__()[0], np.empty(0).__reduce_ex__(5)[0]
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _codecs.encode,  # how protocols 0 to 2 write bytes
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): FROMBUFFER,
}


class Refused(ValueError):
    """A pickle names something that is not needed for arrays."""


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:  # a table, so a dotted name leads nowhere
            raise Refused(ascii(f"{module}.{name}")[1:-1][:80])
        return ALLOWED[module, name]


def load_arrays(path: Path) -> tuple[np.ndarray, ...]:
    """The arrays of numbers in a pickle of a tuple or list of them; ValueError, before anything runs, for all else."""
    with open(path, "rb") as file:
        try:
            content = _Arrays(file).load()
        except Refused as error:
            raise Refused(f"{path}: refused, this pickle would run code ({error})") from None
        except Exception as error:  # broken pickles raise nearly anything
            raise ValueError(f"{path}: not a whole pickle of arrays, damaged or cut short ({type(error).__name__})") from None
    if not isinstance(content, (tuple, list)) or not content:
        raise ValueError(f"{path}: expected a tuple of NumPy arrays, got {type(content).__name__}")
    for array in content:
        if type(array) is not np.ndarray:
            raise ValueError(f"{path}: expected only NumPy arrays in it, got {type(array).__name__}")
        if array.dtype.kind not in "biuf":  # no objects, nor records, which may hide them
            raise ValueError(f"{path}: expected arrays of numbers, got {str(array.dtype)[:40]}")
    return tuple(content)
