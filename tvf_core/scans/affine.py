"""Affine registration from a bad start: a coarse search, then optimisation of several starts at once.

The similarity is the normalised mutual information of samples of the fixed image, so that the contrasts of
the two images may differ. Every start of the search is a turn, a scale and a shift. The best of each shift is
optimised with no other freedom, the best of these go on as affine maps and on finer images, and the best of
all is the result. Everything is seeded: the same images give the same matrix.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..checks import one_of
from .affine_levels import ENOUGH_OVERLAP, Content, Level, find_content, mass_centre
from .affine_maps import change, turns_to_try
from .grids import Grid, check_matrix, map_by
from .mutual_information import BINS

KINDS = ("affine", "rigid")
PLAUSIBLE_STRETCH = (0.7, 1.4)  # singular values between two heads of adults lie well inside
LITTLE = 0.01  # similarity above that of samples in a random order; images of one thing have more
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
    matrix : (D+1, D+1) float64, fixed world to moving world; it mirrors only if ``start`` does.
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
        content = find_content(fixed, fixed_grid, mask)
        coarse = content.side / DIVISIONS
        levels = [
            Level(moving, fixed, moving_grid, fixed_grid, content, coarse * part, most, bins, generator)
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
    return matrix, _report(matrix, before, levels[-1], content, begun)


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


def _search(level: Level, content: Content, moving: torch.Tensor, moving_grid: Grid, scales) -> torch.Tensor:
    """Matrices ``(B, D+1, D+1)``: the files' own positions, then each shift with its best turn and scale."""
    dim = moving_grid.dim
    middle = moving_grid.world((np.array(moving_grid.shape) - 1) / 2)
    mass = mass_centre(moving, moving_grid)
    steps = content.side / 7 * np.concatenate([np.eye(dim), -np.eye(dim)])
    targets = [content.middle, middle, mass, *(mass + steps), *(middle + steps)]
    turns = torch.cat([scale * turns_to_try(dim) for scale in scales])
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


def _optimise(level: Level, matrices, freedom: str, steps: int, rate: float):
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
        now = matrices @ change(theta, middle, radius)
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


def _report(matrix, before, level: Level, content: Content, begun: float) -> AffineReport:
    with torch.no_grad():
        similarity, overlap = level.compare(torch.from_numpy(np.stack([before, matrix])))
        chance = level.by_chance(matrix)
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
    if new < chance + LITTLE:
        warnings.append(
            f"the images have hardly anything in common: similarity {new:.4f}, by chance {chance:.4f}"
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
