"""Writing images as ITK, ANTs and Slicer read them: NIfTI in 3D and 2D, PNG for pictures."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from ..paths import write_then_rename
from .grids import Grid
from .pictures import picture_affine

LABEL_TYPES = (np.uint8, np.int16, np.int32)  # ANTs cannot read 64-bit labels


def write_image(
    path,
    values: np.ndarray,
    grid: Grid,
    flat: bool = False,
    labels: bool = False,
    slab: np.ndarray | None = None,
) -> None:
    """Write an image; an existing file is replaced at once, when the new one is complete.

    NIfTI gets the position in qform and sform, both with code 1, in mm, so that ITK and nibabel agree on it.
    Images are float32, labels the smallest of uint8, int16 and int32 that holds them. PNG keeps the grey
    values as they are, rounded: 8 bits if none is above 255, otherwise 16 bits.

    Parameters
    ----------
    path : its end says the kind: ``.nii``, ``.nii.gz`` or ``.png``.
    values : (X, Y[, Z]), finite.
    grid : where its voxels lie; for PNG, that of a picture.
    flat : write a 2D image as (X, Y, 1).
    labels : the values are whole numbers.
    slab : for ``flat``: 4 x 4 affine of the file in 3D (:class:`~tvf_core.scans.images.Scan`); default is
        the 2D grid at height 0.

    Raises
    ------
    ValueError : values and grid have other shapes, or the kind of file cannot hold them; one line.
    """
    path, values = Path(path), np.asarray(values)
    if values.shape != grid.shape:
        raise ValueError(f"{path}: values of shape {values.shape} do not fit a grid of shape {grid.shape}")
    if labels:
        values = _small(values, path)
    name = path.name.lower()
    if name.endswith(".png"):
        return _write_png(path, values, grid)
    if not name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: the name must end in .nii.gz, .nii or .png")
    if max(values.shape) > 32767:
        raise ValueError(
            f"{path}: NIfTI has room for 32767 voxels along an axis, not for {max(values.shape)}"
        )
    if flat:
        values = values[:, :, None]
    affine = np.eye(4)
    if grid.dim == 3:
        affine = grid.affine
    elif flat and slab is not None:
        affine = slab
    else:
        affine[:2, :2], affine[:2, 3] = grid.affine[:2, :2], grid.affine[:2, 2]
    image = nib.Nifti1Image(values if labels else values.astype(np.float32), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    with write_then_rename(path) as temporary, open(temporary, "wb") as file:
        if name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def _small(values: np.ndarray, path: Path) -> np.ndarray:
    """Labels in the smallest of the types that all programs read."""
    low, high = int(values.min()), int(values.max())
    for kind in LABEL_TYPES:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    raise ValueError(f"{path}: labels from {low} to {high} do not fit into 32 bits")


def _write_png(path: Path, values: np.ndarray, grid: Grid) -> None:
    if grid.dim != 2 or not np.allclose(grid.affine, picture_affine(), atol=1e-6):
        raise ValueError(f"{path}: PNG cannot hold a position or a voxel size; write .nii.gz")
    low, high = float(values.min()), float(values.max())
    if low < -0.5 or high >= 65535.5:
        raise ValueError(
            f"{path}: PNG holds values from 0 to 65535, not {low:.6g} to {high:.6g}; write .nii.gz"
        )
    kind = np.uint8 if high < 255.5 else np.uint16
    with write_then_rename(path) as temporary, open(temporary, "wb") as file:
        Image.fromarray(np.ascontiguousarray(np.rint(values).astype(kind).T)).save(file, format="PNG")
