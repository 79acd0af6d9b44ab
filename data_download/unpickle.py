"""Read the arrays in a pickle from elsewhere without running any code that the pickle may hold.

Not even NumPy's own functions restore the arrays: a forged description of an array makes them read memory
that is not the array's. The plain classes below write down what the pickle says about an array; that is
checked, and only then is the array made.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np


class Refused(ValueError):
    """A pickle names something that is not needed for arrays."""


class _Dtype:
    """Kind, size and byte order of the numbers."""

    def __init__(self, code="", *_):
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]

    def make(self) -> np.dtype:
        if not re.fullmatch(r"[biu][1248]|f[248]", str(self.code)) or self.order not in ("<", ">", "=", "|"):
            # Arrays of Python objects end here, and so do records, whose fields may be objects.
            raise Refused(f"expected arrays of numbers, got {str(self.code)[:40]}")
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """Shape, numbers and their order: ``_reconstruct`` makes an empty one, ``__setstate__`` fills it."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        self.state = raw, dtype, shape, "F" if fortran else "C"

    def make(self) -> np.ndarray:
        raw, dtype, shape, order = self.state
        if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
            raise ValueError(order)
        if isinstance(raw, list):
            raise Refused("expected arrays of numbers, got object")
        if not isinstance(raw, (bytes, bytearray)):  # NumPy would take a number for a size, and give zeros
            raise ValueError(type(raw))
        array = np.frombuffer(raw, dtype.make()).reshape([int(n) for n in shape], order=order)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _from_buffer(raw, dtype, shape, order, *_) -> _Array:
    array = _Array()
    array.state = raw, dtype, shape, order
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Bytes from the text as which protocols 0 to 2 write them."""
    if encoding != "latin1":
        raise Refused(f"refused, it names the encoding {ascii(encoding)[:20]}, which no array needs")
    return text.encode(encoding)


# NumPy 2 keeps these names in another place than NumPy 1, and a pickle may name either. An array that was
# read from a file may be a memory map.
_STANDINS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "memmap"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _STANDINS:  # a look-up in a table: a dotted name leads nowhere
            raise Refused(f"refused, this pickle would run code ({ascii(f'{module}.{name}')[1:-1][:80]})")
        return _STANDINS[module, name]


def _kind(thing) -> str:
    return {_Array: "ndarray", _Dtype: "dtype"}.get(type(thing), type(thing).__name__)


def load_arrays(path: Path) -> tuple[np.ndarray, ...]:
    """The arrays of numbers in a pickle of a tuple or list of such arrays.

    ValueError for every other content, of which nothing is run.
    """
    with open(path, "rb") as file:
        try:
            content = _Arrays(file).load()
            if (
                isinstance(content, (tuple, list))
                and content
                and all(type(array) is _Array for array in content)
            ):
                return tuple(array.make() for array in content)
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
        except Exception as error:  # a broken pickle may raise nearly any error
            raise ValueError(
                f"{path}: not a whole pickle of arrays, damaged or cut short ({type(error).__name__})"
            ) from None
    if not isinstance(content, (tuple, list)) or not content:
        raise ValueError(f"{path}: expected a tuple of NumPy arrays, got {_kind(content)}")
    other = next(array for array in content if type(array) is not _Array)
    raise ValueError(f"{path}: expected only NumPy arrays in it, got {_kind(other)}")
