"""Files of transforms as ITK, ANTs, SimpleITK and Slicer read and write them.

An affine map is a ``.mat`` (ANTs' ``0GenericAffine.mat``) or a text (``.txt``, ``.tfm``), a displacement
field a NIfTI of shape (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2) with the vector intent (1007). In all of them the
world is LPS; everything in this package is RAS. A field lies where an
image with its header lies. A field is not inverted on reading: ITK and ANTs refuse that
too, and the inverse has a file of its own (``1InverseWarp.nii.gz``).
"""

from __future__ import annotations

import dataclasses
import gzip
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np

from ..paths import write_then_rename
from .flows import read_flow
from .grids import Grid, check_matrix
from .headers import parse, place
from .maps import Linear, Map, Warp
from .voxels import opened, read_voxels

VECTOR = 1007  # NIfTI's intent code of a field of vectors; with 1006, ITK 5.4 takes the world for RAS
AFFINE_FILES, FIELD_FILES = (".mat", ".txt", ".tfm"), (".nii", ".nii.gz")
NAMES = "expected .mat, .txt, .tfm, .nii.gz or velocity.safetensors"


def read(text: str | Path, dim: int | None = None) -> list[Map]:
    """Read one transform as it stands on a command line.

    Parameters
    ----------
    text : a path, or ``[path,1]`` for the inverse, of an affine map or of a ``velocity.safetensors`` only
        (``[path,0]`` is the path alone).
    dim : 2 or 3, if the transform must have that dimension.

    Returns
    -------
    A chain in the order of ``antsApplyTransforms`` (:func:`tvf_core.scans.maps.map_points`): one map for most
    files, two for a ``velocity.safetensors``.

    Raises
    ------
    FileNotFoundError, ValueError : one line.
    """
    text = str(text)
    bracket = re.fullmatch(r"\[(.*),\s*([01])\s*\]", text)
    path, inverse = (Path(bracket[1].strip()), bracket[2] == "1") if bracket else (Path(text), False)
    if not bracket and text.startswith("[") and not path.exists():
        raise ValueError(f"{text}: expected a file, or [file,1] for its inverse")
    name = path.name.lower()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if name.endswith(FIELD_FILES):
        if inverse:
            raise ValueError(
                f"[{path},1]: a displacement field cannot be inverted; use its 1InverseWarp file"
            )
        chain = [read_field(path)]
    elif name.endswith(AFFINE_FILES):
        chain = read_affine(path)
        if inverse:
            chain = [one.inverse() for one in reversed(chain)]
    elif name.endswith(".safetensors"):
        result = read_flow(path)
        chain = result.backward() if inverse else result.forward()
    else:
        raise ValueError(f"{path}: not a transform; {NAMES}")
    for one in chain:
        if dim is not None and one.dim != dim:
            raise ValueError(f"{path}: is a transform in {one.dim}D; expected {dim}D")
    return chain


# Displacement fields


