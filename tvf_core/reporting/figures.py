"""Figures: images, deformed grids, Jacobian maps, learning curves, the network, registrations.

Every function draws into given axes or returns a finished figure; nothing is drawn at import.
Volumes are shown as one slice across the array axis ``axis`` (1 is coronal for RAS data).
"""

from __future__ import annotations

import itertools
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ..fields import jacobian_determinant, warp
from ..methods import METHODS
from ..registration import Registration

STYLE = {
    "figure.dpi": 96,
    "savefig.dpi": 96,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}
COLORS = {
    "identity": "#888888",
    "vm-2": "#8c564b",
    "vm-diff": "#c49c94",
    "cyclemorph": "#e377c2",
    "convexadam": "#e7ba52",
    "lapirn": "#17becf",
    "lapirn-diff": "#9edae5",
    "clapirn": "#bcbd22",
    "lddmm": "#000000",
    "tm": "#1f77b4",
    "tm-tvf-lddmm": "#2ca02c",
    "tm-tvf": "#d62728",
    "tm-tvf-released": "#ff7f0e",
    "vm-tvf": "#9467bd",
}


def color_of(method: str) -> str:
    """Colour of a method in the book, also of a result such as ``tm-seed1``; grey for any other name."""
    known = [name for name in COLORS if method == name or method.startswith(f"{name}-")]
    return COLORS[max(known, key=len)] if known else "#555555"


def use_style() -> None:
    """Set the book's matplotlib style."""
    plt.rcParams.update(STYLE)


def plane(array, axis: int = 1) -> np.ndarray:
    """2D picture (vertical, horizontal) of an array ``(*S)``.

    A 2D array stays as it is. A 3D array is cut in the middle of ``axis`` and turned so that its last axis
    points up.
    """
    array = _numpy(array)
    if array.ndim == 2:
        return array
    return np.take(array, array.shape[axis] // 2, axis).T[::-1]


def show(ax, image, title: str = "", axis: int = 1, **kwargs) -> None:
    """Draw one image or slice without ticks; the intensity range is 0 to 1 unless ``kwargs`` change it."""
    picture = plane(image, axis)
    if picture.dtype.kind == "f" and "cmap" not in kwargs:
        kwargs = {"vmin": 0, "vmax": 1, **kwargs}
    ax.imshow(picture, **kwargs)
    bare(ax, title)


def bare(ax, title: str = "") -> None:
    """Remove ticks and frame from axes and set a title."""
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)


def grid(ax, displacement, title: str = "", axis: int = 1, every: int = 4) -> None:
    """Draw the deformed grid ``x + u(x)`` of a displacement ``(D, *S)``; in 3D its part in the middle slice.

    The drawn points are where the map sends the points of the fixed grid, that is, where the warp reads.
    """
    points = _numpy(displacement) + np.stack(
        np.meshgrid(*map(np.arange, displacement.shape[1:]), indexing="ij")
    )
    if len(points) == 2:
        vertical, horizontal = points
        ax.invert_yaxis()
    else:
        cut = points.shape[1 + axis] // 2
        h, v = [a for a in range(3) if a != axis]
        horizontal, vertical = np.take(points[h], cut, axis).T, np.take(points[v], cut, axis).T
    for lines in (slice(None, None, every), slice(None)), (slice(None), slice(None, None, every)):
        h, v = horizontal[lines], vertical[lines]
        ax.plot(*((h.T, v.T) if lines[0] != slice(None) else (h, v)), color="#204a87", lw=0.6)
    ax.set_aspect("equal")
    bare(ax, title)


def jacobian_map(ax, determinant, title: str = "", axis: int = 1):
    """Draw det J ``(*S)`` in colour: blue where the map shrinks, red where it grows, black where it folds.

    Folds are det J <= 0. The coloured image is returned, for a colour bar.
    """
    picture = plane(determinant, axis)
    image = ax.imshow(picture, cmap="RdBu_r", vmin=0, vmax=2)
    ax.imshow(np.where(picture <= 0, 0.0, np.nan), cmap="gray", vmin=0, vmax=1)
    bare(ax, title)
    return image


