"""Reading scans: NIfTI volumes and slices, pictures, label maps and masks; intensities in [0, 1].

Whatever cannot be read, or not be read safely, ends in one line that begins with the file's name and says
what to do. What the reader had to decide stands in the notes of a :class:`Scan`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from .grids import Grid
from .headers import Header, directions, parse, place
from .pictures import MARKS, picture_affine, picture_shape, read_picture
from .voxels import must_fit, opened, read_voxels, unknown, volume_of

BACKGROUND = 0.05  # a value that this share of all voxels has exactly is background
SAMPLE = 1 << 22  # voxels from which the percentiles are taken


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """An image as it was read.

    Parameters
    ----------
    values : (X, Y[, Z]), float32; of label maps and masks int64.
    grid : where its voxels lie, in RAS mm.
    path : the file.
    notes : what the reader did or had to decide, one line each, without the file's name.
    flat : the file has a third axis of size 1: the image is 2D, and is written as (X, Y, 1).
    slab : of a flat file: its 4 x 4 affine in 3D, for :func:`tvf_core.scans.writing.write_image`; or None.
    differs : a picture that other programs turn or place otherwise, because they do not read its EXIF tag
        or because they read a size of its pixels (:func:`tvf_core.scans.pictures.pixel_size`).
    picture : a PNG or JPEG, whose unit of length is the pixel.
    """

    values: np.ndarray
    grid: Grid
    path: Path
    notes: tuple[str, ...] = ()
    flat: bool = False
    slab: np.ndarray | None = None
    differs: bool = False
    picture: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """Where an image lies, without its voxels; the names are those of :class:`Scan`."""

    grid: Grid
    path: Path
    notes: tuple[str, ...] = ()
    flat: bool = False
    slab: np.ndarray | None = None
    picture: bool = False


def read_image(path, *, volume: int | None = None, nearest_rotation: bool = False) -> Scan:
    """Read an image: NIfTI (``.nii``, ``.nii.gz``), PNG or JPEG, known by its content, not by its name.

    The image lies where ITK, and with it ANTs, SimpleITK and Slicer, places it
    (:func:`tvf_core.scans.headers.place`). Stored numbers are scaled by the header's slope and intercept.
    Values that are not finite become 0, and a note counts them. (X, Y, Z, 1) is 3D. (X, Y) is 2D, and so is
    (X, Y, 1), whose plane is turned into the x-y plane. Other axes of size 1 are refused.

    Parameters
    ----------
    path : the file.
    volume : which volume of a 4D file, from 0; a file of several needs it.
    nearest_rotation : for axes that are not at right angles, take the nearest rotation instead of refusing.

    Returns
    -------
    Scan : with float32 values.

    Raises
    ------
    FileNotFoundError, OSError, ValueError : one line, which begins with the file's name.
    """
    return _read(Path(path), volume, nearest_rotation)


def read_grid(path, *, nearest_rotation: bool = False) -> Frame:
    """Read where an image lies, which all volumes of a file share; no voxel is read.

    Parameters
    ----------
    path, nearest_rotation : as :func:`read_image` takes them.

    Raises
    ------
    FileNotFoundError, OSError, ValueError : one line, which begins with the file's name.
    """
    path, where = Path(path), str(path)
    with opened(path) as (file, start, _):
        if start.startswith(MARKS):
            file.seek(0)
            return Frame(Grid(picture_shape(file, where), picture_affine()), path, picture=True)
        frame = _frame(_header(start, where), path, nearest_rotation)
    must_fit(frame.grid.shape, where)
    return frame


def read_labels(
    path,
    like: Grid | None = None,
    name: str = "",
    *,
    volume: int | None = None,
    nearest_rotation: bool = False,
) -> Scan:
    """Read a label map or a mask; a mask is where its labels are above 0.

    Parameters
    ----------
    path : NIfTI with whole numbers, in any type, or PNG, whose palette is ignored. Colours and JPEG are
        refused.
    like : the grid of the image that they belong to and must lie on; None accepts any grid.
    name : what this image is called in a message, such as ``"moving"``.
    volume, nearest_rotation : as in :func:`read_image`; give ``nearest_rotation`` what was given there.

    Returns
    -------
    Scan : with int64 values from 0 to 2**24, on the grid ``like``, or on that of the file.

    Raises
    ------
    FileNotFoundError, OSError, ValueError : also if the corners lie more than a tenth of a voxel away from
        those of ``like``, or if the values are not such numbers. One line, which begins with the file's name.
    """
    scan = _read(Path(path), volume, nearest_rotation, labels=True)
    if like is None:
        return scan
    if scan.grid.shape != like.shape:
        mine, theirs = (" x ".join(map(str, shape)) for shape in (scan.grid.shape, like.shape))
        raise ValueError(f"{path} has {mine} voxels, but {name} has {theirs}; resample it to {name}")
    apart = scan.grid.distance(like)
    if apart > 0.1 * min(like.spacing):
        raise ValueError(
            f"{path}: its grid differs from that of {name} by {apart:.3g} mm; resample it to {name}"
        )
    return dataclasses.replace(scan, grid=like)


def check_pair(moving: Scan, fixed: Scan) -> None:
    """Refuse two images of which one is 2D and the other 3D, and an image with one value everywhere."""
    if moving.grid.dim != fixed.grid.dim:
        raise ValueError(
            f"{moving.path} is {moving.grid.dim}D, {fixed.path} is {fixed.grid.dim}D; "
            "both must be 2D or both 3D"
        )
    for scan in (moving, fixed):
        if scan.values.min() == scan.values.max():
            raise ValueError(f"{scan.path} has one value everywhere: there is nothing to register")


def normalise(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Scale intensities to [0, 1], little affected by background, padding, noise and a few bright voxels.

    1. Background are the voxels that have the most frequent value, if at least 5 % of all voxels have
       exactly that value: air that was set to 0, padding of a CT, the black of a cut-out. They are left out
       of what follows. An image without such a value has no background.
    2. ``low`` is the 0.5th percentile of the others, ``high`` the 99.5th percentile of those others that
       are above their mean. So a head in much noisy air, whose bright voxels are few, is not cut off, and
       lungs in a CT keep their contrast.
    3. ``(value - low) / (high - low)``, clipped to [0, 1], for all voxels, background too.

    If ``low`` and ``high`` are equal, the smallest and the largest value of the image take their place. Of an
    image with more than 2**22 voxels, every k-th voxel counts for 1 and 2.

    Parameters
    ----------
    values : any shape, finite.

    Returns
    -------
    normalised, note : float32, same shape; a line that says which values became 0 and 1.

    Raises
    ------
    ValueError : the image has one value everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> scaled, note = normalise(np.array([0, 0, 0, 100, 200, 300], dtype=np.float32))
    >>> scaled.round(2).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.5, 1.0]
    """
    least, most = float(values.min()), float(values.max())
    if least == most:
        raise ValueError(f"it has one value everywhere ({least:.6g}): there is nothing to register")
    step = (values.size // SAMPLE) | 1  # odd, so that it is no multiple of an axis of even size
    ordered = np.sort(values.reshape(-1)[::step].astype(np.float64))
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    runs = np.diff(np.r_[starts, ordered.size])
    first = starts[runs.argmax()]
    if BACKGROUND * ordered.size <= runs.max() < ordered.size:
        ordered = np.delete(ordered, slice(first, first + runs.max()))
    low = float(np.percentile(ordered, 0.5))
    bright = ordered[ordered > ordered.mean()]
    high = float(np.percentile(bright if bright.size else ordered, 99.5))
    if not low < high:
        low, high = least, most
    scaled = values.astype(np.float64)
    scaled -= low
    scaled /= high - low
    note = f"intensities from {low:.6g} to {high:.6g} became 0 to 1 (values from {least:.6g} to {most:.6g})"
    return np.clip(scaled, 0, 1, out=scaled).astype(np.float32), note


def _read(path: Path, volume: int | None, nearest_rotation: bool, labels: bool = False) -> Scan:
    where = str(path)
    with opened(path) as (file, start, size):
        if start.startswith(MARKS):
            if volume not in (None, 0):
                raise ValueError(f"{where} has one volume (0), not number {volume}")
            file.seek(0)
            values, notes, differs = read_picture(file, where, labels)
            grid = Grid(values.shape, picture_affine())
            return Scan(values, grid, path, tuple(notes), differs=differs, picture=True)
        header = _header(start, where)
        number = volume_of(header, volume, where)
        frame = _frame(header, path, nearest_rotation)
        notes = list(frame.notes)
        values, missing = read_voxels(file, size, header, number, where, labels)
    if len(header.sizes) == 4:
        notes.append(f"volume {number} of 0 to {header.sizes[3] - 1}")
    if missing == values.size:
        raise ValueError(f"{where} has no finite value: there is nothing to register")
    if missing:
        notes.append(f"{missing} voxels are not finite; taken as 0")
    return Scan(values.reshape(frame.grid.shape), frame.grid, path, tuple(notes), frame.flat, frame.slab)


def _header(start: bytes, where: str) -> Header:
    header = parse(start, where)
    if header is None:
        raise unknown(start, where)
    return header


def _frame(header: Header, path: Path, nearest_rotation: bool) -> Frame:
    sizes, where = header.sizes[:3], str(path)
    flat = len(sizes) == 3 and sizes[2] == 1
    _must_have_extent(sizes[:2] if flat else sizes, where)
    affine, notes = place(header, where, nearest_rotation)
    if flat:
        return _flat(sizes[:2], affine, path, notes)
    return Frame(Grid(sizes, affine), path, tuple(notes))


def _must_have_extent(sizes, where: str) -> None:
    for axis, size in enumerate(sizes):
        if size < 2:
            raise ValueError(
                f"{where} has one voxel along axis {axis + 1}; store a slice as (X, Y) or as (X, Y, 1)"
            )


def _flat(shape: tuple[int, ...], slab: np.ndarray, path: Path, notes: list[str]) -> Frame:
    """The 2D frame of a file (X, Y, 1): the smallest turn brings its plane into the x-y plane."""
    normal = np.cross(*directions(slab[:3, :2]).T)
    normal = normal * np.sign(normal[np.abs(normal).argmax()])  # the same for both orders of the axes
    turn = _smallest_turn(normal, np.array([0.0, 0.0, 1.0]))
    affine = np.eye(3)
    affine[:2, :2] = (turn @ slab[:3, :2])[:2]
    affine[:2, 2] = (turn @ slab[:3, 3])[:2]
    notes = [*notes, "one slice: registered in 2D; ITK and ANTs need it as (X, Y) to apply a 2D transform"]
    if abs(normal[2]) < 1 - 1e-8:
        notes.append("its plane is not the x-y plane: it was turned into it, and points count from there")
    return Frame(Grid(shape, affine), path, tuple(notes), flat=True, slab=slab)


def _smallest_turn(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Rotation by the smallest angle that takes one unit vector to another, which is not opposite to it."""
    x, y, z = np.cross(start, end)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + skew + skew @ skew / (1 + start @ end)  # Rodrigues' formula