def write_warp(path: Path, displacement: np.ndarray, grid: Grid) -> None:
    """Write a displacement ``(*S, D)`` in RAS mm as ``.nii`` or ``.nii.gz``, on the fixed image's grid.

    ITK's form: components in LPS, float32, intent 1007, qform and sform with code 1. The same content gives
    the same bytes.
    """
    path = Path(path)
    if not path.name.endswith(FIELD_FILES):
        raise ValueError(f"{path}: a displacement field is written as .nii or .nii.gz")
    field = Warp(displacement, grid).displacement * lps(grid.dim).astype(np.float32)
    affine = np.eye(4)
    keep = [*range(grid.dim), 3]
    affine[np.ix_(keep, keep)] = grid.affine
    field = field[:, :, :, None] if grid.dim == 3 else field[:, :, None, None]
    image = nib.Nifti1Image(field, affine, dtype=np.float32)
    image.header.set_intent(VECTOR)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    with write_then_rename(path) as temporary, open(temporary, "wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def read_field(path: Path) -> Warp:
    """Read a displacement field of ITK or ANTs, which lies where ITK places it.

    Raises
    ------
    OSError, ValueError : the file is none, or is damaged; one line.
    """
    path, where = Path(path), str(path)
    wrong = f"{where}: not a displacement field"
    with opened(path) as (file, start, size):
        header = parse(start, where, vectors=True)
        if header is None:
            raise ValueError(f"{wrong}: not a NIfTI file")
        shape = header.sizes
        dim = shape[-1] if len(shape) == 5 else 0
        if dim not in (2, 3) or shape[3] != 1 or (dim == 2 and shape[2] != 1):
            raise ValueError(f"{wrong}: its shape is {shape}, expected (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2)")
        if (intent := int(header.record["intent_code"])) != VECTOR:
            raise ValueError(f"{wrong}: its intent code is {intent}, expected {VECTOR} (vector)")
        if header.type.kind != "f":
            raise ValueError(f"{wrong}: it holds {header.type.name}, expected floating-point numbers")
        header = dataclasses.replace(header, sizes=shape[:dim])
        affine, _ = place(header, where)
        field = [read_voxels(file, size, header, axis, where)[0] for axis in range(dim)]
    try:  # what is not finite is 0 by now, as ITK reads it
        return Warp(np.stack(field, -1) * lps(dim).astype(np.float32), Grid(shape[:dim], affine))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def lps(dim: int) -> np.ndarray:
    """Signs of the axes that turn RAS into LPS, and back."""
    return np.array([-1.0, -1.0, 1.0][:dim])


# Affine maps


def write_affine(path: Path, matrix: np.ndarray) -> None:
    """Write an affine map (D+1, D+1), RAS mm, fixed world to moving world.

    ``.mat`` is ANTs' form, byte for byte as SimpleITK writes it; ``antsApplyTransforms`` inverts such files
    only. ``.txt`` and ``.tfm`` are ITK's text.
    """
    path, dim = Path(path), len(matrix) - 1
    check_matrix(matrix, dim, "affine")
    flip = np.array([*lps(dim), 1.0])
    turned = flip[:, None] * np.asarray(matrix, np.float64) * flip
    numbers = [*turned[:-1, :-1].ravel(), *turned[:-1, -1]]
    kind = f"AffineTransform_double_{dim}_{dim}"
    if path.suffix == ".mat":
        content = _matlab(kind, numbers) + _matlab("fixed", [0.0] * dim)
    elif path.suffix in AFFINE_FILES:
        line = " ".join(f"{x:.17g}" for x in numbers)
        zeros = " ".join(["0"] * dim)
        content = (
            f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\n"
            f"Parameters: {line}\nFixedParameters: {zeros}\n"
        ).encode()
    else:
        raise ValueError(f"{path}: an affine map is written as .mat, .txt or .tfm")
    with write_then_rename(path) as temporary:
        temporary.write_bytes(content)


def read_affine(path: Path) -> list[Linear]:
    """Read the affine maps of a ``.mat``, ``.txt`` or ``.tfm``: one, or those of a composite."""
    wrong = f"{path}: not an affine transform"
    content = path.read_bytes()
    try:
        parts = _from_matlab(content) if path.name.lower().endswith(".mat") else _from_text(content)
        if parts and parts[0][0].startswith("CompositeTransform"):
            parts = parts[:0:-1]  # the last of a composite acts on a point first
        elif len(parts) > 1:
            raise ValueError("it holds several transforms, without a CompositeTransform as the first")
        if not parts:
            raise ValueError("it holds no transform")
        return [_linear(*part) for part in parts]
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}") from None


