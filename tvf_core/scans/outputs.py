"""The folder of results of ``tvf register``: images, maps, labels, points, numbers and the report."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch

from .. import __version__
from ..fields import jacobian_determinant
from ..paths import must_be_writable, sha256, write_json
from . import report
from .applying import apply_image
from .flows import Flow, write_flow
from .images import Scan
from .maps import map_points
from .measures import measure
from .points import write_points
from .register import Outcome
from .repeat import AFFINE, INVERSE_WARP, WARP, commands
from .transforms import write_affine, write_warp
from .writing import write_image

VELOCITY, REPORT, RECORD = "velocity.safetensors", "report.html", "run.json"


def check(out: Path, replace: bool = False) -> None:
    """See that results can be written to a folder, before any work.

    Raises
    ------
    ValueError : the folder holds results already and ``replace`` is not set, or it holds something else.
    OSError : it cannot be written.
    """
    out = Path(out)
    if out.is_file():
        raise ValueError(f"{out} is a file; name a folder for the results")
    if out.is_dir() and (os.path.ismount(out) or out.resolve() in (Path.cwd(), *Path.cwd().parents)):
        raise ValueError(
            f"{out} cannot be replaced as a whole; name a folder in it, such as {out / 'result'}"
        )
    if out.is_dir() and any(out.iterdir()):
        if others := _others(out):
            raise ValueError(
                f"{out} holds other files, such as {others[0]}; name a new folder for the results"
            )
        if not replace:
            raise ValueError(
                f"{out} holds the results of an earlier registration; add --replace, or name a new one"
            )
    there = next(folder for folder in out.absolute().parents if folder.exists())
    must_be_writable(there, "name another folder for the results")


def _others(out: Path) -> list[str]:
    """Names in a folder that are not those of a registration's results."""
    names = sorted(path.name for path in out.iterdir())
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        record = json.loads((out / RECORD).read_text("utf-8"))
        return [name for name in names if name not in {*record["files"], RECORD, REPORT}]
    return names


