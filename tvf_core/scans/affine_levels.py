"""What an affine registration compares: samples of the fixed image at several resolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .. import fields
from .grids import Grid, map_by
from .mutual_information import bin_places, joint_histogram, normalised

ENOUGH_OVERLAP = 0.35  # below this share of the samples an alignment is penalised, and a result is doubtful
_PLENTY = 500_000  # voxels are enough to tell where the content of an image lies


@dataclass(frozen=True)
class Content:
    """The part of the fixed image that counts: its weight image, its middle (mm), and its longest side."""

    weight: torch.Tensor
    middle: np.ndarray
    side: float


def find_content(fixed: torch.Tensor, grid: Grid, mask: torch.Tensor | None) -> Content:
    """What counts: the mask, else the whole image; then what is bright tells its middle and size."""
    inside = mask > 0 if mask is not None else torch.ones_like(fixed, dtype=torch.bool)
    where = _where(inside if mask is not None else fixed > threshold(fixed))
    low, high = np.percentile(where, (0.5, 99.5), axis=0)
    side = float(((high - low + 1) * grid.spacing).max())
    return Content(inside.to(fixed.dtype), grid.world(where.mean(0)), side)


def threshold(image: torch.Tensor) -> float:
    """Otsu's threshold (1979): the two sides of it have the least variance within them."""
    low, high = float(image.min()), float(image.max())
    counts = torch.histc(image.float().cpu(), 128, low, high).double()
    levels = low + (torch.arange(128, dtype=torch.float64) + 0.5) * (high - low) / 128
    below, mass = counts.cumsum(0), (counts * levels).cumsum(0)
    above = below[-1] - below
    between = (mass * below[-1] - mass[-1] * below) ** 2 / (below * above).clamp_min(1)
    return float(levels[between[:-1].argmax()] + (high - low) / 256)


def mass_centre(image: torch.Tensor, grid: Grid) -> np.ndarray:
    """Centre of mass, in mm, of what is brighter than Otsu's threshold."""
    return grid.world(_where(image > threshold(image)).mean(0))


def _where(shown: torch.Tensor) -> np.ndarray:
    """Index points (K, D) of what is True, in large images of every other voxel or fewer."""
    step = max(1, round((shown.numel() / _PLENTY) ** (1 / (shown.dim() - 2))))
    found = shown[(0, 0, *[slice(step // 2, None, step)] * (shown.dim() - 2))].nonzero()
    if not len(found):  # too little is True for that
        return shown[0, 0].nonzero().double().cpu().numpy()
    return (found * step + step // 2).double().cpu().numpy()


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


class Level:
    """Samples of the fixed image at one resolution, and the moving image in which they are looked up."""

    def __init__(self, moving, fixed, moving_grid, fixed_grid, content, spacing, most, bins, generator):
        self.middle, self.side, self.bins = content.middle, content.side, bins
        image, affine = _coarser(moving, moving_grid, spacing)
        self.moving = _stretched(image)
        self.to_moving = torch.from_numpy(np.linalg.inv(affine))
        image, affine = _coarser(fixed, fixed_grid, spacing)
        weight, _ = _coarser(content.weight, fixed_grid, spacing)
        counted = F.max_pool3d(weight, 3, 1, 1) if fixed_grid.dim == 3 else F.max_pool2d(weight, 3, 1, 1)
        counted = counted / counted.max()  # a mask may be much smaller than a coarse voxel
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
        index = (self.to_moving @ matrices @ shifted)[:, :-1].float().to(self.points)
        places = self.points @ index[:, :, :-1].mT + index[:, None, :, -1]
        sizes = places.new_tensor(self.moving.shape[2:])
        border = torch.minimum(places + 0.5, sizes - 0.5 - places)  # voxels to the edge of the field of view
        inside = border.clamp(-0.5, 0.5).add(0.5).prod(2) * self.weights
        histogram = joint_histogram(self.fixed, _at(self.moving, places), inside, self.bins)
        return normalised(histogram), inside.sum(1) / self.weights.sum()

    def by_chance(self, matrix: np.ndarray) -> float:
        """Similarity under a matrix if the samples of the fixed image are put into a random order."""
        order = torch.randperm(len(self.points), generator=torch.Generator().manual_seed(0))
        kept, self.fixed = self.fixed, tuple(part[order.to(part.device)] for part in self.fixed)
        similarity, _ = self.compare(torch.from_numpy(matrix)[None])
        self.fixed = kept
        return float(similarity)

    def loss(self, matrices: torch.Tensor) -> torch.Tensor:
        """What is minimised: few samples in common are similar by chance, so that they count less."""
        similarity, overlap = self.compare(matrices)
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
