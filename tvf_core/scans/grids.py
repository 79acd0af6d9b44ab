"""Voxel grids in world coordinates: where the voxels of an image lie, and resampling between grids.

The world is RAS millimetres (x to the right, y to the front, z to the top), as in nibabel. In 2D it has two
axes. Files of ITK use LPS, in which x and y have the other sign: :mod:`tvf_core.scans.transforms` converts
where it reads and writes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch

from ..checks import check_number, one_of, spatial_rank
from ..fields import for_sums, sample

BLOCK = 2**18  # points that are computed at once, so that memory does not grow with the grid
PARTS = 8  # into which a block is cut: PyTorch samples them in parallel
KINDS = ("linear", "nearest")


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
    if not (np.abs(matrix) < 1e9).all():
        raise ValueError(f"{name}: has NaN, infinite or absurdly large values")
    if not np.allclose(matrix[-1], [0] * dim + [1]):
        raise ValueError(f"{name}: the last row must be {[0] * dim + [1]}, got {list(matrix[-1])}")
    lengths = np.linalg.norm(matrix[:-1, :-1], axis=0)
    if not (lengths > 0).all() or abs(np.linalg.det(matrix[:-1, :-1] / lengths)) < 1e-6:
        raise ValueError(f"{name}: is singular, it maps the whole space to a plane, a line or a point")


def working_grid(
    fixed: Grid,
    moving: Grid,
    matrix: np.ndarray,
    spacing: float | None = None,
    multiple: int | tuple[int, ...] = 1,
    directions: np.ndarray | None = None,
) -> Grid:
    """Isotropic grid over the common field of view of two images, in the fixed image's world.

    Parameters
    ----------
    matrix : (D+1, D+1) affine map from the fixed world to the moving world; the identity if the files'
        positions are right already.
    spacing : mm. The default is the coarser of the two images' own, which for an image is the geometric mean
        over its axes: it has about as many voxels then as that image.
    multiple : the sizes are rounded up to multiples of it (one number, or one per axis).
    directions : (D, D) orthonormal; column d is the direction in the world of the grid's axis d. By default
        the axes are those of the world (to the right, to the front, to the top).

    Returns
    -------
    Grid. The boxes of both images, with the edges of their voxels, are taken along ``directions``, the moving
    one after ``matrix`` has brought it back; the grid covers their intersection and has the same centre.

    Raises
    ------
    ValueError : the images do not overlap; the message names the remedy.
    """
    dim = fixed.dim
    if moving.dim != dim:
        raise ValueError(f"moving is {moving.dim}D, fixed is {dim}D")
    check_matrix(matrix, dim, "affine")
    means = [abs(np.linalg.det(grid.affine[:-1, :-1])) ** (1 / dim) for grid in (fixed, moving)]
    spacing = max(means) if spacing is None else spacing
    check_number(float(spacing), "spacing", 0, above=True)
    axes = np.eye(dim) if directions is None else np.asarray(directions, np.float64)
    if axes.shape != (dim, dim) or not np.allclose(axes.T @ axes, np.eye(dim), atol=1e-6):
        raise ValueError(f"directions: expected {dim} orthonormal columns, got {axes.tolist()}")
    back = np.linalg.inv(matrix)
    boxes = [corners @ axes for corners in (fixed.corners(), map_by(back, moving.corners()))]
    low = np.max([box.min(0) for box in boxes], axis=0)
    high = np.min([box.max(0) for box in boxes], axis=0)
    extent, centre = high - low, (high + low) / 2
    if (extent > 0).all():  # there may still be nothing in common: the boxes of oblique images are larger
        steps = (np.indices([16] * dim).reshape(dim, -1).T + 0.5) / 16
        probes = (low + steps * extent) @ axes.T
        both = inside(fixed.index(probes), fixed.shape)
        both &= inside(moving.index(map_by(matrix, probes)), moving.shape)
    if (extent <= 0).any() or not both.any():
        gap = np.linalg.norm(fixed.corners().mean(0) - map_by(back, moving.corners()).mean(0))
        raise ValueError(
            f"moving and fixed do not overlap in the world: their centres are {gap:.0f} mm apart; "
            "find the affine map (--affine auto) or give one (--affine FILE)"
        )
    multiples = np.broadcast_to(multiple, dim)
    sizes = [math.ceil(math.ceil(e / spacing - 1e-4) / m) * int(m) for e, m in zip(extent, multiples)]
    affine = np.eye(dim + 1)
    affine[:-1, :-1] = spacing * axes
    affine[:-1, -1] = axes @ (centre - spacing * (np.array(sizes) - 1) / 2)
    return Grid(tuple(sizes), affine)


def inside(index, shape):
    """Whether index points ``(..., D)`` lie in the voxels of an image, by the rule of ITK.

    The half voxel beyond the last centres belongs to the image: ``-0.5 <= index < size - 0.5`` along each
    axis. NaN lies outside. The points may be an array or a tensor.
    """
    within = (index[..., 0] >= -0.5) & (index[..., 0] < shape[0] - 0.5)
    for axis, size in enumerate(shape[1:], start=1):
        within &= (index[..., axis] >= -0.5) & (index[..., axis] < size - 0.5)
    return within


def index_blocks(shape, device=None) -> Iterator[tuple[slice, torch.Tensor]]:
    """Index points of all voxels of a grid, in C order and in blocks of limited size.

    Yields
    ------
    Which of the flattened voxels they are, and their indices ``(N, D)`` in float64 (float32 on Apple's GPUs).
    """
    total = math.prod(shape)
    for start in range(0, total, BLOCK):
        here = slice(start, min(start + BLOCK, total))
        rest, axes = torch.arange(here.start, here.stop, device=device), []
        for size in reversed(shape):
            axes.append(rest % size)
            rest = rest // size
        yield here, torch.stack(axes[::-1], dim=1).to(for_sums(rest.device))


def map_tensor(matrix: np.ndarray, points: torch.Tensor) -> torch.Tensor:
    """Points ``(N, D)`` mapped by a ``(D+1, D+1)`` matrix."""
    matrix = torch.as_tensor(np.array(matrix), dtype=points.dtype, device=points.device)
    return torch.addmm(matrix[:-1, -1], points, matrix[:-1, :-1].T)


def sample_at(
    values: torch.Tensor, index: torch.Tensor, kind: str = "linear", outside: float | None = 0.0
) -> torch.Tensor:
    """Values of an image at index points, with the border of ITK.

    Parameters
    ----------
    values : (1, C, *S); for ``nearest`` of any type.
    index : (N, D) floating-point index points.
    kind : ``linear`` or ``nearest``, which takes the upper of two voxels equally near.
    outside : value of what is not :func:`inside` the image; None: the value at the nearest border.

    Returns
    -------
    (C, N). In the half voxel beyond the last centres the image keeps its border value, as in ITK.
    """
    shape = values.shape[2:]
    if one_of(kind, KINDS, "kind of interpolation") == "nearest":
        place = torch.zeros(len(index), dtype=torch.long, device=index.device)
        for axis, size in enumerate(shape):
            place = place * size + (index[:, axis] + 0.5).floor().long().clamp_(0, size - 1)
        found = values.flatten(2)[0].index_select(1, place)
    else:
        parts = torch.nn.functional.pad(index, (0, 0, 0, -len(index) % PARTS)).view(PARTS, -1, len(shape))
        points = parts.movedim(2, 1).reshape(PARTS, len(shape), -1, *[1] * (len(shape) - 1))
        sampled = sample(values, points, padding="border")
        found = sampled.flatten(2).movedim(1, 0).flatten(1)[:, : len(index)]
    return found if outside is None else found.masked_fill_(~inside(index, shape), outside)


def resample(
    values: torch.Tensor,
    source: Grid,
    target: Grid,
    matrix: np.ndarray | None = None,
    kind: str = "linear",
    outside: float = 0.0,
    low_pass: bool = True,
) -> torch.Tensor:
    """An image on another grid: ``out(y) = image(matrix y)`` with both positions in the world.

    Parameters
    ----------
    values : (1, C, *S) on the grid ``source``.
    matrix : (D+1, D+1) map from the target's world to the source's; by default the identity.
    kind, outside : as in :func:`sample_at`.
    low_pass : smooth the image along each axis on which the target is coarser, so that what the target cannot
        show does not turn up as something else (:func:`smoothing`). Only with ``linear``.

    Returns
    -------
    (1, C, *target.shape), of the type of ``values``.

    Notes
    -----
    Beside ``values`` and the result, at most two images of the size of ``values`` are in memory (for
    smoothing), and blocks of ``BLOCK`` points.
    """
    if spatial_rank(values) != source.dim or tuple(values.shape[2:]) != source.shape or len(values) != 1:
        raise ValueError(f"values: expected (1, C, *{source.shape}), got shape {tuple(values.shape)}")
    if target.dim != source.dim:
        raise ValueError(f"the image is {source.dim}D, the grid that it is wanted on is {target.dim}D")
    across = np.eye(source.dim + 1) if matrix is None else np.asarray(matrix, np.float64)
    check_matrix(across, source.dim, "affine")
    whole = np.linalg.inv(source.affine) @ across @ target.affine
    if low_pass and kind == "linear":
        values = smooth(values, smoothing(whole))
    out = values.new_empty((values.shape[1], math.prod(target.shape)))
    for here, index in index_blocks(target.shape, values.device):
        out[:, here] = sample_at(values, map_tensor(whole, index), kind, outside)
    return out.view(1, -1, *target.shape)


def smoothing(whole: np.ndarray) -> list[float]:
    """Standard deviations, in voxels of the source along its axes, of the low-pass before resampling.

    Parameters
    ----------
    whole : (D+1, D+1) from index points of the target to those of the source.

    Returns
    -------
    ``sqrt(r**2 - 1) / 2.355`` for an axis on which the target's voxels are r > 1 times as wide, else 0: a
    profile with a full width at half maximum of one voxel becomes one of r voxels. 2.355 is
    ``2 sqrt(2 ln 2)``. For an oblique target, r is the root of the sum of squares over its three axes.
    """
    ratios = np.linalg.norm(whole[:-1, :-1], axis=1)
    return [math.sqrt(max(float(r) ** 2 - 1, 0)) / 2.355 for r in ratios]


def smooth(values: torch.Tensor, sigmas) -> torch.Tensor:
    """Gaussian smoothing ``(1, C, *S)`` by a standard deviation per axis in voxels; the border continues.

    The kernel ends at 4 standard deviations; axes with less than 0.05 voxels are left as they are.
    """
    for axis, sigma in enumerate(sigmas, start=2):
        if sigma < 0.05:
            continue
        radius = math.ceil(4 * sigma)
        size = values.shape[axis]
        places = torch.arange(-radius, size + radius, device=values.device).clamp_(0, size - 1)
        padded = values.index_select(axis, places)
        weights = [math.exp(-((k / sigma) ** 2) / 2) for k in range(-radius, radius + 1)]
        shape = values.shape
        del values  # a large image whose smoothed copy begins its life here
        values = padded.new_zeros(shape)
        for shift, weight in enumerate(weights):
            values.add_(padded.narrow(axis, shift, size), alpha=weight / sum(weights))
    return values