def _linear(kind: str, parameters: np.ndarray, fixed: np.ndarray) -> Linear:
    """Map of ITK's parameters: y = A (x - c) + c + t, in LPS."""
    found = re.fullmatch(r"(\w+?)_(?:double|float)_([23])_\2", kind)
    if not found:
        raise ValueError(f"unknown kind of transform {kind[:60]!r}")
    name, dim = found[1], int(found[2])
    if name in ("AffineTransform", "MatrixOffsetTransformBase"):
        matrix, shift = parameters[: dim * dim], parameters[dim * dim :]
    elif name == "TranslationTransform":
        matrix, shift, fixed = np.eye(dim), parameters, np.zeros(dim)
    elif name == "IdentityTransform":
        matrix, shift, fixed = np.eye(dim), np.zeros(dim), np.zeros(dim)
    elif name in ("Euler2DTransform", "Euler3DTransform") and len(parameters) == (3 if dim == 2 else 6):
        matrix, shift = _turn(parameters[:-dim], fixed[dim:]), parameters[-dim:]
    else:
        raise ValueError(f"it holds a {name} in {dim}D; save it as an AffineTransform")
    centre = fixed[:dim]
    if np.size(matrix) != dim * dim or len(shift) != dim or len(centre) != dim:
        raise ValueError(f"a {name} in {dim}D has other numbers of parameters than it")
    out, flip = np.eye(dim + 1), lps(dim)
    out[:-1, :-1] = np.reshape(matrix, (dim, dim))
    out[:-1, -1] = shift + centre - out[:-1, :-1] @ centre
    out[:-1] *= flip[:, None]
    out[:, :-1] *= flip
    return Linear(out)


def _turn(angles: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rotation by ITK's Euler angles, in radians: Rz Rx Ry, or Rz Ry Rx if ``order`` has a 1."""

    def around(axis: int, angle: float) -> np.ndarray:
        a, b = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b] = np.sin(angle) * (1 if axis == 1 else -1)
        turn[b, a] = -turn[a, b]
        return turn

    if len(angles) == 1:
        return around(2, angles[0])[:2, :2]
    x, y, z = (around(axis, angle) for axis, angle in enumerate(angles))
    return z @ y @ x if len(order) and order[0] == 1 else z @ x @ y


def _from_text(content: bytes) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(kind, parameters, fixed parameters) of every transform in a text of ITK."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError("it is no text") from None
    if not lines or not lines[0].startswith("#Insight Transform File"):
        raise ValueError("its first line is not '#Insight Transform File V1.0'")
    parts = []
    for line in lines:
        key, colon, value = line.partition(":")
        if key == "Transform" and colon:
            parts.append([value.strip(), np.zeros(0), np.zeros(0)])
        elif key in ("Parameters", "FixedParameters") and parts:
            try:
                parts[-1][1 if key == "Parameters" else 2] = np.array(value.split(), dtype=np.float64)
            except ValueError:
                raise ValueError(f"its {key} are not numbers") from None
    return [tuple(part) for part in parts]


def _matlab(name: str, numbers) -> bytes:
    """A column of float64 in MATLAB's file format of level 4."""
    label = name.encode("ascii") + b"\0"
    return struct.pack("<5i", 0, len(numbers), 1, 0, len(label)) + label + np.array(numbers, "<f8").tobytes()


def _from_matlab(content: bytes) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The transform in a MATLAB file of level 4: two columns, the second is named ``fixed``."""
    found, at = {}, 0
    while at < len(content):
        if len(content) < at + 20:
            raise ValueError("the file is cut short, or is not MATLAB's level 4")
        order = "<" if content[at + 3] == 0 and content[at] < 200 and content[at + 2] == 0 else ">"
        code, rows, columns, imaginary, length = struct.unpack_from(order + "5i", content, at)
        kinds = {0: "f8", 10: "f4", 100: "f8", 110: "f4"}
        if code % 1000 not in kinds or not 0 <= code < 2000 or imaginary or min(rows, columns, length) < 0:
            raise ValueError("it is not MATLAB's level 4 with floating-point numbers")
        kind = np.dtype(order + kinds[code % 1000])
        at += 20
        end = at + length + rows * columns * kind.itemsize
        if end > len(content):
            raise ValueError("the file is cut short, or is not MATLAB's level 4")
        name = content[at : at + length].rstrip(b"\0").decode("ascii", "replace")
        found[name] = np.frombuffer(content[at + length : end], kind).astype(np.float64)
        at = end
    fixed = found.pop("fixed", np.zeros(0))
    return [(name, numbers, fixed) for name, numbers in found.items()]
