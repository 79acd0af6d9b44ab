"""What the report says in words: what each number of folding means, what is alarming, what was done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ... import metrics
from ...metrics.folding import MARGIN
from .case import ReportCase, Rows

LARGE_MEAN, LARGE_MAX = (
    0.25,
    2.0,
)  # inverse error, in voxels of the working grid, above which the report warns
FELL = 0.01  # how far the Dice of a label may fall before the report warns
NAMED = 5  # labels that a warning names at most


@dataclass(frozen=True)
class Folding:
    """A number that says how invertible or how smooth a map is.

    Attributes
    ----------
    title : its name.
    percent : it is a part of the image in per cent, and 0 is what one wants.
    measure : from a displacement ``(1, D, *S)`` in voxels.
    sentence : what it says.
    """

    title: str
    percent: bool
    measure: Callable[[torch.Tensor], float]
    sentence: str


FOLDING = {
    "folding_percent": Folding(
        "Folded voxels",
        True,
        metrics.folding_percent,
        "This part of all voxels has a Jacobian determinant of zero or less, which means that the map turns "
        "the image inside out there; at the border the difference to the neighbour inside is taken.",
    ),
    "folding_inner_percent": Folding(
        "Folded voxels, inner",
        True,
        partial(metrics.folding_percent, convention="inner"),
        "This is the same part of those voxels that are at least two voxels away from the border, which are "
        "the ones that the Learn2Reg challenge looks at.",
    ),
    "folding_replicated_percent": Folding(
        "Folded voxels, replicated border",
        True,
        partial(metrics.folding_percent, convention="replicated"),
        "This is the same part of all voxels where the displacement of the border is taken to go on outside.",
    ),
    "ndv_percent": Folding(
        "Non-diffeomorphic volume (NDV)",
        True,
        metrics.ndv_percent,
        "This part of the volume (in 2D: of the area) is turned inside out between the voxels; it is the "
        "strictest of these numbers, and at zero the map folds nowhere.",
    ),
    "sdlogj": Folding(
        "SDlogJ",
        False,
        metrics.sdlogj,
        "This is Learn2Reg's standard deviation of log(det J + 3), which is smaller the more evenly the map "
        "stretches and shrinks the image.",
    ),
    "sdlogj_textbook": Folding(
        "SDlogJ, textbook",
        False,
        partial(metrics.sdlogj, kind="textbook"),
        "This is the standard deviation of log det J itself, without the voxels that fold.",
    ),
}


def folding_numbers(displacement: torch.Tensor) -> dict[str, float]:
    """All numbers of :data:`FOLDING` for one map.

    Those that drop a margin of two voxels on each side are left out where this leaves nothing.

    Parameters
    ----------
    displacement : (1, D, *S) voxels.
    """
    small = min(displacement.shape[2:]) <= 2 * MARGIN
    needing_margin = {"folding_inner_percent", "sdlogj", "sdlogj_textbook"} if small else set()
    return {name: f.measure(displacement) for name, f in FOLDING.items() if name not in needing_margin}


def concerns(case: ReportCase) -> list[str]:
    """Sentences about all that is alarming, the worst first; none if all is well."""
    return [
        *_about_folding(case),
        *_about_the_inverse(case),
        *_about_similarity(case),
        *_about_labels(case),
        *_about_landmarks(case),
        *([f"Affine: {text}" for text in case.affine.warnings] if case.affine else []),
        *case.warnings,
    ]


def achievements(case: ReportCase) -> list[str]:
    """Sentences about what was done and how good it is."""
    unit = case.unit
    start = " after the affine map" * (case.affine is not None)
    said = [
        f"{name} (higher is more alike) went from {before:.3f}{start} to {after:.3f}."
        for name, before, after in finite(case.similarity)
    ]
    if known := finite(case.dice):
        before, after = means(known)
        labels = f"{len(known)} labels" if len(known) > 1 else "the one label"
        said.append(f"The mean overlap (Dice) of {labels} went from {before:.3f} to {after:.3f}.")
    if known := finite(case.landmarks):
        before, after = means(known)
        said.append(f"The mean landmark error went from {before:.2f} to {after:.2f} {unit}.")
    parts = [case.folding[name] for name, f in FOLDING.items() if f.percent and name in case.folding]
    if parts and not any(parts):
        said.append("The map folds nowhere: every number of folding is zero.")
    average, largest = case.inverse_error
    if math.isfinite(average):
        said.append(
            f"The map followed by its inverse misses its start by {average:.3g} {unit} on average and "
            f"{largest:.3g} {unit} at most."
        )
    return said


def finite(rows: Rows) -> Rows:
    """Rows with two finite numbers: a label that one image lacks has NaN."""
    return tuple(row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2]))


def means(rows: Rows) -> tuple[float, float]:
    """Mean before and mean after of rows, of which there is at least one."""
    return tuple(sum(row[k] for row in rows) / len(rows) for k in (1, 2))


def _about_folding(case: ReportCase):
    parts = {name: case.folding[name] for name, f in FOLDING.items() if f.percent and name in case.folding}
    if any(not math.isfinite(part) for part in parts.values()):
        yield "The map is not finite everywhere, so that it cannot be used."
    worst = max(parts, key=lambda name: parts[name] if math.isfinite(parts[name]) else -1.0, default=None)
    if worst and parts[worst] > 0:
        yield (
            f"The map folds: {FOLDING[worst].title} {parts[worst]:.2g} %. Where it folds it has no inverse, "
            "and the warped image is turned inside out."
        )


def _about_the_inverse(case: ReportCase):
    average, largest = case.inverse_error
    voxel = min(case.grid.spacing)
    if not (math.isfinite(average) and math.isfinite(largest)):
        yield "The error of the inverse is not a finite number."
    elif average > LARGE_MEAN * voxel or largest > LARGE_MAX * voxel:
        yield (
            f"The inverse is inexact: the map followed by its inverse misses its start by {average:.3g} "
            f"{case.unit} on average and {largest:.3g} {case.unit} at most. (Voxels have {voxel:.3g}.)"
        )


def _about_similarity(case: ReportCase):
    for name, before, after in case.similarity:
        if after < before:
            yield f"The images became less alike: {name} fell from {before:.3f} to {after:.3f}."
        elif not (math.isfinite(before) and math.isfinite(after)):
            yield f"{name} is not a finite number."


def _about_labels(case: ReportCase):
    known = finite(case.dice)
    fell = sorted((row for row in known if row[2] < row[1] - FELL), key=lambda row: row[2] - row[1])
    if fell:
        named = ", ".join(f"{name} from {before:.3f} to {after:.3f}" for name, before, after in fell[:NAMED])
        more = f" and {len(fell) - NAMED} more" if len(fell) > NAMED else ""
        yield f"The overlap (Dice) fell for {len(fell)} of {len(known)} labels: {named}{more}."


def _about_landmarks(case: ReportCase):
    if not case.landmarks:
        return
    before, after = means(case.landmarks)
    if after > before:
        yield f"The landmarks moved apart: the mean error rose from {before:.2f} to {after:.2f} {case.unit}."
    elif not (math.isfinite(before) and math.isfinite(after)):
        yield "The landmark error is not a finite number."
