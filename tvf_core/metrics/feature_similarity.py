"""Feature similarity (FSIM) of gray images: Zhang, Zhang, Mou & Zhang, IEEE TIP 20(8), 2011.

Two images are alike where their phase congruency (how far the waves of all lengths agree on an edge, Kovesi 1999) and
their gradients are alike; places where either has structure count more. The constants are those of the paper's own
program, for luminance from 0 to 255.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

SCALES, ORIENTATIONS = 4, 4
SHORTEST_WAVE, WAVE_FACTOR, BANDWIDTH = (
    6,
    2.0,
    0.55,
)  # pixels; ratio of neighbouring scales; sigma of the log-Gabor over its centre
SPREAD = math.pi / ORIENTATIONS / 1.2  # sigma of an orientation's Gaussian, in radians
NOISE_SIGMAS, NOISE_DIVISOR = 2.0, 1.7  # threshold: (mean + 2 sigma of the noise energy) / 1.7
EPSILON = 1.2e-7  # what is added to energy and amplitude, so that flat places are defined
T1, T2 = 0.85, 160.0  # of phase congruency and of gradients


def fsim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Feature similarity of two gray images, 1 for equal ones.

    Parameters
    ----------
    a, b : (1, 1, H, W) in [0, 1]. If the smaller side has 384 pixels or more, blocks of pixels are averaged first, so that
        it comes near 256.

    Raises
    ------
    ValueError : shapes that differ or are not 2D: FSIM is defined for pictures, not for volumes.

    Notes
    -----
    Standard FSIM as the authors named above define it, without colour. The values that Chen et al. print in Table 1
    (0.61 to 0.73) lie below what this definition gives for such images: their program must have been another one.
    """
    if a.shape != b.shape or a.dim() != 4 or a.shape[:2] != (1, 1):
        raise ValueError(
            f"fsim: expected two 2D images (1, 1, H, W) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    pair = 255 * torch.cat([a, b]).double()
    factor = max(1, math.floor(min(a.shape[2:]) / 256 + 0.5))
    if factor > 1:
        pair = F.avg_pool2d(pair, factor)
    congruency, gradient = phase_congruency(pair), _gradient(pair)
    alike = _ratio(congruency, T1) * _ratio(gradient, T2)
    weight = congruency.max(0).values
    return float((alike * weight).sum() / weight.sum())


def phase_congruency(images: torch.Tensor) -> torch.Tensor:
    """Phase congruency of ``(B, 1, H, W)`` images with values 0 to 255: ``(B, 1, H, W)`` in [0, 1].

    Log-Gabor filters of 4 scales and 4 orientations; noise is estimated from the shortest waves (Kovesi 1999, as FSIM uses it).
    A flat image, where no wave has any size, counts as 1 everywhere (the published program divides 0 by 0 there).
    """
    gabor, angular = _filters(*images.shape[2:])
    spectrum = torch.fft.fft2(images)
    energy, amplitude = (torch.full_like(images, EPSILON) for _ in range(2))
    for direction in angular:
        filters = gabor * direction  # (scales, H, W)
        waves = torch.fft.ifft2(spectrum * filters)  # (B, scales, H, W): even part real, odd part imaginary
        size = waves.abs()
        total = waves.sum(1, keepdim=True)
        mean = total / (total.abs() + EPSILON)  # unit vector of the mean phase
        along, across = (waves * mean.conj()).real, (waves * mean.conj()).imag
        found = (along - across.abs()).sum(1, keepdim=True)
        found = found - _noise(size[:, :1], filters)
        energy = energy + found.clamp_min(0)
        amplitude = amplitude + size.sum(1, keepdim=True)
    return energy / amplitude


def _noise(shortest: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Energy that noise alone would give, ``(B, 1, 1, 1)``: from the median response at the shortest waves."""
    height, width = filters.shape[1:]
    median = (shortest.flatten(1) ** 2).quantile(0.5, dim=1)  # of an even number the mean of the middle two
    power = (median / math.log(2)) / (
        filters[0] ** 2
    ).sum()  # median of a Rayleigh variable's square: mean times log 2
    impulse = torch.fft.ifft2(filters).real * math.sqrt(height * width)
    sigma = (
        power * (impulse.sum(0) ** 2).sum()
    ).sqrt()  # the squared sum: all squares, and every product twice
    threshold = sigma * (math.sqrt(math.pi / 2) + NOISE_SIGMAS * math.sqrt(2 - math.pi / 2))
    return (threshold / NOISE_DIVISOR).view(-1, 1, 1, 1)


def _filters(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-Gabor rings ``(scales, H, W)`` and angular Gaussians ``(orientations, H, W)`` in the frequency domain."""
    rows, columns = (_frequencies(n) for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    low_pass = 1 / (
        1 + (radius / 0.45) ** 30
    )  # Butterworth, cutoff 0.45, order 15: no corners of the spectrum
    radius = radius.clone()
    radius[0, 0] = 1
    centres = [1 / (SHORTEST_WAVE * WAVE_FACTOR**s) for s in range(SCALES)]
    rings = torch.stack(
        [torch.exp(-((radius / c).log() ** 2) / (2 * math.log(BANDWIDTH) ** 2)) * low_pass for c in centres]
    )
    rings[:, 0, 0] = 0
    theta = torch.atan2(-y, x)
    angles = [k * math.pi / ORIENTATIONS for k in range(ORIENTATIONS)]
    turn = [
        torch.atan2(
            theta.sin() * math.cos(t) - theta.cos() * math.sin(t),
            theta.cos() * math.cos(t) + theta.sin() * math.sin(t),
        ).abs()
        for t in angles
    ]
    return rings, torch.stack([torch.exp(-(d**2) / (2 * SPREAD**2)) for d in turn])


def _frequencies(n: int) -> torch.Tensor:
    """Cycles per pixel along an axis, zero first. For odd n they reach exactly +-0.5, as the published program has them."""
    if n % 2:
        line = torch.arange(-(n - 1) / 2, (n - 1) / 2 + 1, dtype=torch.float64) / (n - 1)
    else:
        line = torch.arange(-n / 2, n / 2, dtype=torch.float64) / n
    return torch.fft.ifftshift(line)


def _gradient(images: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude by Scharr's (3, 10, 3) / 16 with zeros outside."""
    kernel = torch.tensor([[3.0, 0, -3], [10, 0, -10], [3, 0, -3]], dtype=images.dtype) / 16
    both = F.conv2d(images, torch.stack([kernel, kernel.T])[:, None], padding=1)
    return both.norm(dim=1, keepdim=True)


def _ratio(two: torch.Tensor, constant: float) -> torch.Tensor:
    """Similarity of the two maps of a pair, 1 where they are equal."""
    one, other = two
    return (2 * one * other + constant) / (one**2 + other**2 + constant)