def write(outcome: Outcome, out: Path, settings: dict | None = None) -> dict:
    """Write the results of a registration into a folder that appears only when all of them are there.

    Parameters
    ----------
    outcome : what :func:`tvf_core.scans.register.register` gave.
    out : the folder; results of an earlier registration there are replaced.
    settings : what the caller chose, for ``run.json``.

    Returns
    -------
    The content of ``run.json``: files read with their sha256, settings, notes, seconds, versions, and the
    numbers of the report.
    """
    start, out = time.perf_counter(), Path(out)
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=parent))
    try:
        chains = outcome.forward(), outcome.backward()
        files = _write_maps(outcome, part, *chains)
        files |= _write_images(outcome, part, *chains)
        files |= _write_labels(outcome, part, *chains)
        files |= _write_points(outcome, part, *chains)
        numbers = measure(outcome, *chains)
        seconds = outcome.seconds | {"writing": time.perf_counter() - start}
        report.write(part / REPORT, _case(outcome, out, numbers, seconds, files))
        record = _record(outcome, settings or {}, numbers, seconds, files)
        write_json(part / RECORD, record)
        part.chmod(0o755)
        _swap(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return record


def _swap(part: Path, out: Path) -> None:
    """Put a folder in the place of another one, which is deleted once the new one is there."""
    if not out.exists():
        os.replace(part, out)
        return
    old = part.with_suffix(".old")
    os.replace(out, old)
    try:
        os.replace(part, out)
    except BaseException:  # a Ctrl-C too
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_maps(outcome: Outcome, folder: Path, forward, backward) -> dict[str, str]:
    """The affine map, both fields, and the velocity if there is one: file -> what it is."""
    grid = outcome.inputs.fixed.grid
    write_affine(folder / AFFINE, outcome.matrix)
    for name, field in ((WARP, forward[0]), (INVERSE_WARP, backward[1])):
        write_warp(folder / name, field.displacement, grid)
    files = {
        AFFINE: "The affine map, from fixed to moving points.",
        WARP: "The displacement field on the grid of the fixed image, in mm; the affine map comes after it.",
        INVERSE_WARP: "The displacement field of the inverse, on the same grid.",
    }
    result = outcome.registration
    if result.velocity is not None:
        versions = {"tvf_core": __version__, "torch": torch.__version__, "method": outcome.method}
        flow = Flow(
            result.velocity, outcome.grid, outcome.matrix, result.integrator, result.substeps, versions
        )
        write_flow(folder / VELOCITY, flow)
        files[VELOCITY] = (
            "The velocity fields, the working grid and the affine map in one file, from which tvf apply and "
            "tvf compose compute the map and its inverse."
        )
    return files


def _image_name(stem: str, scan: Scan, like: Scan) -> str:
    """Name of a file for an image on the grid of another: a picture on one of a picture stays a picture."""
    return f"{stem}.png" if scan.picture and like.picture else f"{stem}.nii.gz"


def _write_images(outcome: Outcome, folder: Path, forward, backward) -> dict[str, str]:
    scans, files = outcome.inputs, {}
    for stem, scan, like, chain, text in (
        ("Warped", scans.moving, scans.fixed, forward, "The moving image on the grid of the fixed one."),
        (
            "InverseWarped",
            scans.fixed,
            scans.moving,
            backward,
            "The fixed image on the grid of the moving one.",
        ),
    ):
        name = _image_name(stem, scan, like)
        values = apply_image(scan, like.grid, chain)
        write_image(folder / name, values, like.grid, flat=like.flat, slab=like.slab)
        files[name] = text
    for role, scan in (("moving", scans.moving), ("fixed", scans.fixed)):
        if scan.differs:
            name = _copy(role)
            write_image(folder / name, scan.values, scan.grid)
            files[name] = (
                f"The {role} picture as it was read. The maps belong to this copy: other programs turn or "
                "place the original otherwise."
            )
    return files


def _write_labels(outcome: Outcome, folder: Path, forward, backward) -> dict[str, str]:
    scans, files = outcome.inputs, {}
    for stem, labels, like, chain, text in (
        ("WarpedLabels", scans.moving_labels, scans.fixed, forward, "The moving labels on the fixed grid"),
        (
            "InverseWarpedLabels",
            scans.fixed_labels,
            scans.moving,
            backward,
            "The fixed labels on the moving grid",
        ),
    ):
        if labels is None:
            continue
        for suffix, kind, how in (
            ("", "nearest", ", each voxel with the label of the nearest voxel."),
            ("Smooth", "smooth", "; every label was interpolated, and the largest won: smoother borders."),
        ):
            name = _image_name(stem + suffix, labels, like)
            values = apply_image(labels, like.grid, chain, kind)
            write_image(folder / name, values, like.grid, flat=like.flat, labels=True, slab=like.slab)
            files[name] = text + how
    return files


def _write_points(outcome: Outcome, folder: Path, forward, backward) -> dict[str, str]:
    files = {}
    for name, found, chain, text in (
        (
            "moving_points_in_fixed.csv",
            outcome.inputs.moving_points,
            backward,
            "The moving points in the fixed world",
        ),
        (
            "fixed_points_in_moving.csv",
            outcome.inputs.fixed_points,
            forward,
            "The fixed points in the moving world",
        ),
    ):
        if found is not None:
            write_points(folder / name, map_points(chain, found.positions), like=found)
            files[name] = f"{text}, in LPS mm."
    return files


def summary(record: dict) -> list[str]:
    """What a user wants to know first of a registration, in a few lines; ``record`` is ``run.json``."""
    numbers, grid, unit = record["numbers"], record["working_grid"], record["unit"]
    sizes = " x ".join(map(str, grid["shape"]))
    total = sum(record["seconds"].values())
    lines = [f"working grid {sizes} at {grid['spacing']:.3g} {unit}, {total:.0f} s in all"]
    start = "before" if record["settings"].get("affine") == "none" else "after the affine map"
    for name, before, after in numbers["similarity"]:
        lines.append(f"{name}: {before:.3f} {start}, {after:.3f} in the end")
    for key, title in (
        ("dice", "Dice, mean over labels"),
        ("landmark_error", f"distance of the points, {unit}"),
    ):
        if rows := [row for row in numbers.get(key, ()) if None not in row]:
            before, after = np.mean([row[1:] for row in rows], axis=0)
            lines.append(f"{title}: {before:.3f} as the files lie, {after:.3f} in the end")
    mean, largest = numbers["inverse_error"]
    lines.append(
        f"folding: NDV {numbers['folding']['ndv_percent']:.3g} %; error of the inverse: {mean:.2g} {unit}, "
        f"at most {largest:.2g}"
    )
    return [*lines, *(f"warning: {text}" for text in record["warnings"])]


def _case(outcome: Outcome, out: Path, numbers: dict, seconds: dict, files: dict) -> report.ReportCase:
    """What the report tells."""
    scans, result = outcome.inputs, outcome.registration
    u, found = result.displacement.cpu(), outcome.affine
    summary = None
    if found is not None:
        summary = report.AffineSummary(found.turn, found.shift, found.singular_values, found.warnings)
    extras = {
        "labels": scans.moving_labels and scans.moving_labels.path,
        "points": scans.moving_points and scans.moving_points.path,
    }
    return report.ReportCase(
        moving=str(scans.moving.path),
        fixed=str(scans.fixed.path),
        method=outcome.title,
        grid=outcome.grid,
        fixed_image=_plane(outcome.fixed),
        before=_plane(outcome.before),
        warped=_plane(result.warped),
        displacement=u[0].numpy(),
        determinant=jacobian_determinant(u)[0].numpy(),
        folding=numbers["folding"],
        inverse_error=numbers["inverse_error"],
        similarity=tuple(numbers["similarity"]),
        seconds=seconds,
        versions=_versions(),
        files=files,
        commands=commands(
            *(_readable(scans.moving, "moving", out), _readable(scans.fixed, "fixed", out), out, scans.dim),
            moving_flat=scans.moving.flat,
            fixed_flat=scans.fixed.flat,
            **extras,
        ),
        notes=outcome.notes,
        dice=tuple(numbers.get("dice", ())),
        landmarks=tuple(numbers.get("landmark_error", ())),
        affine=summary,
        pixels=scans.fixed.picture,
    )


def _readable(scan: Scan, role: str, out: Path) -> Path:
    """File that other programs read as this package does: of some pictures, the copy among the results."""
    return out / _copy(role) if scan.differs else scan.path


def _copy(role: str) -> str:
    return f"{role}_as_read.png"


def _plane(image: torch.Tensor) -> np.ndarray:
    return image[0, 0].cpu().numpy()


def _without_nan(value):
    """The same with None for what is not finite, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _versions() -> dict[str, str]:
    return {
        "tvf_core": __version__,
        "PyTorch": torch.__version__,
        "nibabel": nibabel.__version__,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
    }


def _record(outcome: Outcome, settings: dict, numbers: dict, seconds: dict, files: dict) -> dict:
    """Content of ``run.json``."""
    scans = outcome.inputs
    read = {"moving": scans.moving, "fixed": scans.fixed}
    read |= {"moving_labels": scans.moving_labels, "fixed_labels": scans.fixed_labels}
    read |= {"moving_points": scans.moving_points, "fixed_points": scans.fixed_points}
    paths = {role: one.path for role, one in read.items() if one}
    further = {role: settings.get(role) for role in ("fixed_mask", "weights", "affine")}
    paths |= {role: Path(path) for role, path in further.items() if path and Path(path).is_file()}
    return {
        "inputs": {role: {"file": str(path), "sha256": sha256(path)} for role, path in paths.items()},
        "settings": settings,
        "method": outcome.method,
        "working_grid": {"shape": list(outcome.grid.shape), "spacing": round(outcome.grid.spacing[0], 6)},
        "unit": "pixel" if scans.fixed.picture else "mm",
        "affine_fixed_to_moving_ras": outcome.matrix.tolist(),
        "notes": list(outcome.notes),
        "warnings": list(outcome.affine.warnings) if outcome.affine else [],
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "versions": _versions(),
        "numbers": _without_nan(numbers),
        "files": files,
    }
