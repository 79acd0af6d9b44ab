"""The files of one registration, read and checked against each other before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import images, points
from .images import Scan


@dataclass(frozen=True)
class Inputs:
    """What :func:`read` has read.

    Attributes
    ----------
    moving, fixed : the two images.
    moving_labels, fixed_labels : label maps on their grids, or None.
    moving_points, fixed_points : points in their worlds, or None.
    fixed_mask : bool array on the grid of the fixed image, or None: where the images are to be compared.
    """

    moving: Scan
    fixed: Scan
    moving_labels: Scan | None = None
    fixed_labels: Scan | None = None
    moving_points: points.Points | None = None
    fixed_points: points.Points | None = None
    fixed_mask: np.ndarray | None = None

    @property
    def dim(self) -> int:
        return self.fixed.grid.dim

    @property
    def notes(self) -> list[str]:
        """What was decided while reading, each line with the name of its file."""
        read = (self.moving, self.fixed, self.moving_labels, self.fixed_labels)
        return [f"{scan.path.name}: {note}" for scan in read if scan for note in scan.notes]


def read(
    moving: Path,
    fixed: Path,
    *,
    moving_labels: Path | None = None,
    fixed_labels: Path | None = None,
    moving_points: Path | None = None,
    fixed_points: Path | None = None,
    fixed_mask: Path | None = None,
    moving_volume: int | None = None,
    fixed_volume: int | None = None,
    nearest_rotation: bool = False,
) -> Inputs:
    """Read the images of one registration and what comes with them.

    Parameters
    ----------
    moving, fixed : NIfTI, PNG or JPEG files; see :func:`tvf_core.scans.images.read_image`.
    moving_labels, fixed_labels : label maps on the grids of their images.
    moving_points, fixed_points : CSV files; where both are given, row by row the same places.
    fixed_mask : label map on the fixed image's grid; every label above 0 is inside.
    moving_volume, fixed_volume, nearest_rotation : see :func:`tvf_core.scans.images.read_image`.

    Raises
    ------
    ValueError, OSError : one line that names the file and says what to do.
    """
    if Path(moving).resolve() == Path(fixed).resolve() and moving_volume == fixed_volume:
        raise ValueError(f"{moving}: moving and fixed are the same image; name two")
    turn = {"nearest_rotation": nearest_rotation}
    scans = [
        images.read_image(path, volume=volume, **turn)
        for path, volume in ((moving, moving_volume), (fixed, fixed_volume))
    ]
    images.check_pair(*scans)
    found = {"moving": scans[0], "fixed": scans[1]}
    for role, path in (("moving", moving_labels), ("fixed", fixed_labels)):
        if path is not None:
            found[f"{role}_labels"] = images.read_labels(path, found[role].grid, f"the {role} image", **turn)
    if fixed_mask is not None:
        mask = images.read_labels(fixed_mask, scans[1].grid, "the fixed image", **turn).values > 0
        if not mask.any():
            raise ValueError(f"{Path(fixed_mask).name}: this mask is 0 everywhere; voxels above 0 are inside")
        found["fixed_mask"] = mask
    for role, path in (("moving", moving_points), ("fixed", fixed_points)):
        if path is not None:
            found[f"{role}_points"] = points.read_points(path, scans[0].grid.dim)
    counts = [
        len(found[f"{role}_points"].positions) for role in ("moving", "fixed") if f"{role}_points" in found
    ]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{Path(moving_points).name} has {counts[0]} points, {Path(fixed_points).name} has {counts[1]}: "
            "row by row they must be the same places; give one of them only to have it carried over"
        )
    return Inputs(**found)
