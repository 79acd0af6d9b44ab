"""Pictures of the report: slices in radiological orientation, deformed grids, Jacobian maps.

An array is first turned to RAS order: its axes run to the right, to the front and to the top. Pictures are
then shown as radiologists do: the right side of the body is on the left of the picture, front or top is up,
and a sagittal slice looks to the left. A photograph (x right, y down) comes out as it was stored.
"""

from __future__ import annotations

import base64
import io
import itertools
import warnings
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..grids import Grid

LIMIT = {2: 512, 3: 320}  # pixels along the longer side of a picture
LINES = 22  # of a deformed grid along the longer side
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # of the RAS axes: where they come from, where they go
SHADES = 254  # of a Jacobian map; after them in its palette: yellow for folds, grey for what is not finite
PALETTE = np.concatenate(
    [
        colormaps["RdBu_r"](np.linspace(0, 1, SHADES), bytes=True)[:, :3],
        np.array([[255, 212, 0], [128, 128, 128]], np.uint8),
    ]
)
RANGES = (0.05, 0.1, 0.2, 0.5, 1.0)  # how far from 1 the colours of a Jacobian map reach


@dataclass(frozen=True)
class View:
    """One slice of a volume, or a whole 2D image.

    Attributes
    ----------
    name : ``Axial``, ``Coronal``, ``Sagittal``; ``Image`` in 2D.
    axis, index : the slice across this axis of the array in RAS order; -1 and 0 in 2D.
    position : where it lies along that axis in the world, mm (0 in 2D).
    left, right, top, bottom : letters of the directions at the edges of the picture.
    """

    name: str
    axis: int
    index: int
    position: float
    left: str
    right: str
    top: str
    bottom: str


class Display:
    """Turns arrays on a grid to RAS order, and cuts pictures from them.

    Attributes
    ----------
    spacing : of the voxels along the RAS axes.
    tilt : largest angle, in degrees, between an axis of the grid and the nearest axis of the world.
    """

    def __init__(self, grid: Grid):
        self.grid = grid
        dim = len(grid.shape)
        directions = grid.affine[:dim, :dim] / np.asarray(grid.spacing)
        # order[w] is the axis of the array that runs along axis w of the world
        self.order = max(
            itertools.permutations(range(dim)),
            key=lambda p: sum(abs(directions[w, p[w]]) for w in range(dim)),
        )
        along = np.array([directions[w, a] for w, a in enumerate(self.order)])
        self.flipped = [w for w in range(dim) if along[w] < 0]
        self.spacing = tuple(float(grid.spacing[a]) for a in self.order)
        self.tilt = float(np.degrees(np.arccos(np.clip(np.abs(along).min(), 0, 1))))

    def scalars(self, array: np.ndarray) -> np.ndarray:
        """An array ``(*S)`` in RAS order."""
        return np.flip(np.transpose(np.asarray(array), self.order), self.flipped)

    def vectors(self, displacement: np.ndarray) -> np.ndarray:
        """A displacement ``(D, *S)`` in voxels in RAS order, its components too."""
        turned = [self.scalars(displacement[a]) for a in self.order]
        return np.stack([-u if w in self.flipped else u for w, u in enumerate(turned)])

    def views(self, image: np.ndarray, through=None) -> list[View]:
        """Three orthogonal slices of a volume ``(*S)`` that show much of its content; in 2D the image.

        Parameters
        ----------
        image : in RAS order.
        through : a voxel in RAS order through which the slices go instead.
        """
        dim = image.ndim
        if dim == 2:
            return [View("Image", -1, 0, 0.0, "R", "L", "A", "P")]
        index = _rich_slices(image) if through is None else tuple(int(k) for k in through)
        found = []
        for name, axis in (("Axial", 2), ("Coronal", 1), ("Sagittal", 0)):
            across, up = (a for a in range(3) if a != axis)
            ends = (*ENDS[across][::-1], *ENDS[up][::-1])
            position = self.world(index)[axis]
            found.append(View(name, axis, index[axis], float(position), *ends))
        return found

    def world(self, index) -> np.ndarray:
        """World position, in mm, of a voxel in RAS order."""
        dim = len(self.order)
        stored = np.zeros(dim)
        for w, a in enumerate(self.order):
            stored[a] = self.grid.shape[a] - 1 - index[w] if w in self.flipped else index[w]
        return self.grid.affine[:dim, :dim] @ stored + self.grid.affine[:dim, dim]

    def cut(self, array: np.ndarray, view: View) -> np.ndarray:
        """Picture (from the top row down) of an array in RAS order."""
        plane = array if view.axis < 0 else np.take(array, view.index, view.axis)
        return plane.T[::-1, ::-1]

    def axes(self, view: View) -> tuple[int, int]:
        """The RAS axes that run along the rows and the columns of a picture."""
        across, up = (a for a in range(len(self.order)) if a != view.axis)
        return across, up

    def size(self, view: View, shape: tuple[int, ...], least: int = 1) -> tuple[int, int]:
        """Width and height, in square pixels, of a picture that has ``shape`` (rows, columns) voxels.

        It has at least ``least`` pixels along its longer side if the limit allows it.
        """
        across, up = self.axes(view)
        sides = np.array([shape[1] * self.spacing[across], shape[0] * self.spacing[up]])
        longer = sides.max() / min(self.spacing[across], self.spacing[up])
        longer = min(max(longer, least), LIMIT[len(self.order)])
        return tuple(int(n) for n in np.maximum(np.round(sides / sides.max() * longer), 1))


