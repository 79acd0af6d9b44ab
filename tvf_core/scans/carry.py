"""``tvf apply`` and ``tvf compose``: files of images, labels and points along stored transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..checks import one_of
from ..paths import must_be_writable
from .applying import KINDS, apply_image
from .grids import Grid
from .images import Frame, Scan, read_grid, read_image, read_labels
from .maps import Map, compose, map_points
from .pictures import picture_affine
from .points import read_points, write_points
from .transforms import FIELD_FILES, read, write_warp
from .writing import write_image

IMAGE_FILES = (*FIELD_FILES, ".png")
LARGEST_IN_PNG = 65535  # 16 bits


def apply_file(
    source: Path,
    out: Path,
    transforms: Sequence[str],
    reference: Path | None = None,
    *,
    interpolation: str = "linear",
    volume: int | None = None,
    nearest_rotation: bool = False,
    replace: bool = False,
) -> str:
    """Carry an image, a label map or points along transforms, as antsApplyTransforms and its ToPoints do.

    Parameters
    ----------
    source : image, or points if its name ends in ``.csv``.
    out : file to write.
    transforms : as :func:`tvf_core.scans.transforms.read` takes them; the last one acts on the image first.
    reference : image whose grid the result has; needed for images, refused for points. Only its header is
        read.
    interpolation : ``linear``, or for label maps ``nearest`` or ``smooth``.
    volume : which volume of a 4D ``source``.
    nearest_rotation : for a source or reference whose axes are not at right angles, take the nearest
        rotation instead of refusing.
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
    like = read_grid(reference, nearest_rotation=nearest_rotation)
    labels = interpolation != "linear"
    scan = (read_labels if labels else read_image)(source, volume=volume, nearest_rotation=nearest_rotation)
    if out.name.lower().endswith(".png"):
        _check_png(out, scan, like, labels)
    chain = _chain(transforms, like.grid.dim)
    values = apply_image(scan, like.grid, chain, interpolation)
    write_image(out, values, like.grid, flat=like.flat, labels=labels, slab=like.slab)
    return f"{out}: {_sizes(like.grid)} voxels of {_spacing(like.grid)} mm"


def compose_files(
    transforms: Sequence[str],
    reference: Path,
    out: Path,
    *,
    nearest_rotation: bool = False,
    replace: bool = False,
) -> str:
    """Chain transforms into one displacement field on the grid of an image; returns a line about it.

    The parameters are those of :func:`apply_file`.

    Raises
    ------
    ValueError, OSError : in one line, before anything is written.
    """
    out = Path(out)
    _check_out(out, FIELD_FILES, replace)
    grid = read_grid(reference, nearest_rotation=nearest_rotation).grid
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


def _check_png(out: Path, scan: Scan, like: Frame, labels: bool) -> None:
    """Refuse a PNG that would not hold the values or the grid of the result."""
    if like.grid.dim != 2 or not np.allclose(like.grid.affine, picture_affine(), atol=1e-6):
        raise ValueError(f"{out}: PNG cannot hold the grid of {like.path}; write .nii.gz")
    if labels and (largest := int(scan.values.max())) > LARGEST_IN_PNG:
        raise ValueError(f"{out}: PNG holds labels up to {LARGEST_IN_PNG}, not {largest}; write .nii.gz")
    if not labels and not scan.picture:
        raise ValueError(f"{out}: PNG would round the values of {scan.path}, no picture; write .nii.gz")


def _sizes(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))


def _spacing(grid: Grid) -> str:
    return " x ".join(f"{s:.3g}" for s in grid.spacing)
