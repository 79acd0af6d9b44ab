"""Voxel grids in world coordinates: where the voxels of an image lie, and resampling between grids.

The world is RAS millimetres (x to the right, y to the front, z to the top), as in nibabel. In 2D it has two
axes. Files of ITK use LPS, in which x and y have the other sign: :mod:`tvf_core.scans.transforms` converts
where it reads and writes.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie in the world.

    Parameters
    ----------
    shape : number of voxels along each of the D axes, D = 2 or 3.
    affine : (D+1, D+1) float64; ``affine @ (i, j[, k], 1)`` is the world position, in mm, of a voxel.

    Examples
    --------
    >>> import numpy as np
    >>> grid = Grid((4, 5), np.diag([2.0, 3.0, 1.0]))
    >>> grid.spacing, grid.world([1, 1]).tolist(), grid.index([2, 3]).tolist()
    ((2.0, 3.0), [2.0, 3.0], [1.0, 1.0])
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self):
        shape = tuple(int(s) for s in self.shape)
        affine = np.array(self.affine, dtype=np.float64)  # a copy, which nobody else can change
        dim = len(shape)
        if dim not in (2, 3) or min(shape) < 1:
            raise ValueError(f"grid: expected 2 or 3 sizes of at least 1, got {self.shape}")
        check_matrix(affine, dim, "affine of a grid")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def dim(self) -> int:
        """Number D of axes, 2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along each axis of the array, in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    def world(self, index) -> np.ndarray:
        """World positions, in mm, of index points ``(..., D)``, which need not be whole numbers."""
        return map_by(self.affine, index)

    def index(self, world) -> np.ndarray:
        """Index points of world positions ``(..., D)`` in mm: the centre of voxel k is at index k."""
        return map_by(np.linalg.inv(self.affine), world)

    def corners(self) -> np.ndarray:
        """World positions ``(2**D, D)`` of the corners of the box of the voxels, their edges included."""
        return self.world(list(itertools.product(*((-0.5, s - 0.5) for s in self.shape))))

    def distance(self, other: Grid) -> float:
        """How far, in mm, the corners of two grids lie apart at most; infinity if their shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())


def map_by(matrix: np.ndarray, points) -> np.ndarray:
    """Points ``(..., D)`` mapped by a ``(D+1, D+1)`` matrix, in float64."""
    return np.asarray(points, dtype=np.float64) @ matrix[:-1, :-1].T + matrix[:-1, -1]


def check_matrix(matrix: np.ndarray, dim: int, name: str) -> None:
    """Refuse what is no invertible affine matrix of ``dim`` dimensions."""
    if np.shape(matrix) != (dim + 1, dim + 1):
        raise ValueError(f"{name}: expected a {dim + 1} x {dim + 1} matrix, got shape {np.shape(matrix)}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: has NaN or infinite values")
    if not np.allclose(matrix[-1], [0] * dim + [1]):
        raise ValueError(f"{name}: the last row must be {[0] * dim + [1]}, got {list(matrix[-1])}")
    lengths = np.linalg.norm(matrix[:-1, :-1], axis=0)
    if not (lengths > 0).all() or abs(np.linalg.det(matrix[:-1, :-1] / lengths)) < 1e-6:
        raise ValueError(f"{name}: is singular, it maps the whole space to a plane, a line or a point")
