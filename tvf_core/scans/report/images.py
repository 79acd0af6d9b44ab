"""The parts of the report with pictures: before and after, the deformed grid, the Jacobian determinant."""

from __future__ import annotations

from html import escape

import numpy as np

from . import pictures
from .case import ReportCase


def _views(case: ReportCase):
    """The display of the working grid, and the slices that are shown."""
    display = pictures.Display(case.grid)
    return display, display.views(display.scalars(case.fixed_image))


def before_and_after(case: ReportCase) -> str:
    """Fixed, moving and warped image and their differences, per slice; scripts add the sliders."""
    display, views = _views(case)
    arrays = [display.scalars(a) for a in (case.fixed_image, case.before, case.warped)]
    far = np.abs(arrays[1] - arrays[0])
    far = far[np.isfinite(far)]
    scale = float(np.quantile(far, 0.995)) if far.size else 0.0
    scale = scale or 1.0
    unmoved = "as it was given" if case.pixels else "as its header places it"
    placed = "after the affine" if case.affine else unmoved
    captions = {
        "fixed": "Fixed",
        "before": "Moving, before",
        "after": "Moving, warped",
        "difference-before": "Difference before",
        "difference-after": "Difference after",
    }
    parts = [
        f"<p>{_orientation(case, display)} “Moving, before” is the moving image {placed}.</p>",
        '<p id="difference">A difference is the moving image minus the fixed one: middle grey is none, white '
        "is brighter and black is darker in the moving image. It tells something only where both images have "
        "the same contrast.</p>",
        '<div id="modes"></div>',
    ]
    for view in views:
        planes = [display.cut(a, view) for a in arrays]
        size = display.size(view, planes[0].shape)
        sources = [pictures.grey(p, 0, 1, size) for p in planes]
        sources += [pictures.grey(p - planes[0], -scale, scale, size) for p in planes[1:]]
        where = _where(case, view)
        figures = "\n".join(
            _figure(case, view, source, f"{title}, {where[0].lower()}{where[1:]}", size, title, role)
            for (role, title), source in zip(captions.items(), sources)
        )
        heading = f"<h3>{where}</h3>" if case.dim == 3 else ""
        label = escape(where)
        parts.append(
            f'<div class="slice" data-name="{label}">\n{heading}\n<div class="row">\n{figures}\n</div></div>'
        )
    return "\n".join(parts)


def _orientation(case: ReportCase, display: pictures.Display) -> str:
    """How pictures are oriented, in sentences."""
    if case.pixels:
        return "Pictures are shown as they are stored: x runs to the right and y runs down."
    text = "Pictures are shown in radiological orientation: the right side of the body is on the left."
    if case.dim == 3:
        text += " Letters at the edges say right, left, anterior, posterior, superior and inferior."
    else:
        text += " Letters at the edges say right, left, anterior and posterior, as the header has them."
    if display.tilt > 1:
        text += (
            f" The working grid is tilted by {display.tilt:.0f} degrees against these directions, so that a "
            "letter names the nearest one."
        )
    return text


def _where(case: ReportCase, view: pictures.View) -> str:
    """Name and place of a slice."""
    if case.dim == 2:
        return "Image"
    return f"{view.name} slice at {'xyz'[view.axis]} = {view.position:.1f} mm"


def _figure(
    case, view, source: str, alt: str, size: tuple[int, int], caption: str = "", role: str = ""
) -> str:
    """A picture with letters at its edges; its description says them to those who do not see it."""
    letters, seen = "", ""
    if not case.pixels:
        edges = {name: getattr(view, name) for name in ("left", "right", "top", "bottom")}
        letters = "".join(
            f'<span class="edge {name}" aria-hidden="true">{letter}</span>' for name, letter in edges.items()
        )
        seen = "; " + ", ".join(f"{letter} is {name}" for name, letter in edges.items())
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = f' data-role="{role}"' if role else ""
    return (
        f'<figure{kind}><div class="frame"><img src="{source}" alt="{escape(alt + seen)}" width="{size[0]}" '
        f'height="{size[1]}">{letters}</div>{below}</figure>'
    )


def of_the_map(case: ReportCase) -> str:
    """The deformed grid and the Jacobian determinant; if it folds, also slices through the worst fold."""
    display, views = _views(case)
    u, warped = display.vectors(case.displacement), display.scalars(case.warped)
    determinant = display.scalars(case.determinant)
    folded = np.argwhere(np.nan_to_num(determinant, nan=1.0) <= 0)
    parts = [
        "<h3>Deformed grid</h3>\n<p>A regular grid was drawn on the moving image, as it is before, and "
        "warped with it: where the lines crowd, the moving image was squeezed; where they are far apart, it "
        'was stretched.</p>\n<div class="row wide">'
    ]
    for view in views:
        size = display.size(view, display.cut(warped, view).shape, least=384)
        source = pictures.deformed_grid(display, warped, u, view)
        where = _where(case, view)
        parts.append(
            _figure(case, view, source, f"Deformed grid over the warped image, {where}", size, where)
        )
    reach = pictures.reach(case.determinant)
    parts.append(
        "</div>\n<h3>Jacobian determinant</h3>\n<p>The determinant says how the map changes volume (in 2D: "
        "area) at a place of the fixed image. At 1 it keeps volume; at 2 the moving image has twice the "
        f"volume there, and was shrunk. Zero or less is a fold. {_folded(case, folded)}</p>\n{_bar(reach)}"
    )
    parts.append(_jacobian_row(case, display, determinant, views, reach))
    if case.dim == 3 and len(folded):
        worst = np.unravel_index(np.nanargmin(determinant), determinant.shape)
        at = ", ".join(f"{x:.1f}" for x in display.world(worst))
        parts.append(f"<h4>Through the worst fold</h4>\n<p>It is at ({at}) mm in RAS coordinates.</p>")
        through = display.views(determinant, through=worst)
        parts.append(_jacobian_row(case, display, determinant, through, reach))
    return "\n".join(parts)


def _folded(case: ReportCase, folded: np.ndarray) -> str:
    cell = "pixel" if case.pixels else "voxel"
    if not len(folded):
        return f"No {cell} folds."
    count = f"{len(folded)} {cell}s fold" if len(folded) > 1 else f"One {cell} folds"
    return f"{count}, marked in yellow."


def _jacobian_row(case: ReportCase, display, determinant: np.ndarray, views, reach: float) -> str:
    figures = []
    for view in views:
        plane = display.cut(determinant, view)
        size = display.size(view, plane.shape)
        source, where = pictures.jacobian(plane, reach, size), _where(case, view)
        alt = f"Map of the Jacobian determinant, {where}"
        if np.isfinite(plane).any():
            alt += f", from {np.nanmin(plane):.2f} to {np.nanmax(plane):.2f}"
        figures.append(_figure(case, view, source, alt, size, where))
    return '<div class="row wide exact">\n' + "\n".join(figures) + "\n</div>"


def _bar(reach: float) -> str:
    """The colour bar with its ends and its middle, 1."""
    low, high = (f"{1 + sign * reach:.4g}" for sign in (-1, 1))
    less = " or less" if reach < 1 else ""  # at 0 and below the map folds, in a colour of its own
    return (
        f'<div class="bar"><img src="{pictures.colour_bar()}" alt="Colours from blue at {low} over white at '
        f'1 to red at {high}" width="254" height="8">\n<div class="ticks"><span>{low}{less}: '
        f"stretched</span><span>1</span><span>{high} or more: shrunk</span></div></div>"
    )
