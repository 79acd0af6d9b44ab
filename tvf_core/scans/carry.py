"""``tvf apply`` and ``tvf compose``: files of images, labels and points along stored transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..checks import one_of
from ..paths import must_be_writable
from .applying import KINDS, apply_image
from .grids import Grid
from .images import Scan, read_image
from .maps import Map, compose, map_points
from .points import read_points, write_points
from .transforms import FIELD_FILES, read, write_warp
from .writing import write_image

IMAGE_FILES = (*FIELD_FILES, ".png")


def apply_file(
    source: Path,
    out: Path,
    transforms: Sequence[str],
    reference: Path | None = None,
    *,
    interpolation: str = "linear",
    volume: int | None = None,
    replace: bool = False,
) -> str:
    """Carry an image, a label map or points along transforms, as antsApplyTransforms and its ToPoints do.

    Parameters
    ----------
    source : image, or points if its name ends in ``.csv``.
    out : file to write.
    transforms : as :func:`tvf_core.scans.transforms.read` takes them; the last one acts on the image first.
    reference : image whose grid the result has; needed for images, refused for points.
    interpolation : ``linear``, or for label maps ``nearest`` or ``smooth``.
    volume : which volume of a 4D file.
    replace : whether an existing file is replaced.

    Returns
    -------
    A line that says what was written.

    Raises
    ------
    ValueError, OSError : in one line, before anything is written.
    """
    source, out = Path(source), Path(out)
    of_points = source.suffix.lower() == ".csv"
    one_of(interpolation, KINDS, "interpolation")
    _check_out(out, (".csv",) if of_points else IMAGE_FILES, replace)
    if of_points:
        if reference is not None:
            raise ValueError(f"{reference}: points need no reference; leave it out")
        chain = _chain(transforms)
        found = read_points(source, chain[0].dim)
        write_points(out, map_points(chain, found.positions), like=found)
        return f"{out}: {len(found.positions)} points, in LPS mm"
    if reference is None:
        raise ValueError("an image needs a reference (-r), whose grid the result has")
    like = read_image(reference, volume=volume if _same(source, reference) else None)
    scan, labels = read_image(source, volume=volume), interpolation != "linear"
    if labels:
        scan = _as_labels(scan)
    chain = _chain(transforms, like.grid.dim)
    values = apply_image(scan, like.grid, chain, interpolation)
    write_image(out, values, like.grid, flat=like.flat, labels=labels, slab=like.slab)
    return f"{out}: {_sizes(like.grid)} voxels of {_spacing(like.grid)} mm"


def compose_files(transforms: Sequence[str], reference: Path, out: Path, *, replace: bool = False) -> str:
    """Chain transforms into one displacement field on the grid of an image; returns a line about it.

    Raises
    ------
    ValueError, OSError : in one line, before anything is written.
    """
    out = Path(out)
    _check_out(out, FIELD_FILES, replace)
    grid = read_image(reference).grid
    field = compose(_chain(transforms, grid.dim), grid)
    write_warp(out, field.displacement, grid)
    length = np.linalg.norm(field.displacement, axis=-1)
    return f"{out}: displacements on {_sizes(grid)} voxels, up to {length.max():.1f} mm"


def _chain(transforms: Sequence[str], dim: int | None = None) -> list[Map]:
    """The maps of all transforms, one after the other."""
    if not transforms:
        raise ValueError("name at least one transform (-t)")
    chain = [one for text in transforms for one in read(text, dim)]
    if any(one.dim != chain[0].dim for one in chain):
        raise ValueError("some of the transforms are 2D and some are 3D")
    return chain


def _check_out(out: Path, ends: tuple[str, ...], replace: bool) -> None:
    if not out.name.lower().endswith(ends):
        raise ValueError(f"{out}: the name of the output has to end in {' or '.join(ends)}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file")
    if out.exists() and not replace:
        raise ValueError(f"{out} is there already; add --replace, or name another file")
    must_be_writable(out.absolute().parent, "name another file")


def _same(one: Path, other: Path) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _as_labels(scan: Scan) -> Scan:
    """A label map that was read as an image: whole numbers."""
    whole = np.rint(scan.values)
    if not np.array_equal(whole, scan.values):
        raise ValueError(
            f"{scan.path} has values that are not whole; label maps have whole numbers, images need -n linear"
        )
    return Scan(whole.astype(np.int64), scan.grid, scan.path, scan.notes, scan.flat, scan.slab)


def _sizes(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))


def _spacing(grid: Grid) -> str:
    return " x ".join(f"{s:.3g}" for s in grid.spacing)
