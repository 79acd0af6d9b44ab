"""Feature similarity (FSIM) of gray images: Zhang, Zhang, Mou & Zhang, IEEE TIP 20(8), 2011.

Two images are alike where their phase congruency (how far the waves of all lengths agree on an edge,
Kovesi 1999) and their gradients are alike. A place counts the more, the more structure one of the images has
there. The constants are those of the program by the authors of FSIM, for luminance from 0 to 255.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..checks import check_one_pair, check_range, spatial_rank

SCALES, ORIENTATIONS = 4, 4
SHORTEST_WAVE = 6  # wavelength of the finest scale in pixels
WAVE_FACTOR = 2.0  # ratio of the wavelengths of neighbouring scales
BANDWIDTH = 0.55  # sigma of a log-Gabor filter, divided by its centre frequency
SPREAD = math.pi / ORIENTATIONS / 1.2  # sigma of an orientation's Gaussian, in radians
NOISE_SIGMAS, NOISE_DIVISOR = 2.0, 1.7  # threshold: (mean + 2 sigma of the noise energy) / 1.7
EPSILON = 1.2e-7  # added to energy and amplitude, so that their ratio is defined where the image is flat
T1, T2 = 0.85, 160.0  # keep the ratios of phase congruencies and of gradients stable where both are small


def fsim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Feature similarity of two gray images, 1 for equal ones.

    Parameters
    ----------
    a, b : (1, 1, H, W) in [0, 1]. If the smaller side has 384 pixels or more, blocks of pixels are
        averaged first, so that this side comes near 256 pixels.

    Returns
    -------
    FSIM; NaN where an image has NaN or infinite values.

    Raises
    ------
    ValueError : the shapes differ or are not those of one 2D image each, since FSIM is defined for pictures,
        not for volumes; the images have a single pixel; or values lie outside [0, 1].

    Notes
    -----
    This is the standard FSIM of Zhang et al. (2011) without colour. The values that Chen et al. print in
    Table 1 (0.61 to 0.73) lie below what this definition gives for such images: another program made them.
    """
    for image in (a, b):
        spatial_rank(image, "fsim")
    if a.shape != b.shape or a.dim() != 4 or a.shape[1] != 1:
        raise ValueError(
            f"fsim: expected two 2D images (1, 1, H, W) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    check_one_pair(a, "fsim")
    picture(a.shape[2:])
    for image in (a, b):
        check_range(image, "fsim")
    pair = 255 * torch.cat([a, b]).double()
    if not pair.isfinite().all():
        return math.nan
    factor = max(1, math.floor(min(a.shape[2:]) / 256 + 0.5))
    if factor > 1:
        pair = F.avg_pool2d(pair, factor)
    congruency, gradient = phase_congruency(pair), _gradient(pair)
    alike = _ratio(congruency, T1) * _ratio(gradient, T2)
    weight = congruency.max(0).values
    return float((alike * weight).sum() / weight.sum())


def picture(shape) -> None:
    """Refuse a size of images for which FSIM is not defined."""
    if math.prod(shape) < 2:
        raise ValueError(
            "fsim: needs at least 2 pixels, because a single one has neither waves nor a gradient"
        )


def phase_congruency(images: torch.Tensor) -> torch.Tensor:
    """How far the waves of all lengths agree on an edge, pixel by pixel (Kovesi 1999, as FSIM uses it).

    Parameters
    ----------
    images : (B, 1, H, W) with values from 0 to 255.

    Returns
    -------
    (B, 1, H, W) in [0, 1].

    Notes
    -----
    The waves come from log-Gabor filters of 4 scales and 4 orientations; the noise is estimated from the
    shortest of them. A flat image has no waves and gets 1 everywhere (the program by the authors of FSIM
    divides 0 by 0 there).
    """
    gabor, angular = _filters(*images.shape[2:])
    spectrum = torch.fft.fft2(images)
    energy, amplitude = (torch.full_like(images, EPSILON) for _ in range(2))
    for direction in angular:
        filters = gabor * direction  # (scales, H, W)
        waves = torch.fft.ifft2(spectrum * filters)  # (B, scales, H, W); real: even part, imaginary: odd
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
    """Energy that noise alone would give, ``(B, 1, 1, 1)``, from the median size of the shortest waves."""
    height, width = filters.shape[1:]
    median = (shortest.flatten(1) ** 2).quantile(0.5, dim=1)  # the mean of the middle two of an even number
    # The square of a Rayleigh variable has a median of log 2 times its mean.
    power = (median / math.log(2)) / (filters[0] ** 2).sum()
    impulse = torch.fft.ifft2(filters).real * math.sqrt(height * width)
    # Squaring the sum over scales gives the square of each scale and every product of two scales twice.
    sigma = (power * (impulse.sum(0) ** 2).sum()).sqrt()
    threshold = sigma * (math.sqrt(math.pi / 2) + NOISE_SIGMAS * math.sqrt(2 - math.pi / 2))
    return (threshold / NOISE_DIVISOR).view(-1, 1, 1, 1)


def _filters(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-Gabor rings ``(scales, H, W)``, Gaussians of the angle ``(orientations, H, W)``, by frequency."""
    rows, columns = (_frequencies(n) for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    # A Butterworth filter of order 15 with cutoff 0.45 removes the corners of the spectrum.
    low_pass = 1 / (1 + (radius / 0.45) ** 30)
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
    """Cycles per pixel along an axis of n pixels, zero first.

    For odd n they reach exactly +-0.5, as in the program by the authors of FSIM. A single pixel
    has zero alone.
    """
    if n % 2:
        line = torch.arange(-(n - 1) / 2, (n - 1) / 2 + 1, dtype=torch.float64) / max(n - 1, 1)
    else:
        line = torch.arange(-n / 2, n / 2, dtype=torch.float64) / n
    return torch.fft.ifftshift(line)


def _gradient(images: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude by Scharr's kernel (3, 10, 3) / 16, with zeros beyond the border."""
    kernel = torch.tensor([[3.0, 0, -3], [10, 0, -10], [3, 0, -3]], dtype=images.dtype) / 16
    both = F.conv2d(images, torch.stack([kernel, kernel.T])[:, None], padding=1)
    return both.norm(dim=1, keepdim=True)


def _ratio(two: torch.Tensor, constant: float) -> torch.Tensor:
    """Similarity, pixel by pixel, of two maps stacked along the first axis; 1 where they are equal."""
    one, other = two
    return (2 * one * other + constant) / (one**2 + other**2 + constant)