def _rich_slices(image: np.ndarray) -> tuple[int, ...]:
    """Per axis the slice with much detail, not far from where the detail has its centre."""
    chosen = []
    for axis, size in enumerate(image.shape):
        others = tuple(a for a in range(image.ndim) if a != axis)
        detail = sum(np.abs(np.diff(image, axis=a)).sum(others, dtype=np.float64) for a in others)
        detail = np.nan_to_num(detail)
        if detail.sum() == 0:
            chosen.append(size // 2)
            continue
        width = max(1, size // 16)
        smooth = np.convolve(detail, np.ones(width) / width, "same")
        places = np.arange(size)
        centre = (places * detail).sum() / detail.sum()
        chosen.append(int(np.argmax(smooth * np.exp(-0.5 * ((places - centre) / (size / 5)) ** 2))))
    return tuple(chosen)


def grey(picture: np.ndarray, low: float, high: float, size: tuple[int, int]) -> str:
    """Source of a picture in 256 greys, which is black at ``low`` and below and white at ``high`` and above.

    Values that are not finite are black.
    """
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32), nan=low, posinf=high, neginf=low)
    shown = Image.fromarray(np.ascontiguousarray((values - low) / (high - low)))
    if shown.size != size:
        shown = shown.resize(size, Image.Resampling.BICUBIC)
    return _source(Image.fromarray(np.round(np.clip(np.asarray(shown), 0, 1) * 255).astype(np.uint8)))


def jacobian(picture: np.ndarray, reach: float, size: tuple[int, int]) -> str:
    """Picture of det J: blue where the map shrinks, white at 1, red where it grows; folds in yellow.

    A fold (det J <= 0) stays visible where the picture has fewer pixels than voxels.
    """
    values = np.asarray(picture, dtype=np.float64)
    known = np.isfinite(values)
    places = np.clip((np.where(known, values, 1.0) - 1 + reach) / (2 * reach), 0, 1)
    numbers = np.where(known, np.round(places * (SHADES - 1)), SHADES + 1).astype(np.uint8)
    folded = known & (np.where(known, values, 1.0) <= 0)
    shown = np.array(Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST))
    fewer = size[0] < folded.shape[1] or size[1] < folded.shape[0]
    kind = Image.Resampling.BOX if fewer else Image.Resampling.NEAREST
    shown[np.asarray(Image.fromarray(folded.astype(np.float32)).resize(size, kind)) > 0] = SHADES
    coloured = Image.fromarray(shown)
    coloured.putpalette(PALETTE.tobytes())
    return _source(coloured)


def colour_bar() -> str:
    """The colours of a Jacobian map, from left to right."""
    bar = Image.fromarray(np.arange(SHADES, dtype=np.uint8)[None].repeat(8, 0))
    bar.putpalette(PALETTE.tobytes())
    return _source(bar)


def reach(determinant: np.ndarray) -> float:
    """How far from 1 the colours of a map reach: enough for 99 % of the voxels, at most 1."""
    away = np.abs(determinant[np.isfinite(determinant)] - 1)
    needed = float(np.quantile(away, 0.99)) if away.size else 1.0
    return next((r for r in RANGES if r >= needed), RANGES[-1])


def deformed_grid(display: Display, image: np.ndarray, displacement: np.ndarray, view: View) -> str:
    """The warped image, and a regular grid on the moving image that was warped with it.

    Its lines are where one coordinate of ``x + u(x)``, the place in the moving image that x shows, has a
    round value. In a volume they are the cuts of the warped planes with the slice.

    Parameters
    ----------
    image, displacement : ``(*S)`` in [0, 1] and ``(D, *S)`` in voxels, both in RAS order.
    """
    picture = display.cut(image, view)
    width, height = display.size(view, picture.shape, least=384)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="none")  # whatever the caller has
    canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.nan_to_num(picture), cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="bilinear")
    axes.set_axis_off()
    sides = [n * display.spacing[a] for n, a in zip(picture.shape[::-1], display.axes(view))]
    step = max(sides) / LINES
    for axis in display.axes(view):
        size = image.shape[axis]
        start = np.arange(size).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
        place = display.cut(start + displacement[axis], view)
        place = (place - (size - 1) / 2) * display.spacing[axis]  # mm from the centre
        if not np.isfinite(place).any() or min(place.shape) < 2:
            continue
        first, last = np.nanmin(place) / step, np.nanmax(place) / step
        levels = step * np.arange(np.ceil(first), min(np.floor(last), first + 10 * LINES) + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a level that meets the border only has no line
            if len(levels):
                axes.contour(place, levels=levels, colors="#ffd23f", linewidths=0.8, linestyles="solid")
    canvas.draw()
    shown = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return _source(shown.quantize(128, dither=Image.Dither.NONE))


def _source(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
