"""Two shapes and a random velocity, the smallest data on which a diffeomorphism can be shown."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter


def disc_and_c(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """A disc and a letter C, open to the right, with soft edges, each ``(1, 1, size, size)`` in [0, 1]."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    r, angle, unit = np.hypot(y, x), np.abs(np.arctan2(y, x)), size / 64

    def soft(distance):  # positive distances are inside
        return 1 / (1 + np.exp(-1.2 * distance))

    disc = soft(17 * unit - r)
    c = np.minimum(soft(7 * unit - np.abs(r - 16 * unit)), soft(r * (angle - 0.75)))
    return tuple(torch.from_numpy(image).float()[None, None] for image in (disc, c))


def random_velocity(
    shape, steps: int = 8, strength: float = 6.0, smoothness: float = 6.0, seed: int = 0
) -> torch.Tensor:
    """Smooth random velocity ``(1, steps, D, *shape)`` in voxels per unit time.

    It changes from step to step and fades out towards the border, so that its flow keeps the image's
    border in place. ``strength`` is its largest component, ``smoothness`` the Gaussian sigma in voxels.
    """
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((steps, len(shape), *shape))
    v = gaussian_filter(noise, (min(1.0, steps / 4), 0, *[smoothness] * len(shape)))
    for axis, s in enumerate(shape):
        distance = np.minimum(np.arange(s), np.arange(s)[::-1]) / (0.2 * s)
        fade = np.clip(distance, 0, 1) ** 2 * (3 - 2 * np.clip(distance, 0, 1))
        v *= fade.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return torch.from_numpy(v * strength / np.abs(v).max()).float()[None]
