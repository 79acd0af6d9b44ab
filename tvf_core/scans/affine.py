"""Affine registration from a bad start: a coarse search, then optimisation of several starts at once.

The similarity is the normalised mutual information of samples of the fixed image, so that the contrasts of
the two images may differ. Every start of the search is a turn and a shift. The best turn of each shift is
optimised rigidly, the best of these go on with more freedom on finer images, and the best of all is the
result. Everything is seeded: the same images give the same matrix.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .. import fields
from ..checks import one_of
from .grids import Grid, check_matrix, map_by
from .mutual_information import BINS, bin_places, joint_histogram, normalised

KINDS = ("affine", "rigid")
ENOUGH_OVERLAP = 0.35  # below this share of the samples an alignment is penalised, and a result is doubtful
PLAUSIBLE_STRETCH = (0.7, 1.4)  # singular values between two heads of adults lie well inside
LITTLE = 0.01  # mutual information, beyond 1, that noise has too
DIVISIONS = 26  # voxels of the coarse image along its longest side: 7 mm for a brain, 9 mm for a head
SCALES = (0.87, 1.0, 1.15)  # sizes that the search for an affine map tries
_FREEDOM = ("rigid", "similar", "affine")  # turn and shift; and one scale; and all stretches
# Spacing in coarse voxels, most samples, and bins of each level. Few samples fill few bins.
_LEVELS = ((1, 3000, 16), (1, 12000, BINS), (1 / 2, 30000, BINS), (1 / 4, 60000, BINS))
# Level, number of alignments that go on, freedom, steps, first step in coarse voxels.
_STAGES = (
    (0, 6, "similar", 30, 0.4),
    (1, 4, "similar", 25, 0.25),
    (1, 2, "affine", 30, 0.2),
    (2, 1, "affine", 40, 0.15),
    (3, 1, "affine", 30, 0.05),
)
_CHUNK = 400_000  # samples that are looked up at once


@dataclass(frozen=True)
class AffineReport:
    """What an affine registration found, and what is doubtful about it.

    Attributes
    ----------
    similarity_before, similarity_after : normalised mutual information (1: none, 2: equal images) on the
        finest level, where the files' own positions (or ``start``) put the moving image, and of the result.
    overlap : share of the fixed image, or of its mask, that lies inside the moving image's field of view.
    singular_values : of the linear part, largest first: by how much it stretches lengths.
    shift : how far, in mm, the middle of the fixed image's content is moved.
    turn : angle of the rotation in the linear part, in degrees.
    seconds : time taken.
    warnings : one line for each doubt; empty if there is none.
    """

    similarity_before: float
    similarity_after: float
    overlap: float
    singular_values: tuple[float, ...]
    shift: float
    turn: float
    seconds: float
    warnings: tuple[str, ...]


def register(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    moving_grid: Grid,
    fixed_grid: Grid,
    *,
    kind: str = "affine",
    mask: torch.Tensor | None = None,
    start: np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[np.ndarray, AffineReport]:
    """Affine matrix that takes points of the fixed image's world to the moving image's world.

    Parameters
    ----------
    moving, fixed : (1, 1, *S) float in [0, 1], 2D or 3D; their sizes may differ.
    moving_grid, fixed_grid : where their voxels lie in the world (RAS mm).
    kind : ``affine``, or ``rigid`` for a turn and a shift alone.
    mask : (1, 1, *S) on the fixed grid; only where it is above 0 are the images compared, and a margin of
        about a coarse voxel around it, so that its outline counts too.
    start : (D+1, D+1) matrix from fixed to moving world from which to begin instead of searching.
    seed : of the random places at which the images are compared.
    progress : called with the name of each stage and the share (0 to 1) that is done.

    Returns
    -------
    matrix : (D+1, D+1) float64, fixed world to moving world; its determinant is positive if no ``start`` with
        another sign was given.
    report : see :class:`AffineReport`; it warns of a result that should not be trusted unseen.

    Raises
    ------
    ValueError : the arguments do not fit together, an image has one value everywhere, or the mask is empty.
    """
    begun = time.perf_counter()
    one_of(kind, KINDS, "kind")
    _check(moving, fixed, moving_grid, fixed_grid, mask)
    if start is not None:
        check_matrix(np.asarray(start, np.float64), fixed_grid.dim, "start")
    generator = torch.Generator().manual_seed(seed)
    tell = progress or (lambda stage, share: None)
    with torch.no_grad():
        content = _content(fixed, fixed_grid, mask)
        coarse = content.side / DIVISIONS
        levels = [
            _Level(moving, fixed, moving_grid, fixed_grid, content, coarse * part, most, bins, generator)
            for part, most, bins in _LEVELS
        ]
    before = np.eye(fixed_grid.dim + 1) if start is None else np.asarray(start, np.float64)
    tell("search", 0.0)
    if start is None:
        matrices = _search(levels[0], content, moving, moving_grid, SCALES if kind == "affine" else (1.0,))
    else:
        matrices = torch.from_numpy(before.copy())[None]
    for number, (level, keep, freedom, steps, rate) in enumerate(_STAGES):
        tell("optimise", (number + 1) / (len(_STAGES) + 1))
        matrices, losses = _optimise(
            levels[level], matrices, min(freedom, kind, key=_FREEDOM.index), steps, rate
        )
        matrices = matrices[losses.argsort()[:keep]]
    matrix = matrices[0].numpy()
    tell("optimise", 1.0)
    return matrix, _report(matrix, before, levels[-1], content, kind, begun)


def _check(moving, fixed, moving_grid, fixed_grid, mask) -> None:
    for name, image, grid in (("moving", moving, moving_grid), ("fixed", fixed, fixed_grid)):
        if tuple(image.shape) != (1, 1, *grid.shape) or not image.is_floating_point():
            raise ValueError(
                f"{name}: expected a float tensor of shape {(1, 1, *grid.shape)}, "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        if not image.isfinite().all():
            raise ValueError(f"{name}: has values that are not finite")
        if not image.max() > image.min():
            raise ValueError(f"{name}: has one value everywhere, there is nothing to align")
    if moving_grid.dim != fixed_grid.dim:
        raise ValueError(f"moving is {moving_grid.dim}D, fixed is {fixed_grid.dim}D")
    if mask is not None:
        if tuple(mask.shape) != (1, 1, *fixed_grid.shape):
            raise ValueError(
                f"mask: expected the fixed image's shape {tuple(fixed.shape)}, got {tuple(mask.shape)}"
            )
        if not (mask > 0).any():
            raise ValueError("mask: is empty")


@dataclass(frozen=True)
class _Content:
    """The part of the fixed image that counts: its weight image, its middle (mm), and its longest side."""

    weight: torch.Tensor
    middle: np.ndarray
    side: float


def _content(fixed: torch.Tensor, grid: Grid, mask: torch.Tensor | None) -> _Content:
    inside = mask > 0 if mask is not None else torch.ones_like(fixed, dtype=torch.bool)
    shown = inside if mask is not None else fixed > _threshold(fixed)
    where = shown[0, 0].nonzero().double().cpu().numpy()
    low, high = np.percentile(where, (0.5, 99.5), axis=0)
    side = float(((high - low + 1) * grid.spacing).max())
    return _Content(inside.to(fixed.dtype), grid.world(where.mean(0)), side)


def _threshold(image: torch.Tensor) -> float:
    """Otsu's threshold (1979): the two sides of it have the least variance within them."""
    low, high = float(image.min()), float(image.max())
    counts = torch.histc(image.float().cpu(), 128, low, high).double()
    levels = low + (torch.arange(128, dtype=torch.float64) + 0.5) * (high - low) / 128
    below, mass = counts.cumsum(0), (counts * levels).cumsum(0)
    above = below[-1] - below
    between = (mass * below[-1] - mass[-1] * below) ** 2 / (below * above).clamp_min(1)
    return float(levels[between[:-1].argmax()] + (high - low) / 256)


