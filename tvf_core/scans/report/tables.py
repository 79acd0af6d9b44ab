"""The numbers of the report as tables."""

from __future__ import annotations

import math
from html import escape

from .case import ReportCase, Rows
from .words import FELL, FOLDING, finite, means

MANY = 40  # rows of a table above which it is folded away
PAIR = ["Before", "After", "Change"]


def section(case: ReportCase) -> str:
    """All numbers, each kind under its heading."""
    unit = case.unit
    parts = ["<h3>Folding and smoothness</h3>", _folding(case)]
    average, largest = case.inverse_error
    parts.append(
        "<h3>Inverse</h3>\n<p>A point that goes through the map and then through its inverse ends beside its "
        "start; the distance is the inverse error.</p>"
    )
    rows = [["mean", number(average, ".3g")], ["maximum", number(largest, ".3g")]]
    parts.append(table("Inverse error", ["Statistic", f"Error, {unit}"], rows))
    if case.similarity:
        start = " “Before” is after the affine map." * (case.affine is not None)
        parts.append(
            f"<h3>Similarity</h3>\n<p>Each of these is higher the more alike the images are.{start}</p>"
        )
        parts.append(
            table("Similarity of the two images", ["Measure", *PAIR], compared(case.similarity, ".3f"))
        )
    if case.dice:
        parts.append(
            "<h3>Overlap of labels</h3>\n<p>Dice is 1 where a label of both images covers the same voxels "
            "and 0 where it has none in common.</p>"
        )
        rows = compared(case.dice, ".3f", notable=FELL, averaged=True)
        parts.append(table("Dice per label", ["Label", *PAIR], rows))
    if case.landmarks:
        parts.append(
            "<h3>Landmarks</h3>\n<p>The error is the distance between where the map sends a landmark of the "
            "fixed image and its counterpart in the moving image.</p>"
        )
        rows = compared(case.landmarks, ".2f", better=-1, averaged=True)
        parts.append(table(f"Landmark error, {unit}", ["Landmark", *PAIR], rows))
    if case.affine:
        parts.append(_affine(case))
    return "\n".join(parts)


def _folding(case: ReportCase) -> str:
    rows = []
    for name, value in case.folding.items():
        known = FOLDING.get(name)
        title, sentence = (known.title, known.sentence) if known else (name, "")
        percent = " %" if known and known.percent else ""
        rows.append([escape(title), number(value, ".3g") + percent, escape(sentence)])
    return table(
        "Folding and smoothness of the map", ["Number", "Value", "What it says"], rows, last_is_text=True
    )


def _affine(case: ReportCase) -> str:
    affine = case.affine
    scales = ", ".join(number(s, ".3f") for s in affine.singular_values)
    rows = [
        ["turn, degrees", number(affine.turn, ".1f")],
        [f"shift of the centre of the fixed image, {case.unit}", number(affine.shift, ".1f")],
        ["scales (singular values; 1 keeps lengths)", scales],
    ]
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in affine.warnings)
    return f"<h3>Affine</h3>\n{warnings}" + table("The affine", ["Quantity", "Value"], rows)


def compared(
    rows: Rows, digits: str, better: int = 1, notable: float = 0.0, averaged: bool = False
) -> list[list[str]]:
    """Rows of a table from rows (name, before, after).

    Parameters
    ----------
    rows : a number that is not finite is said to be not known.
    digits : format of the numbers.
    better : sign of a change for the better.
    notable : how large a change for the worse has to be to be called so.
    averaged : the first row is the mean of those that are known, if there are several.
    """
    known = finite(rows)
    made = [] if len(known) < 2 or not averaged else [("<b>mean</b>", *means(known))]
    made += [(escape(name), before, after) for name, before, after in rows]
    lines = []
    for name, before, after in made:
        change = "not known"
        if math.isfinite(before) and math.isfinite(after):
            worse = ' <span class="worse">worse</span>' if better * (after - before) < -notable else ""
            change = f"{after - before:+{digits}}{worse}"
        lines.append([name, number(before, digits), number(after, digits), change])
    return lines


def number(value: float, digits: str) -> str:
    """A number as people read it, with its full value for programs."""
    value = float(value)
    shown = f"{value:{digits}}" if math.isfinite(value) else "not known"
    return f'<data value="{value!r}">{shown}</data>'


def table(caption: str, head: list[str], rows: list[list[str]], last_is_text: bool = False) -> str:
    """A table whose first column names its rows; a long one is folded away. Cells are HTML."""
    kinds = [""] * (len(head) - 1) + [' class="text"' if last_is_text else ""]
    top = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(kinds, head))
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    stacked = ' class="told"' if last_is_text and len(head) > 2 else ""  # on a narrow screen
    made = (
        f"<table{stacked}><caption>{escape(caption)}</caption>\n<thead><tr>{top}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table>"
    )
    if len(rows) > MANY:
        return f"<details><summary>{escape(caption)}: {len(rows)} rows</summary>\n{made}</details>"
    return made