def learning_curve(ax, history: list[dict], score: str) -> None:
    """Loss per step with a running mean, and the validation score on a second axis."""
    # Skipped steps have no finite loss and are left out.
    steps, loss = (np.array([r[key] for r in history if np.isfinite(r["loss"])]) for key in ("step", "loss"))
    width = max(1, len(loss) // 20)
    smooth = np.convolve(loss, np.ones(width) / width, "valid") if len(loss) else loss
    ax.plot(steps, loss, color="#cccccc", lw=0.8)
    ax.plot(steps[width // 2 :][: len(smooth)], smooth, color="#d62728", label="loss")
    ax.set(xlabel="optimiser step", ylabel="loss (running mean in red)")
    validated = [(r["step"], r["validation"]) for r in history if "validation" in r]
    other = ax.twinx()
    other.spines.right.set_visible(True)
    if validated:
        other.plot(*zip(*validated), "o-", color="#1f77b4", ms=3)
    other.set_ylabel(f"validation {score} (blue)")


def validation_curves(ax, curves: dict[str, list[list[float]]], colors: list[str], score: str) -> None:
    """Validation scores of several trainings over their steps.

    Parameters
    ----------
    curves : title -> (steps done, score) of every validation, as ``curve`` in a card of shipped weights has
        them.
    colors : of the curves, in their order.
    score : name of the score.
    """
    styles = {color: itertools.cycle(("-", "--", ":")) for color in colors}  # trainings of one method differ
    for (title, curve), color in zip(curves.items(), colors):
        ax.plot(*zip(*curve), color=color, lw=1.2, ls=next(styles[color]), label=title)
    ax.set(xlabel="optimiser step", ylabel=f"validation {score}")
    ax.legend(fontsize=8, ncols=2, frameon=False)


class LiveCurve:
    """Learning curve in a notebook that is updated during training.

    Usage: ``with LiveCurve("dice") as watch: train(..., watch=watch)``. Drawing takes at most about 2 % of
    the time; the curve is drawn a last time at the end.

    Parameters
    ----------
    score : name of the validation score.
    size : width and height of the figure in inches.
    """

    def __init__(self, score: str, size: tuple[float, float] = (5.4, 3)):
        self.score, self.history = score, []
        self.figure, self.next, self.handle = plt.figure(figsize=size), 0.0, None
        plt.close(self.figure)  # otherwise the notebook would show it a second time at the end of the cell

    def __enter__(self):
        return self

    def __call__(self, record: dict) -> None:
        self.history.append(record)
        if time.monotonic() >= self.next:
            self.draw()

    def __exit__(self, *error) -> None:
        if self.history:
            self.draw()

    def draw(self) -> None:
        """Draw the history so far."""
        from IPython.display import display  # imported here because only notebooks need it

        start = time.monotonic()
        self.figure.clear()
        learning_curve(self.figure.add_subplot(), self.history, self.score)
        if self.handle is None:
            self.handle = display(self.figure, display_id=True)
        else:
            self.handle.update(self.figure)
        self.next = time.monotonic() + max(1.0, 50 * (time.monotonic() - start))


def box_plot(ax, values: dict[str, np.ndarray], xlabel: str) -> None:
    """Draw one box per result, from top to bottom, in the methods' colours, and the pairs as points.

    Pairs without a finite value cannot be drawn: the name of the result says how many there are.
    """
    rng, names = np.random.default_rng(0), []
    for position, (method, numbers) in enumerate(values.items()):
        color, lost = color_of(method), int((~np.isfinite(numbers)).sum())
        names.append(METHODS[method].title if method in METHODS else method)
        names[-1] += f"\n({lost} of {len(numbers)} pairs not finite)" * bool(lost)
        numbers = np.asarray(numbers)[np.isfinite(numbers)]
        ax.boxplot(
            [numbers],
            positions=[position],
            widths=0.55,
            showfliers=False,
            orientation="horizontal",
            medianprops={"color": color},
            boxprops={"color": color},
            whiskerprops={"color": color},
            capprops={"color": color},
        )
        ax.plot(numbers, position + rng.uniform(-0.18, 0.18, len(numbers)), ".", ms=2, alpha=0.4, color=color)
    ax.set_yticks(range(len(values)), names)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlabel(xlabel)


def structure_plot(ax, rows: dict[str, dict[str, np.ndarray]], metric: str, ylabel: str) -> None:
    """Draw a group of boxes per structure, one box per method, with left and right sides pooled, as is usual.

    Parameters
    ----------
    rows : name of a result -> columns, as read by ``read_rows``.
    metric : a metric per label, ``dice`` or ``hd95``.

    Notes
    -----
    Pairs in which a structure is missing, and infinite distances, are left out of its boxes.
    """
    width = 0.75 / len(rows)
    for k, (method, columns) in enumerate(rows.items()):
        values = by_structure(columns, metric)
        color, position = color_of(method), np.arange(len(values)) + (k - (len(rows) - 1) / 2) * width
        boxes = ax.boxplot(
            list(values.values()),
            positions=position,
            widths=0.8 * width,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            medianprops={"color": "black", "lw": 0.7},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=color, edgecolor=color, alpha=0.6)
        ax.plot([], [], "s", color=color, label=METHODS[method].title if method in METHODS else method)
    ax.set_xticks(range(len(values)), list(values), rotation=35, ha="right")
    ax.set_ylabel(ylabel)
    ax.legend(frameon=False, fontsize=8, ncols=len(rows), loc="lower center", bbox_to_anchor=(0.5, 1))


def by_structure(columns: dict[str, np.ndarray], metric: str) -> dict[str, np.ndarray]:
    """Finite values of a metric per structure; ``L name`` and ``R name`` are pooled under ``name``."""
    found = {}
    for column, values in columns.items():
        if column.startswith(f"{metric}/"):
            name = column.removeprefix(f"{metric}/").removeprefix("L ").removeprefix("R ")
            found[name] = np.concatenate([found.get(name, []), values[np.isfinite(values)]])
    return found


def architecture(shapes: dict[str, tuple[int, ...]], steps: int):
    """Figure 2 of the paper, with the tensor shapes of a real forward pass.

    Parameters
    ----------
    shapes : name -> (channels, *space) of ``pair``, ``stage0`` .. ``stage3``, ``up0`` .. ``up2``,
        ``context``, ``decoded``, ``velocity``.
    steps : N, the number of time intervals.
    """
    fig, ax = plt.subplots(figsize=(10.5, 5.2))
    colors = {"stage": "#fce5b8", "up": "#cfe2f3", "pair": "#eeeeee", "step": "#d9ead3"}

    def box(x, y, text, color, width=1.55, height=0.62):
        ax.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0.04",
                fc=color,
                ec="#444444",
                lw=0.8,
            )
        )
        ax.text(x, y, text, ha="center", va="center", fontsize=8)

    def arrow(start, end, curve=0.0, **kwargs):
        ax.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=9,
                lw=0.9,
                shrinkA=0,
                shrinkB=0,
                connectionstyle=f"arc3,rad={curve}",
                **{"color": "#444444", **kwargs},
            )
        )

    def text(name):
        channels, *space = shapes[name]
        return f"{channels} x " + " x ".join(map(str, space))

    box(0.9, 4.6, "moving, fixed\n" + text("pair"), colors["pair"])
    for s in range(4):
        box(0.9, 3.6 - s, f"Swin stage {s + 1}\n{text(f'stage{s}')}", colors["stage"])
        arrow((0.9, 4.28 - s), (0.9, 3.93 - s))
    for s, name in enumerate(("up2", "up1", "up0")):
        box(3.3, 3.6 - s, f"upsample, 2 conv\n{text(name)}", colors["up"])
        arrow((1.72, 3.6 - s), (2.48, 3.6 - s), linestyle="--")
        if name != "up0":
            arrow((3.3, 2.93 - s), (3.3, 3.27 - s))
    arrow((1.72, 0.65), (3.3, 1.25), curve=0.25)
    for x, label in ((5.7, "t = 1"), (7.75, "t = 2"), (9.9, f"t = {steps}")):
        box(x, 4.6, f"warp so far, fixed\nconv: {text('context')}", colors["step"])
        box(x, 3.6, f"upsample, 2 conv\n{text('decoded')}", colors["step"])
        box(x, 2.6, f"velocity {label.replace('t = ', 'v')}\n{text('velocity')}", colors["step"])
        box(x, 1.6, "integrate:\nmap so far", "#f4cccc")
        ax.text(x, 5.1, label, ha="center", fontsize=9)
        for top in (4.28, 3.28, 2.28):
            arrow((x, top), (x, top - 0.35))
        arrow((x - 0.5, 4.12), (x - 0.5, 3.92), color="#3d85c6")  # the shared features go to every step
    ax.plot([4.1, 4.5, 4.5, 9.4], [3.6, 3.6, 4.11, 4.11], color="#3d85c6", lw=0.9)
    for x in (6.72, 8.77):  # the map of one step conditions the next
        ax.plot([x - 0.22, x, x], [1.6, 1.6, 4.6], color="#cc4125", lw=0.9)
        arrow((x - 0.01, 4.6), (x + 0.24, 4.6), color="#cc4125")
    ax.text(8.77, 5.1, "...", ha="center", fontsize=12)
    box(9.9, 0.55, "map on the image grid\n(doubled)", "#f4cccc", width=1.7)
    arrow((9.9, 1.28), (9.9, 0.9))
    ax.set(xlim=(0, 10.85), ylim=(0.1, 5.3))
    ax.axis("off")
    return fig


