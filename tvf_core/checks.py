"""One-line errors for wrong input, raised before any work starts."""

from __future__ import annotations

import math

import torch


def spatial_rank(image: torch.Tensor, name: str = "image") -> int:
    """Return the number of spatial dimensions of a ``(B, C, *S)`` tensor; ValueError unless it is 2 or 3."""
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(image).__name__}")
    rank = image.dim() - 2
    if rank not in (2, 3):
        raise ValueError(
            f"{name}: expected shape (batch, channel, *space) with 2 or 3 spatial axes, "
            f"got {tuple(image.shape)}"
        )
    if image.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {image.dtype}")
    if 0 in image.shape:
        raise ValueError(f"{name}: there is nothing in an array of shape {tuple(image.shape)}")
    return rank


def check_field(field: torch.Tensor, name: str = "displacement") -> int:
    """Check a vector field ``(B, D, *S)`` and return D; TypeError or ValueError if it is not one."""
    rank = spatial_rank(field, name)
    if field.shape[1] != rank:
        raise ValueError(f"{name}: {rank}D space needs {rank} components, got shape {tuple(field.shape)}")
    if not field.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {field.dtype}")
    return rank


def check_pair(moving: torch.Tensor, fixed: torch.Tensor, dim: int | None = None, values: bool = True) -> int:
    """Check two images for registration (same shape, one channel, float, finite, in [0, 1]); return their D.

    ``values=False`` skips the look at the values, for which the host must wait for a GPU.
    """
    for name, image in (("moving", moving), ("fixed", fixed)):
        rank = spatial_rank(image, name)
        if dim is not None and rank != dim:
            raise ValueError(
                f"{name}: this {dim}D model needs (batch, 1, *space) with {dim} spatial axes, "
                f"got shape {tuple(image.shape)}"
            )
        if image.shape[1] != 1:
            raise ValueError(
                f"{name}: expected one channel (batch, 1, *space), got shape {tuple(image.shape)}"
            )
        if not image.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point image in [0, 1], got {image.dtype}")
        if values and not torch.isfinite(image).all():
            raise ValueError(f"{name}: has NaN or infinite values; expected finite intensities in [0, 1]")
        if values:
            check_range(image, name)
    if moving.shape != fixed.shape:
        raise ValueError(
            f"moving {tuple(moving.shape)} and fixed {tuple(fixed.shape)} must have the same shape"
        )
    return rank


def check_range(image: torch.Tensor, name: str = "image") -> None:
    """Refuse an image with a finite value outside [0, 1], but for rounding (1e-4)."""
    image = image.detach()
    low, high = (float(value) for value in torch.aminmax(image))
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = image.isfinite()
        low = float(torch.where(finite, image, math.inf).min())
        high = float(torch.where(finite, image, -math.inf).max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(
            f"{name}: intensities from {low:.6g} to {high:.6g}, expected [0, 1]; scale them, such as by "
            "(x - x.min()) / (x.max() - x.min())" + " (this image is constant)" * (low == high)
        )


def check_one_pair(tensor: torch.Tensor, name: str) -> None:
    """Refuse a batch of several pairs, for measures of one pair."""
    if len(tensor) != 1:
        raise ValueError(
            f"{name}: expected one pair (1, ...), got a batch of {len(tensor)}; score the pairs one by one"
        )


def check_labels(labels: torch.Tensor, like: torch.Tensor | None = None, name: str = "labels") -> int:
    """Check a label map ``(B, 1, *S)``, of the same size as ``like`` if given, and return its D.

    It may be of any integer type and hold any numbers.
    """
    rank = spatial_rank(labels, name)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers (0 is background), got {labels.dtype}")
    if labels.shape[1] != 1:
        raise ValueError(f"{name}: expected (batch, 1, *space), got shape {tuple(labels.shape)}")
    if like is not None and labels.shape[2:] != like.shape[2:]:
        raise ValueError(f"{name}: space {tuple(labels.shape[2:])} differs from {tuple(like.shape[2:])}")
    return rank


def check_points(points: torch.Tensor, displacement: torch.Tensor) -> None:
    """Check voxel coordinates ``(B, K, D)`` against the displacement ``(B, D, *S)`` that will move them."""
    rank = check_field(displacement)
    if not isinstance(points, torch.Tensor):
        raise TypeError(f"points: expected a torch.Tensor, got {type(points).__name__}")
    if points.dim() != 3 or points.shape[0] != displacement.shape[0] or points.shape[2] != rank:
        raise ValueError(
            f"points: expected ({displacement.shape[0]}, number, {rank}) voxel coordinates, "
            f"got shape {tuple(points.shape)}"
        )
    if not points.is_floating_point():
        raise TypeError(f"points: expected floating-point voxel coordinates, got {points.dtype}")


def check_number(value, name: str, least: float, whole: bool = False, above: bool = False) -> None:
    """Refuse a value that is no finite number of at least ``least``.

    ``above``: it must be larger than ``least``. ``whole``: it must be an integer.
    """
    kind = int if whole else (int, float)
    right = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not right or value < least or (above and value == least):
        limit = f"above {least}" if above else f"of at least {least}"
        raise ValueError(f"{name}: expected a {'whole ' * whole}number {limit}, got {value!r}")


def one_of(value: str, known, what: str) -> str:
    """Return ``value`` if it is among ``known``; otherwise raise a ValueError that lists the known names."""
    if value not in list(known):  # a list, because a profile may give one, which no dict can look up
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(sorted(known))}")
    return value
