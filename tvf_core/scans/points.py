"""Points in CSV files: landmarks in the coordinates of ITK and ANTs, LPS millimetres."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path

import numpy as np

from ..paths import write_then_rename
from .grids import Grid

AXES = ("x", "y", "z")
SIGNS = np.array([-1.0, -1.0, 1.0])  # between LPS and RAS
HOW = "the first line names the columns x,y,z (2D: x,y), positions are LPS mm as in ITK and ANTs"


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Points as they were read.

    Parameters
    ----------
    positions : (K, D) float64, RAS mm.
    columns : the names of all columns of the file, in their order.
    rows : for each point, the texts of its row.
    path : the file.
    """

    positions: np.ndarray
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    path: Path


def read_points(path, dim: int) -> Points:
    """Read points from a CSV file.

    Its first line names the columns: ``x,y,z``, in 2D ``x,y``, in any order and among others, which are kept.
    Positions are LPS millimetres: those of ``antsApplyTransformsToPoints`` and of SimpleITK's
    ``TransformIndexToPhysicalPoint``; of a PNG, pixels from the centre of the first one, x to the right and y
    down. A third column of a 2D file, which ANTs writes, must be 0.

    Parameters
    ----------
    path : the file, UTF-8.
    dim : number D of axes of the images, 2 or 3.

    Returns
    -------
    Points : with RAS positions.

    Raises
    ------
    FileNotFoundError, OSError, ValueError : one line, which begins with the file's name.
    """
    path = Path(path)
    text = _text(path)
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if any(map(str.strip, line))]
    except csv.Error:
        raise ValueError(f"{path} is not a CSV file; {HOW}") from None
    if not lines:
        raise ValueError(f"{path} is empty; {HOW}")
    columns = tuple(name.strip() for name in lines[0])
    where = _columns(columns, dim, path)
    if len(lines) == 1:
        raise ValueError(f"{path} has no points, only a line with the names of the columns")
    positions = np.empty((len(lines) - 1, dim))
    for number, line in enumerate(lines[1:]):
        if len(line) != len(columns):
            raise ValueError(
                f"{path}: point {number + 1} has {len(line)} values, but there are {len(columns)} columns"
            )
        found = [_number(line[k], columns[k], number + 1, path) for k in where]
        if any(found[dim:]):
            raise ValueError(
                f"{path}: point {number + 1} has z = {line[where[2]].strip()}, but the images are 2D"
            )
        positions[number] = found[:dim]
    return Points(positions * SIGNS[:dim], columns, tuple(map(tuple, lines[1:])), path)


def write_points(path, positions: np.ndarray, like: Points | None = None) -> None:
    """Write points as CSV, in LPS mm; an existing file is replaced at once, when the new one is complete.

    Parameters
    ----------
    path : the file.
    positions : (K, D), RAS mm.
    like : the points as they were read: their other columns and the order of the columns are kept.
    """
    positions = np.asarray(positions, dtype=np.float64)
    dim = positions.shape[1]
    columns = AXES[:dim] if like is None else like.columns
    rows = [[""] * dim for _ in positions] if like is None else [list(row) for row in like.rows]
    if len(rows) != len(positions):
        raise ValueError(f"{path}: {len(positions)} positions for {len(rows)} points")
    where = [k for axis in AXES[:dim] for k, name in enumerate(columns) if name.lower() == axis]
    for row, position in zip(rows, positions * SIGNS[:dim] + 0.0):  # + 0.0 makes -0 to 0
        for k, value in zip(where, position):
            row[k] = f"{value:.6f}"
    with (
        write_then_rename(Path(path)) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def outside(points: Points, grid: Grid, name: str) -> str | None:
    """A line that says how many points lie outside an image; None if there are none.

    Parameters
    ----------
    points : as they were read.
    grid : of the image, to the outer edges of its voxels.
    name : what the image is called in the line, such as ``"moving"``.

    Raises
    ------
    ValueError : all of them do, so the coordinates are of another kind.
    """
    index = grid.index(points.positions)
    out = ((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any(axis=1)
    count, total = int(out.sum()), len(out)
    if count == total:
        they = "the only point lies" if total == 1 else f"all {total} points lie"
        raise ValueError(
            f"{points.path}: {they} outside {name}; "
            "coordinates are LPS mm as in ITK and ANTs, not RAS mm and not voxels"
        )
    if count == 0:
        return None
    return f"{points.path}: {count} of {total} points {'lies' if count == 1 else 'lie'} outside {name}"


def _text(path: Path) -> str:
    """The file's text; a mark for the order of bytes, as Excel writes it, is left out."""
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give a CSV file")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a CSV file in UTF-8; {HOW}") from None


def _columns(columns: tuple[str, ...], dim: int, path: Path) -> list[int]:
    """Numbers of the columns x, y and, in 3D or if there is one, z."""
    lower = [name.lower() for name in columns]
    missing = [axis for axis in AXES[:dim] if axis not in lower]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        if dim == 3 and missing == ["z"]:
            raise ValueError(f"{path}: column z is missing: its points are 2D, the images 3D")
        raise ValueError(f"{path}: column{plural} {', '.join(missing)} missing; {HOW}")
    if any(lower.count(axis) > 1 for axis in AXES):
        raise ValueError(f"{path}: a column x, y or z occurs twice; {HOW}")
    return [lower.index(axis) for axis in AXES if axis in lower]


def _number(text: str, column: str, point: int, path: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:
        shown = " ".join(text.split())[:40]
        raise ValueError(f"{path}: {column} of point {point} is {shown!r}, not a number in mm")
    return value