def layer_shapes(network, moving: torch.Tensor, fixed: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes ``(channels, *space)`` inside a TM-TVF network in one forward pass, for :func:`architecture`."""
    shapes, handles = {"pair": (2, *moving.shape[2:])}, []
    layers = {name: getattr(network.backbone, name) for name in ("up0", "up1", "up2")}
    layers |= {"context": network.cs[0], "decoded": network.up3s[0].conv2, "velocity": network.reg_heads[0]}
    for stage in range(4):
        layers[f"stage{stage}"] = network.backbone.transformer.get_submodule(f"norm{stage}")
    for name, layer in layers.items():

        def note(_module, _inputs, output, name=name):
            shape = tuple(output.shape[1:])
            # Tokens have their channels last.
            shapes[name] = (shape[-1], *shape[:-1]) if name.startswith("stage") else shape

        handles.append(layer.register_forward_hook(note))
    with torch.inference_mode():
        network(moving, fixed)
    for handle in handles:
        handle.remove()
    return shapes


def forward_and_backward(
    rows: list[tuple[str, torch.Tensor, torch.Tensor, Registration]], axis: int = 1, credit: str = ""
):
    """Figure 4 of the paper: one row per registered pair.

    Parameters
    ----------
    rows : (name, moving, fixed, registration of the pair), images ``(1, 1, *S)``.
    credit : where the images are from, if the figure has to say it.

    Returns
    -------
    Figure whose columns are moving, fixed, moving o phi, phi, fixed o phi^-1, phi^-1 and det J.
    """
    fig, axes = plt.subplots(len(rows), 7, figsize=(13, 2.05 * len(rows) + 0.35), squeeze=False)
    for line, (name, moving, fixed, result) in zip(axes, rows):
        inverse = result.inverse()
        show(line[0], moving[0, 0], f"moving ({name})" if name else "moving", axis)
        show(line[1], fixed[0, 0], "fixed", axis)
        show(line[2], result.warped[0, 0], r"moving$\,\circ\,\phi$", axis)
        grid(line[3], result.displacement[0], r"$\phi$", axis)
        show(line[4], warp(fixed, inverse)[0, 0], r"fixed$\,\circ\,\phi^{-1}$", axis)
        grid(line[5], inverse[0], r"$\phi^{-1}$", axis)
        jacobian_map(line[6], jacobian_determinant(result.displacement)[0], "det J", axis)
    credited(fig, credit)
    return fig


def extremes(model, data, gain: dict[str, float]) -> list[tuple]:
    """Rows for :func:`forward_and_backward`: the pair that gains most, and the one that gains least.

    Parameters
    ----------
    model : registers them.
    data : the split that has the pairs.
    gain : name of a pair -> what it gains, for two pairs or more.
    """
    number, rows = {data.pair_name(k): k for k in range(len(data))}, []
    for pair, name in {
        max(gain, key=gain.get): "largest gain",
        min(gain, key=gain.get): "smallest gain",
    }.items():
        item = data.batch([number[pair]])
        rows.append((name, item["moving"], item["fixed"], model.register(item["moving"], item["fixed"])))
    return rows


def credited(fig, credit: str) -> None:
    """Write below a figure where its images are from; nothing for an empty text."""
    if credit:
        fig.supxlabel(credit, fontsize=7, color="#555555", x=0.99, ha="right")


def _numpy(array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
