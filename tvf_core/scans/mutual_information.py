"""Normalised mutual information of samples of two images, for many alignments at once.

It tells how well one image predicts the other whatever their contrasts are. Studholme, Hill and Hawkes, "An
overlap invariant entropy measure of 3D medical image alignment" (1999), equation 7:
``(H(fixed) + H(moving)) / H(fixed, moving)``, which is 1 for independent images and 2 for equal ones.
"""

from __future__ import annotations

import torch

from .. import fields

BINS = 32


def bin_places(values: torch.Tensor, bins: int = BINS) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower bin of each value in [0, 1], and the share (in [0, 1]) that goes to the bin above it.

    The first bin has its centre at 0 and the last at 1. A value between two centres counts for both of them,
    the more the nearer, so that the histogram is differentiable in the values.
    """
    places = values.clamp(0, 1) * (bins - 1)
    lower = places.detach().floor().clamp(max=bins - 2)
    return lower.long(), places - lower


def joint_histogram(fixed, moving: torch.Tensor, weights: torch.Tensor, bins: int = BINS) -> torch.Tensor:
    """Joint histograms ``(B, bins, bins)`` (fixed, moving) that sum to 1, differentiable in ``moving``.

    Parameters
    ----------
    fixed : what :func:`bin_places` gives for the N values of the fixed image.
    moving : (B, N) values of the moving image in [0, 1], for B alignments.
    weights : (B, N) how much a sample counts; 0 for one outside the moving image.

    Notes
    -----
    Samples are counted in float64 where the device has it: a float32 count stops at 2**24.
    """
    lower_fixed, upper_share = fixed
    lower, share = bin_places(moving, bins)
    first = (
        lower + lower_fixed * bins + bins * bins * torch.arange(len(moving), device=moving.device)[:, None]
    )
    upper, whole = weights * share, weights
    parts = [
        (first, (whole - upper) * (1 - upper_share)),
        (first + 1, upper * (1 - upper_share)),
        (first + bins, (whole - upper) * upper_share),
        (first + bins + 1, upper * upper_share),
    ]
    exact = fields.for_sums(moving.device)
    counts = moving.new_zeros(len(moving) * bins * bins, dtype=exact)
    for index, weight in parts:
        counts = counts.scatter_add(0, index.flatten(), weight.flatten().to(exact))
    counts = counts.view(len(moving), bins, bins)
    return (counts / counts.sum((1, 2), keepdim=True).clamp_min(1e-3)).to(moving.dtype)


def entropy(shares: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the distributions in the rows ``(B, K)``."""
    return -torch.special.xlogy(shares, shares.clamp_min(torch.finfo(shares.dtype).tiny)).sum(1)


def normalised(histogram: torch.Tensor) -> torch.Tensor:
    """Normalised mutual information ``(B,)`` of joint histograms ``(B, bins, bins)``.

    It is 1 where one of the images has a single value: nothing can be learned from it.
    """
    joint = entropy(histogram.flatten(1))
    single = entropy(histogram.sum(1)) + entropy(histogram.sum(2))
    return torch.where(joint > 1e-6, single / joint.clamp_min(1e-6), torch.ones_like(joint))
