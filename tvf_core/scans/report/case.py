"""What the report of a registration tells: arrays on the working grid, numbers, files, lines to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..grids import Grid
from ..repeat import Command

Rows = tuple[tuple[str, float, float], ...]  # (name, before, after)


@dataclass(frozen=True)
class AffineSummary:
    """The affine in a few numbers. Any object with these attributes serves.

    Attributes
    ----------
    turn : degrees.
    shift : how far it moves the centre of the fixed image, mm.
    singular_values : by how much it stretches lengths: 1 keeps them, 1.1 stretches by 10 %.
    warnings : sentences about what is doubtful.
    """

    turn: float
    shift: float
    singular_values: tuple[float, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ReportCase:
    """Everything that the report of a registration needs. All arrays are on the working grid, ``(*S)``.

    Attributes
    ----------
    moving, fixed : names of the images, as the user gave them.
    method : what registered them, as the end of a sentence: "TM-TVF, refined in 30 steps".
    grid : the working grid.
    fixed_image, before, warped : the fixed image, the moving image as the affine (without one: as the files'
        headers) places it, and the moving image after registration; intensities in [0, 1].
    displacement : (D, *S) voxels of the working grid, along its axes.
    determinant : of the Jacobian of ``Id + displacement``.
    folding : numbers by their names in :data:`tvf_core.scans.report.words.FOLDING`, whose
        ``folding_numbers`` measures them.
    inverse_error : mean and maximum, mm, of how far the map followed by its inverse misses its start.
    similarity : rows (name, before, after) of numbers that are higher the more alike the images are.
    seconds : stage -> time.
    versions : program -> version.
    files : name of a file that was written -> a sentence that says what it is.
    commands : lines that repeat the result (:func:`tvf_core.scans.repeat.commands`).
    notes : sentences of the readers about what they did or had to decide.
    dice : rows (label, before, after); NaN where a label is missing in an image. Empty without labels.
    landmarks : rows (point, before, after), errors in mm. Empty without points.
    affine : None if no affine was looked for.
    warnings : further sentences about what is alarming.
    pixels : the images are pictures without anatomical axes, so that lengths are in pixels and edges have no
        letters.
    """

    moving: str
    fixed: str
    method: str
    grid: Grid
    fixed_image: np.ndarray
    before: np.ndarray
    warped: np.ndarray
    displacement: np.ndarray
    determinant: np.ndarray
    folding: Mapping[str, float]
    inverse_error: tuple[float, float]
    similarity: Rows
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    commands: tuple[Command, ...]
    notes: tuple[str, ...] = ()
    dice: Rows = ()
    landmarks: Rows = ()
    affine: AffineSummary | None = None
    warnings: tuple[str, ...] = ()
    pixels: bool = False

    @property
    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.grid.shape)

    @property
    def unit(self) -> str:
        """Of lengths."""
        return "pixels" if self.pixels else "mm"

    def check(self) -> None:
        """ValueError if an array does not fit the grid."""
        shape = tuple(self.grid.shape)
        expected = {name: shape for name in ("fixed_image", "before", "warped", "determinant")}
        expected["displacement"] = (self.dim, *shape)
        for name, wanted in expected.items():
            found = np.shape(getattr(self, name))
            if found != wanted:
                raise ValueError(f"{name}: expected the shape {wanted} of the working grid, got {found}")
