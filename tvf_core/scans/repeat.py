"""The lines by which somebody repeats a registration's result with tvf, ANTs, SimpleITK or Slicer.

They name the files ``0GenericAffine.mat``, ``1Warp.nii.gz`` and ``1InverseWarp.nii.gz`` in the output folder.
Images and labels are pulled from the moving image, by the map that takes fixed points to the moving image;
points of the moving image go the other way, by the inverse.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import PurePath

AFFINE, WARP, INVERSE_WARP = "0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz"
LABELS, POINTS = "MOVING_LABELS.nii.gz", "MOVING_POINTS.csv"  # stand for files that were not given


@dataclass(frozen=True)
class Command:
    """One way to repeat the result.

    Attributes
    ----------
    program : ``tvf``, ``ANTs``, ``SimpleITK`` or ``Slicer``.
    does : a sentence that says what it does.
    text : what to type, or, without ``code``, what to do.
    code : ``text`` is typed.
    """

    program: str
    does: str
    text: str
    code: bool = True


def commands(
    moving: str | os.PathLike,
    fixed: str | os.PathLike,
    folder: str | os.PathLike,
    dim: int,
    *,
    affine: bool = True,
    labels: str | os.PathLike | None = None,
    points: str | os.PathLike | None = None,
    moving_flat: bool = False,
    fixed_flat: bool = False,
) -> tuple[Command, ...]:
    """Lines that repeat the result for images, labels and points.

    Parameters
    ----------
    moving, fixed : files of the images, as they were given.
    folder : where the transforms are.
    dim : 2 or 3.
    affine : the folder has an affine; without it the warp is all.
    labels, points : files that belong to the moving image; without them the lines have names that stand for
        such files.
    moving_flat, fixed_flat : that file has a third axis of one voxel, though the registration is in 2D.
    """
    files = {"moving": moving, "fixed": fixed, "labels": labels or LABELS, "points": points or POINTS}
    files = {name: os.fspath(path) for name, path in files.items()}
    place = PurePath(folder)
    forward = [str(place / WARP)] + [str(place / AFFINE)] * affine
    backward = [f"[{place / AFFINE},1]"] * affine + [str(place / INVERSE_WARP)]
    flat = moving_flat or fixed_flat
    return (
        *_tvf(files, forward, backward),
        *_ants(files, forward, backward, dim, flat),
        _simpleitk(files, place, affine, dim, moving_flat, fixed_flat),
        _slicer(affine, dim),
    )


def _line(*words: str) -> str:
    """A line for the shell; paths with blanks and brackets are quoted."""
    return shlex.join(words)


def _with_t(chain: list[str]) -> list[str]:
    return [word for file in chain for word in ("-t", file)]


def _tvf(files: dict[str, str], forward: list[str], backward: list[str]):
    there, back = _with_t(forward), _with_t(backward)
    apply, onto = ["tvf", "apply", "-i"], ["-r", files["fixed"]]
    yield Command(
        "tvf",
        "This line warps the moving image onto the grid of the fixed image.",
        _line(*apply, files["moving"], *onto, *there, "-o", "warped.nii.gz", "-n", "linear"),
    )
    yield Command(
        "tvf",
        "This line warps labels; they are not interpolated.",
        _line(*apply, files["labels"], *onto, *there, "-o", "labels_warped.nii.gz", "-n", "nearest"),
    )
    yield Command(
        "tvf",
        "This line moves points of the moving image to the fixed image, by the inverse.",
        _line(*apply, files["points"], *back, "-o", "points_moved.csv"),
    )


def _ants(files: dict[str, str], forward: list[str], backward: list[str], dim: int, flat: bool):
    there, back = _with_t(forward), _with_t(backward)
    note = " Save files of (X, Y, 1) voxels as (X, Y) first: ANTs takes them for volumes." if flat else ""
    program = ["antsApplyTransforms", "-d", str(dim), "-i"]
    yield Command(
        "ANTs",
        "This line warps the moving image onto the grid of the fixed image." + note,
        _line(*program, files["moving"], "-r", files["fixed"], "-o", "warped.nii.gz", "-n", "Linear", *there),
    )
    nearest = ["-o", "labels_warped.nii.gz", "-n", "NearestNeighbor"]
    yield Command(
        "ANTs",
        "This line warps labels; GenericLabel in place of NearestNeighbor gives smoother borders." + note,
        _line(*program, files["labels"], "-r", files["fixed"], *nearest, *there),
    )
    columns = "x, y and z" if dim == 3 else "x and y"
    yield Command(
        "ANTs",
        "This line moves points of the moving image to the fixed image, by the inverse: points go the other "
        f"way than images. The file has the columns {columns} in ITK's coordinates (LPS, mm).",
        _line(
            "antsApplyTransformsToPoints",
            "-d",
            str(dim),
            "-i",
            files["points"],
            "-o",
            "points_moved.csv",
            *back,
        ),
    )


def _simpleitk(
    files, place: PurePath, affine: bool, dim: int, moving_flat: bool, fixed_flat: bool
) -> Command:
    """A short program; the last transform of a composite acts on the points first."""
    moving_slice, fixed_slice = ("[:, :, 0]" * flat for flat in (moving_flat, fixed_flat))
    field = "sitk.DisplacementFieldTransform(sitk.ReadImage({!r}, sitk.sitkVectorFloat64))"
    warp, inverse = (field.format(str(place / name)) for name in (WARP, INVERSE_WARP))
    lines = ["import csv", "", "import SimpleITK as sitk", ""]
    lines += [
        f"fixed = sitk.ReadImage({files['fixed']!r}, sitk.sitkFloat32){fixed_slice}",
        f"moving = sitk.ReadImage({files['moving']!r}, sitk.sitkFloat32){moving_slice}",
    ]
    if affine:
        lines += [
            f"affine = sitk.ReadTransform({str(place / AFFINE)!r})",
            f"forward = sitk.CompositeTransform([affine, {warp}])",
        ]
    else:
        lines += [f"forward = {warp}"]
    lines += [
        "warped = sitk.Resample(moving, fixed, forward, sitk.sitkLinear, 0.0)",
        "sitk.WriteImage(warped, 'warped.nii.gz')",
        "",
        f"labels = sitk.ReadImage({files['labels']!r}){moving_slice}",
        "warped = sitk.Resample(labels, fixed, forward, sitk.sitkNearestNeighbor, 0)",
        "sitk.WriteImage(warped, 'labels_warped.nii.gz')",
        "",
        "# Points go the other way than images: by the inverse, in ITK's coordinates (LPS, mm).",
        f"back = {inverse}",
        *["back = sitk.CompositeTransform([back, affine.GetInverse()])"] * affine,
        f"with open({files['points']!r}, newline='') as file:",
        f"    points = [[float(row[axis]) for axis in {'xyz'[:dim]!r}] for row in csv.DictReader(file)]",
        "moved = [back.TransformPoint(point) for point in points]",
    ]
    does = "This program warps the moving image and labels, and moves points to the fixed image."
    return Command("SimpleITK", does, "\n".join(lines))


def _slicer(affine: bool, dim: int) -> Command:
    chain = "put the moving image (labels and points likewise) under the warp as its parent transform"
    if affine:
        chain = (
            f"load {AFFINE} as a transform too, put the affine under the warp, and the moving image (labels "
            "and points likewise) under the affine"
        )
    text = f"Load {WARP} as a transform (not as a volume), {chain}; Slicer inverts the map for points itself."
    if dim == 2:
        text = (
            "Slicer reads transforms of volumes only: load the fixed and the warped image, and compare these."
        )
    return Command("Slicer", "In the Data module:" if dim == 3 else "", text, code=False)
