"""``tvf register``, ``tvf apply``, ``tvf compose`` and ``tvf example``: a user's own scans."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from .app import app

Transforms = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(name="transform", aliases=["-t"], metavar="FILE"),
]
Out = Annotated[Path, tyro.conf.arg(aliases=["-o"])]


@app.command
def register(
    moving: Positional[Annotated[Path, tyro.conf.arg(metavar="MOVING")]],
    fixed: Positional[Annotated[Path, tyro.conf.arg(metavar="FIXED")]],
    out: Out,
    method: str = "",
    weights: Path | None = None,
    affine: str = "auto",
    spacing: float | None = None,
    refine: int = 0,
    moving_labels: Path | None = None,
    fixed_labels: Path | None = None,
    moving_points: Path | None = None,
    fixed_points: Path | None = None,
    fixed_mask: Path | None = None,
    moving_volume: int | None = None,
    fixed_volume: int | None = None,
    nearest_rotation: bool = False,
    device: str = "",
    replace: bool = False,
) -> None:
    """Register two scans of your own; write the maps for ANTs, SimpleITK and Slicer, and a report.

    The images are NIfTI files (3D or 2D), PNG or JPEG. Spacing, orientation and range of intensities may
    differ. MOVING is brought to FIXED: out/Warped.nii.gz is the moving image on the grid of the fixed one.

    Args:
        moving: image that is brought to the other.
        fixed: image that stays where it is.
        out: folder for the results; it appears when they are complete.
        method: tvf-pairwise (default), lddmm or, in 3D, convexadam; none of them needs training. LDDMM
            compares the brightness itself, so both images need the same contrast; the others do not.
        weights: network that has learnt such images (.safetensors, or a released checkpoint), instead of a
            method.
        affine: auto, rigid, none (the positions in the files are right), or an affine file of ITK or ANTs.
        spacing: of the working grid in mm; default the coarser of the two images', with shipped weights that
            of their training. Larger is faster.
        refine: iterations of refinement after a network, e.g. 50.
        moving_labels: label map on the grid of the moving image; it is warped along.
        fixed_labels: label map on the grid of the fixed image; with both, Dice is measured.
        moving_points: CSV with columns x,y,z in LPS mm (2D: x,y), as ITK and ANTs have them.
        fixed_points: likewise; with both, row by row the same places, their distance is measured.
        fixed_mask: label map on the grid of the fixed image; only what is above 0 is compared.
        moving_volume: which volume of a 4D file of the moving image, from 0.
        fixed_volume: likewise of the fixed image.
        nearest_rotation: take the nearest rotation where an image's axes are not at right angles.
        device: of PyTorch, e.g. cuda; default cuda where there is a GPU, else cpu.
        replace: replace the results of an earlier registration in the folder.
    """
    from ..scans import outputs  # the readers of files are slow to import
    from ..scans.register import register as run

    _end_tidily()
    outputs.check(out, replace)
    outcome = run(
        moving,
        fixed,
        method=method,
        weights=weights,
        affine=affine,
        spacing=spacing,
        refine=refine,
        device=device,
        moving_labels=moving_labels,
        fixed_labels=fixed_labels,
        moving_points=moving_points,
        fixed_points=fixed_points,
        fixed_mask=fixed_mask,
        moving_volume=moving_volume,
        fixed_volume=fixed_volume,
        nearest_rotation=nearest_rotation,
    )
    settings = {"method": method, "weights": weights and str(weights), "affine": affine}
    settings |= {"spacing": spacing, "refine": refine, "fixed_mask": fixed_mask and str(fixed_mask)}
    settings |= {"moving_volume": moving_volume, "fixed_volume": fixed_volume, "device": device}
    settings |= {"nearest_rotation": nearest_rotation}
    record = outputs.write(outcome, out, settings)
    for line in outputs.summary(record):
        print(line)
    print(f"{out / outputs.REPORT}: open it in a browser")


def _end_tidily() -> None:
    """Let SIGTERM end the command as Ctrl-C does, so that no half-written folder stays."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@app.command
def apply(
    input: Annotated[Path, tyro.conf.arg(aliases=["-i"])],
    out: Out,
    transform: Transforms,
    reference: Annotated[Path | None, tyro.conf.arg(aliases=["-r"])] = None,
    interpolation: Annotated[str, tyro.conf.arg(aliases=["-n"])] = "linear",
    volume: int | None = None,
    nearest_rotation: bool = False,
    replace: bool = False,
) -> None:
    """Carry an image, a label map or points along stored transforms; the data are interpolated once.

    The transforms stand in the order of antsApplyTransforms: the last one named acts on the image first, e.g.
    `-t out/1Warp.nii.gz -t out/0GenericAffine.mat` brings moving images to the fixed one, and
    `-t [out/0GenericAffine.mat,1] -t out/1InverseWarp.nii.gz` the other way. Points (.csv) go the other way
    than images: the second of these brings points of the moving image to the fixed one.

    Args:
        input: image (NIfTI, PNG, JPEG), or points (.csv with columns x,y,z in LPS mm).
        out: file to write: .nii.gz, .nii or .png; .csv for points.
        transform: .mat, .txt or .tfm (affine), .nii.gz (displacement field) or velocity.safetensors; [FILE,1]
            is the inverse of an affine or of a velocity. Repeat for each.
        reference: image whose grid the result has; points need none.
        interpolation: linear; for labels nearest, or smooth (each label by itself, the largest wins).
        volume: which volume of a 4D file, from 0.
        nearest_rotation: take the nearest rotation where an image's axes are not at right angles.
        replace: replace an existing file.
    """
    from ..scans import carry

    print(
        carry.apply_file(
            input,
            out,
            transform,
            reference,
            interpolation=interpolation,
            volume=volume,
            nearest_rotation=nearest_rotation,
            replace=replace,
        )
    )


@app.command
def compose(
    transform: Transforms,
    reference: Annotated[Path, tyro.conf.arg(aliases=["-r"])],
    out: Out,
    nearest_rotation: bool = False,
    replace: bool = False,
) -> None:
    """Chain stored transforms into one displacement field on the grid of an image.

    Args:
        transform: as for `tvf apply`, in the same order. Repeat for each.
        reference: image whose grid the field has.
        out: .nii.gz file to write; ITK, ANTs and Slicer read it.
        nearest_rotation: take the nearest rotation where the reference's axes are not at right angles.
        replace: replace an existing file.
    """
    from ..scans import carry

    print(carry.compose_files(transform, reference, out, nearest_rotation=nearest_rotation, replace=replace))


@app.command
def example(out: Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]) -> None:
    """Write two scans to try `tvf register` with, their label maps and points, into a new folder.

    The fixed scan is the MNI152 T1 template that comes with nilearn, at 2 mm. The moving scan is made from it
    by a known deformation. It has another position, oblique slices of 3 mm, other intensities and noise.

    Args:
        out: folder to make.
    """
    from ..scans import examples

    _end_tidily()
    for line in examples.write(out):
        print(line)
