"""Maps of the world onto itself: affine ones and displacement fields, and chains of them.

A map takes points of the fixed image's world (RAS, mm) to that of the moving image. **Points go the other
way than images**: the map that pulls the moving image onto the fixed grid, ``warped(x) = moving(phi(x))``,
carries points of the fixed image to the moving one. Points of the moving image come to the fixed one by the
inverse chain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..fields import invert
from .grids import BLOCK, Grid, check_matrix, index_blocks, map_tensor, sample_at


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """Affine map of the world.

    Parameters
    ----------
    matrix : (D+1, D+1), RAS mm; the last row is 0, ..., 0, 1.
    """

    matrix: np.ndarray

    def __post_init__(self):
        matrix = np.array(self.matrix, dtype=np.float64)
        check_matrix(matrix, 2 if matrix.shape == (3, 3) else 3, "affine")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def dim(self) -> int:
        """Number of axes of the world, 2 or 3."""
        return len(self.matrix) - 1

    def move(self, points: torch.Tensor) -> torch.Tensor:
        """:meth:`points` for a tensor ``(N, D)``: one block of points in float64."""
        return map_tensor(self.matrix, points)

    def points(self, points) -> np.ndarray:
        """Where points ``(..., D)`` of the world go, in float64; RAS, mm."""
        return map_points([self], points)

    def inverse(self) -> Linear:
        """The inverse affine map."""
        return Linear(np.linalg.inv(self.matrix))


@dataclasses.dataclass(frozen=True, eq=False)
class Warp:
    """Displacement field: ``phi(x) = x + u(x)``, u interpolated linearly.

    Parameters
    ----------
    displacement : (*S, D) float32, RAS mm, at the centres of the voxels of ``grid``.
    grid : where these are.
    extended : what the displacement is outside the grid. False, as ITK and ANTs have it for every file: 0, so
        that a field that is not 0 at its border has a jump there. True: the value at the nearest border.
    """

    displacement: np.ndarray
    grid: Grid
    extended: bool = False

    def __post_init__(self):
        field = np.asarray(self.displacement, dtype=np.float32)
        if field.shape != (*self.grid.shape, self.grid.dim):
            raise ValueError(
                f"displacement: expected shape {(*self.grid.shape, self.grid.dim)}, got {field.shape}"
            )
        object.__setattr__(self, "displacement", field)

    @classmethod
    def from_voxels(cls, displacement: torch.Tensor, grid: Grid, extended: bool = True) -> Warp:
        """The map of a displacement ``(1, D, *S)`` in voxels of ``grid``, as registrations give it."""
        if tuple(displacement.shape) != (1, grid.dim, *grid.shape):
            raise ValueError(
                f"displacement: expected shape {(1, grid.dim, *grid.shape)}, got {tuple(displacement.shape)}"
            )
        field = displacement[0].detach().movedim(0, -1).float().cpu().numpy()
        return cls(field @ grid.affine[:-1, :-1].T.astype(np.float32), grid, extended)

    @property
    def dim(self) -> int:
        """Number of axes of the world, 2 or 3."""
        return self.grid.dim

    def move(self, points: torch.Tensor) -> torch.Tensor:
        """:meth:`points` for a tensor ``(N, D)``: one block of points in float64."""
        index = map_tensor(np.linalg.inv(self.grid.affine), points)
        field = torch.from_numpy(self.displacement).to(points.device).movedim(-1, 0)[None]
        return points + sample_at(field, index, outside=None if self.extended else 0.0).T

    def points(self, points) -> np.ndarray:
        """Where points ``(..., D)`` of the world go, in float64; RAS, mm."""
        return map_points([self], points)

    def inverse(self) -> Warp:
        """The inverse map, on the same grid, by the fixed point of :func:`tvf_core.fields.invert`.

        It serves maps that come without a velocity. It is good where the derivatives of the displacement stay
        below 1 and meaningless where the map folds: compare ``warp.points(warp.inverse().points(x))`` with x.
        """
        back = np.linalg.inv(self.grid.affine)[:-1, :-1].T.astype(np.float32)
        voxels = torch.from_numpy(self.displacement @ back).movedim(-1, 0)[None]
        return Warp.from_voxels(invert(voxels), self.grid, self.extended)

    def on(self, grid: Grid) -> Warp:
        """The same map with its displacement sampled on another grid, in the form that files have."""
        return compose([self], grid)


Map = Linear | Warp


def check_chain(chain: Iterable[Map], dim: int, what: str = "the image") -> None:
    """Refuse a chain with a map of another dimension than ``what`` has."""
    for number, one in enumerate(chain, start=1):
        if one.dim != dim:
            raise ValueError(f"transform {number} is {one.dim}D, {what} is {dim}D")


def move_along(chain: Sequence[Map], points: torch.Tensor) -> torch.Tensor:
    """Points ``(N, D)`` through a chain, the first listed map first."""
    for one in chain:
        points = one.move(points)
    return points


def map_points(chain: Sequence[Map], points) -> np.ndarray:
    """Carry points along a chain of maps, as ``antsApplyTransformsToPoints`` does.

    Parameters
    ----------
    chain : in the order of ``antsApplyTransforms``: the first listed map acts on the points first (and the
        last listed acts on the moving image first).
    points : (..., D) RAS mm. In the files of ITK and ANTs, points are LPS: x and y have the other sign.

    Returns
    -------
    (..., D) float64. The chain that pulls the moving image onto the fixed one (``[1Warp, 0GenericAffine]``)
    carries points of the **fixed** image to the moving one; for those of the moving image take the inverse
    chain (``[[0GenericAffine,1], 1InverseWarp]``).
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim < 1 or points.shape[-1] not in (2, 3):
        raise ValueError(f"points: expected shape (..., 2) or (..., 3), got {points.shape}")
    check_chain(chain, points.shape[-1], "a point")
    flat = torch.from_numpy(points.reshape(-1, points.shape[-1]).copy())
    return torch.cat([move_along(chain, part) for part in flat.split(BLOCK)]).numpy().reshape(points.shape)


def compose(chain: Sequence[Map], reference: Grid) -> Warp:
    """One displacement field on ``reference`` that does what a chain does, ``x + u(x) = chain(x)``.

    An image that is warped by it is interpolated once. Outside the reference the field is 0, as in every file
    of ITK: also where the chain has an affine map, which a chain of two files keeps there.
    """
    check_chain(chain, reference.dim, "the reference")
    field = np.empty((math.prod(reference.shape), reference.dim), np.float32)
    for here, index in index_blocks(reference.shape):
        points = map_tensor(reference.affine, index)
        field[here] = (move_along(chain, points) - points).numpy()
    return Warp(field.reshape(*reference.shape, reference.dim), reference)