def _mass_centre(image: torch.Tensor, grid: Grid) -> np.ndarray:
    """Centre of mass, in mm, of what is brighter than Otsu's threshold."""
    where = (image > _threshold(image))[0, 0].nonzero().double().mean(0).cpu().numpy()
    return grid.world(where)


def _coarser(image: torch.Tensor, grid: Grid, spacing: float) -> tuple[torch.Tensor, np.ndarray]:
    """Image of about a spacing, as means over blocks of voxels and slightly smoothed, and its affine."""
    factors = [
        max(1, min(int(spacing / z + 0.01), s // 4)) for z, s in zip(grid.spacing, grid.shape, strict=True)
    ]
    pool = F.avg_pool3d if grid.dim == 3 else F.avg_pool2d
    image = pool(image.float(), factors) if max(factors) > 1 else image.float()
    affine = grid.affine.copy()
    affine[:-1, -1] = grid.world([(f - 1) / 2 for f in factors])
    affine[:-1, :-1] *= factors
    sizes = np.linalg.norm(affine[:-1, :-1], axis=0)
    for axis, size in enumerate(sizes):
        image = _smooth(image, axis, 0.5 * spacing / size)
    return image, affine


def _smooth(image: torch.Tensor, axis: int, sigma: float) -> torch.Tensor:
    """Gaussian of ``sigma`` voxels along an axis; the image keeps its border value outside."""
    reach = math.ceil(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2).to(image)
    rows = image.movedim(axis + 2, -1)
    flat = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (reach, reach), mode="replicate")
    return F.conv1d(flat, (kernel / kernel.sum())[None, None]).view(rows.shape).movedim(-1, axis + 2)


class _Level:
    """Samples of the fixed image at one resolution, and the moving image in which they are looked up."""

    def __init__(self, moving, fixed, moving_grid, fixed_grid, content, spacing, most, bins, generator):
        self.middle, self.side, self.bins = content.middle, content.side, bins
        image, affine = _coarser(moving, moving_grid, spacing)
        self.moving = _stretched(image)
        self.to_moving = torch.from_numpy(np.linalg.inv(affine))
        image, affine = _coarser(fixed, fixed_grid, spacing)
        weight, _ = _coarser(content.weight, fixed_grid, spacing)
        counted = F.max_pool3d(weight, 3, 1, 1) if fixed_grid.dim == 3 else F.max_pool2d(weight, 3, 1, 1)
        index = (counted[0, 0] > 0.01).nonzero().cpu()
        order = torch.randperm(len(index), generator=generator)[:most]
        # Places between the voxels: on them, interpolation smooths one image and not the other.
        index = index[order] + torch.rand(len(order), fixed_grid.dim, generator=generator) - 0.5
        self.points = torch.from_numpy(map_by(affine, index.numpy()) - self.middle).float().to(fixed.device)
        self.weights = _at(counted, index.to(fixed.device).float()[None])[0].clamp(0, 1)
        values = _at(_stretched(image), index.to(fixed.device).float()[None])[0]
        self.fixed = bin_places(values, bins)

    def compare(self, matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Similarity and overlap ``(B,)`` of matrices ``(B, D+1, D+1)`` from fixed to moving world."""
        shifted = torch.eye(len(self.middle) + 1, dtype=torch.float64)
        shifted[:-1, -1] = torch.from_numpy(self.middle)
        index = (self.to_moving @ matrices @ shifted)[:, :-1].to(self.points)
        places = self.points @ index[:, :, :-1].mT + index[:, None, :, -1]
        sizes = places.new_tensor(self.moving.shape[2:])
        border = torch.minimum(places + 0.5, sizes - 0.5 - places)  # voxels to the edge of the field of view
        inside = border.clamp(-0.5, 0.5).add(0.5).prod(2) * self.weights
        histogram = joint_histogram(self.fixed, _at(self.moving, places), inside, self.bins)
        return normalised(histogram), inside.sum(1) / self.weights.sum()

    def loss(self, matrices: torch.Tensor) -> torch.Tensor:
        similarity, overlap = self.compare(matrices)
        """What is minimised: few samples in common are similar by chance, so that they count less."""
        enough = (overlap / ENOUGH_OVERLAP).clamp_max(1)
        return ENOUGH_OVERLAP * (1 - enough) - enough * (similarity - 1)


def _at(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Values ``(B, N)`` of an image ``(1, 1, *S)`` at index points ``(B, N, D)``."""
    batch, number, dim = places.shape
    flat = places.view(1, batch * number, dim).movedim(2, 1)
    return fields.sample(image, flat.view(1, dim, -1, *[1] * (dim - 1)), padding="border").view(batch, number)


def _stretched(image: torch.Tensor) -> torch.Tensor:
    """Image with its values brought to [0, 1]."""
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp_min(1e-6)


def _search(
    level: _Level, content: _Content, moving: torch.Tensor, moving_grid: Grid, scales
) -> torch.Tensor:
    """Matrices ``(B, D+1, D+1)``: the files' own positions, then each shift with its best turn and scale."""
    dim = moving_grid.dim
    middle = moving_grid.world((np.array(moving_grid.shape) - 1) / 2)
    mass = _mass_centre(moving, moving_grid)
    steps = content.side / 7 * np.concatenate([np.eye(dim), -np.eye(dim)])
    targets = [content.middle, middle, mass, *(mass + steps), *(middle + steps)]
    turns = torch.cat([scale * _turns(dim) for scale in scales])
    number = len(level.points)
    best = []
    with torch.no_grad():
        for target in targets:
            matrices = torch.eye(dim + 1, dtype=torch.float64).repeat(len(turns), 1, 1)
            matrices[:, :-1, :-1] = turns
            matrices[:, :-1, -1] = torch.from_numpy(target) - turns @ torch.from_numpy(content.middle)
            losses = torch.cat([level.loss(part) for part in matrices.split(max(1, _CHUNK // number))])
            best.append(matrices[losses.argmin()])
    return torch.stack([torch.eye(dim + 1, dtype=torch.float64), *best])


def _turns(dim: int) -> torch.Tensor:
    """Rotations ``(T, D, D)`` of up to about 30 degrees, none of which is far from another."""
    if dim == 2:
        vectors = [(math.radians(a),) for a in range(-40, 41, 8)]
    else:
        step = math.radians(16)
        vectors = [np.multiply(v, step) for v in itertools.product((-1, 0, 1), repeat=3)]
        vectors += [np.multiply(v, 2 * step) for v in (*np.eye(3), *-np.eye(3))]
    return torch.matrix_exp(_skew(torch.tensor(np.array(vectors)), dim))


def _skew(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """Skew matrices ``(B, D, D)`` of rotation vectors ``(B, 3)``, in 2D of angles ``(B, 1)``."""
    result = vectors.new_zeros(len(vectors), dim, dim)
    pairs = ((1, 0),) if dim == 2 else ((2, 1), (0, 2), (1, 0))
    for k, (i, j) in enumerate(pairs):
        result[:, i, j], result[:, j, i] = vectors[:, k], -vectors[:, k]
    return result


def _symmetric(numbers: torch.Tensor, dim: int) -> torch.Tensor:
    """Symmetric matrices ``(B, D, D)``: one number is a multiple of the identity, else the triangle."""
    if numbers.shape[1] == 1:
        return numbers[:, :, None] * torch.eye(dim, dtype=numbers.dtype)
    result = numbers.new_zeros(len(numbers), dim, dim)
    for k, (i, j) in enumerate(itertools.combinations_with_replacement(range(dim), 2)):
        result[:, i, j] = result[:, j, i] = numbers[:, k]
    return result


def _change(theta: torch.Tensor, middle: torch.Tensor, radius: float) -> torch.Tensor:
    """Matrices about the middle: shifts, turns and stretches, all in mm at the radius."""
    dim = len(middle)
    turns = dim * (dim - 1) // 2
    linear = torch.matrix_exp(_skew(theta[:, dim : dim + turns] / radius, dim))
    if theta.shape[1] > dim + turns:
        linear = linear @ torch.matrix_exp(_symmetric(theta[:, dim + turns :] / radius, dim))
    result = torch.eye(dim + 1, dtype=theta.dtype).repeat(len(theta), 1, 1)
    result[:, :-1, :-1] = linear
    result[:, :-1, -1] = middle + theta[:, :dim] - linear @ middle
    return result


def _optimise(level: _Level, matrices, freedom: str, steps: int, rate: float):
    """Improve matrices by Adam, each for itself; returns the best that each passed, and their losses."""
    dim = len(level.middle)
    numbers = {"rigid": 0, "similar": 1, "affine": dim * (dim + 1) // 2}[freedom]
    theta = torch.zeros(len(matrices), dim * (dim + 1) // 2 + numbers, dtype=torch.float64)
    theta.requires_grad_()
    middle, radius = torch.from_numpy(level.middle), 0.35 * level.side
    rate = rate * level.side / DIVISIONS
    optimiser = torch.optim.Adam([theta], lr=rate, betas=(0.8, 0.95))
    best = torch.full((len(matrices),), torch.inf)
    found = matrices.clone()
    for step in range(steps + 1):
        now = matrices @ _change(theta, middle, radius)
        losses = level.loss(now)
        better = losses.detach().cpu() < best
        best[better], found[better] = losses.detach().cpu()[better], now.detach()[better]
        if step == steps:
            break
        optimiser.param_groups[0]["lr"] = rate * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
    return found, best


def _report(matrix, before, level: _Level, content: _Content, kind: str, begun: float) -> AffineReport:
    with torch.no_grad():
        similarity, overlap = level.compare(torch.from_numpy(np.stack([before, matrix])))
    old, new = similarity.tolist()
    linear = matrix[:-1, :-1]
    left, stretch, right = np.linalg.svd(linear)
    turn = left @ right
    cosine = turn[0, 0] if len(turn) == 2 else (np.trace(turn) - 1) / 2
    warnings = []
    low, high = PLAUSIBLE_STRETCH
    share = float(overlap[1])
    if share < ENOUGH_OVERLAP:
        warnings.append(
            f"only {share:.0%} of the fixed image lies inside the moving image after the affine registration"
        )
    if stretch.min() < low or stretch.max() > high:
        values = ", ".join(f"{s:.2f}" for s in stretch)
        warnings.append(
            f"the affine registration stretches by {values}; between two people it is {low} to {high}"
        )
    if new < old:
        warnings.append(f"the affine registration did not improve the similarity ({old:.4f} to {new:.4f})")
    if new < 1 + LITTLE:
        warnings.append(
            f"the images have hardly anything in common: their similarity is {new:.4f}, 1 is none"
        )
    return AffineReport(
        old,
        new,
        share,
        tuple(stretch.tolist()),
        float(np.linalg.norm(map_by(matrix, content.middle) - content.middle)),
        float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        time.perf_counter() - begun,
        tuple(warnings),
    )
