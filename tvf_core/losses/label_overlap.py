"""Overlap of a linearly warped label map with a fixed one, computed without one-hot maps.

Warping the one-hot map of label k gives at each voxel the share ``p_k`` of its 2^D neighbours that carry
label k, weighted by the interpolation weights. Where all neighbours carry one label, the share of that label
is 1 for any weights and has no gradient, so that such voxels only need to be counted. The others need their
weights: a neighbour with weight w and label l adds ``w`` to the intersection if the fixed map also has l
there, and ``w p_l`` to the sum of squares.

On CUDA, counting uses atomic additions in no fixed order, so that the last digits may differ from run to run,
as they do for any warp on CUDA.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from ..checks import check_field, check_labels
from ..fields import at_least_float32, for_sums
from ..labels import compact, occurring, small, whole_numbers

# Voxels per chunk: this bounds the memory, and small chunks fit a CPU's cache.
CHUNK = {"cpu": 150_000, "cuda": 2_000_000}


def soft_dice(
    moving_labels: torch.Tensor,
    displacement: torch.Tensor,
    fixed_labels: torch.Tensor,
    labels: Iterable[int] | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """1 - mean soft Dice of a linearly warped label map (Dice of the paper's eq. 3).

    Parameters
    ----------
    moving_labels, fixed_labels : (B, 1, *S) integers of any type.
    displacement : (B, D, *S) voxels.
    labels : the label numbers that count, background (0) among them; every label of the maps must be one of
        them. None: the labels that occur in the batch, which takes time to find.

    Returns
    -------
    The mean over the labels that occur in the moving or the fixed map of a pair, and then over pairs. NaN if
    the displacement has NaN or infinite values.

    Raises
    ------
    ValueError : a map has a label that is not in ``labels``.

    Notes
    -----
    The value is computed from the label maps themselves and equals that of warping one channel per label.
    The released code takes the mean over all 36 labels of its data. That is the same where all occur; a label
    that does not adds 1 / 36 to its loss, and no gradient.
    """
    (common, warped, fixed), occurs = _overlap(moving_labels, displacement, fixed_labels, labels)
    scores = 2 * common / (warped + fixed + eps)
    return 1 - (scores.sum(1) / occurs.sum(1)).mean().to(displacement.dtype)


def label_mse(
    moving_labels: torch.Tensor,
    displacement: torch.Tensor,
    fixed_labels: torch.Tensor,
    labels: Iterable[int] | None = None,
) -> torch.Tensor:
    """Mean squared difference of warped and fixed one-hot label maps (label term of the paper's eq. 2).

    Arguments, mean and errors are those of :func:`soft_dice`.
    """
    (common, warped, fixed), occurs = _overlap(moving_labels, displacement, fixed_labels, labels)
    squares = (warped + fixed - 2 * common).sum(1) / occurs.sum(1)
    return squares.mean().div(displacement[0, 0].numel()).to(displacement.dtype)


def _overlap(moving_labels, displacement, fixed_labels, labels):
    """Check the input; return the first three sums of :func:`label_overlap`, and which labels occur.

    The sums, each (B, labels), are NaN for a displacement that is not finite.
    """
    check_field(displacement)
    maps = {"moving_labels": moving_labels, "fixed_labels": fixed_labels}
    for name, value in maps.items():
        check_labels(value, displacement, name)
        if value.shape[0] != displacement.shape[0]:
            raise ValueError(
                f"{name}: a batch of {value.shape[0]}, "
                f"but the displacement is a batch of {displacement.shape[0]}"
            )
    numbers = occurring(*maps.values()) if labels is None else sorted(set(whole_numbers(labels)))
    moving, fixed = (compact(value, numbers, name) for name, value in maps.items())
    wide = displacement.to(at_least_float32(displacement))
    sums = label_overlap(moving, wide, fixed, len(numbers))[0]
    values = displacement.detach().flatten(1)
    ends = torch.stack([values.amin(1), values.amax(1)])  # both are NaN where one value is
    zero_or_nan = torch.where(ends.isfinite().all(0), 0.0, torch.nan)[:, None]
    return sums[:3] + zero_or_nan, sums[2] + sums[3] > 0


@torch.library.custom_op("tvf_core::label_overlap", mutates_args=())
def label_overlap(
    moving_labels: torch.Tensor, displacement: torch.Tensor, fixed_labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over voxels of ``p f``, ``p^2``, ``f^2`` and ``m^2`` for every class.

    p, f and m are the warped, the fixed and the moving one-hot map of the class.

    Parameters
    ----------
    moving_labels, fixed_labels : (B, 1, *S) integers in [0, classes): :func:`tvf_core.labels.compact` maps.
    displacement : (B, D, *S) voxels, float32 or float64. Outside the moving map there is no label.

    Returns
    -------
    The sums, (4, B, classes) float64, and a map for the backward pass: the label of a voxel's neighbours
    where they agree, otherwise ``classes + 1``.
    """
    batch, shape = displacement.shape[0], displacement.shape[2:]
    seen = torch.empty(batch, *shape, dtype=small(classes), device=displacement.device)
    sums = torch.zeros(4, batch, classes, dtype=for_sums(displacement.device), device=displacement.device)
    for k in range(batch):
        moving = _Neighbourhood(moving_labels[k, 0], classes)
        sums[3, k] = torch.bincount(moving_labels[k].flatten(), minlength=classes)
        for rows in _chunks(displacement):
            fixed = fixed_labels[k, 0, rows].flatten()
            places = _places(displacement[k, :, rows], rows.start, displacement.shape[2:])
            found = moving.agreement.index_select(0, moving.corner([place.floor() for place in places]))
            seen[k, rows] = found.view_as(seen[k, rows])
            # One count serves both sums: odd bins where the fixed label is the same, even bins elsewhere.
            counts = torch.bincount(2 * found.int() + (found == fixed), minlength=2 * (classes + 2))
            counts = counts.view(-1, 2)[:classes]
            edge = (found == classes + 1).nonzero()[:, 0]
            labels, weights, _ = moving.neighbours([place[edge] for place in places])
            same = ((labels == fixed[edge]) * weights).sum(0)
            sums[0, k] += counts[:, 1] + _bincount(fixed[edge], same, classes)
            squares = weights * _shares(labels, weights)
            sums[1, k] += counts.sum(1) + _bincount(labels.flatten(), squares.flatten(), classes)
            sums[2, k] += torch.bincount(fixed, minlength=classes)
    return sums, seen


@torch.library.custom_op("tvf_core::label_overlap_backward", mutates_args=())
def label_overlap_backward(
    slopes: torch.Tensor,
    moving_labels: torch.Tensor,
    displacement: torch.Tensor,
    fixed_labels: torch.Tensor,
    seen: torch.Tensor,
    classes: int,
) -> torch.Tensor:
    """Gradient for the displacement, given that for the sums, ``slopes`` (4, B, classes)."""
    gradient = displacement.new_zeros(displacement.shape)
    # Neighbours outside the map have a class of their own, whose slopes are 0.
    in_common, in_square = F.pad(slopes[:2], [0, 1]).to(displacement.dtype)
    for k in range(displacement.shape[0]):
        moving = _Neighbourhood(moving_labels[k, 0], classes)
        for rows in _chunks(displacement):
            edge = (seen[k, rows].flatten() == classes + 1).nonzero()[:, 0]
            places = _places(displacement[k, :, rows], rows.start, displacement.shape[2:])
            labels, weights, per_axis = moving.neighbours([place[edge] for place in places])
            fixed, index = fixed_labels[k, 0, rows].flatten()[edge], labels.int()
            per_neighbour = in_common[k][index] * (labels == fixed)
            per_neighbour += 2 * in_square[k][index] * _shares(labels, weights)
            for axis, target in enumerate(gradient[k, :, rows]):
                if displacement.shape[2 + axis] == 1:
                    continue
                others = per_axis[:axis] + per_axis[axis + 1 :]
                slope = 0
                for corner, value in zip(_corners(len(per_axis)), per_neighbour):
                    for weight, step in zip(others, corner[:axis] + corner[axis + 1 :]):
                        value = value * weight[step]
                    slope = slope + value if corner[axis] else slope - value
                target.view(-1)[edge] = slope
    return gradient


class _Neighbourhood:
    """Look-up of neighbours in a label map, padded by two voxels of the label ``classes`` for outside."""

    def __init__(self, labels: torch.Tensor, classes: int):
        padded = F.pad(labels.to(small(classes)), [2, 2] * labels.dim(), value=classes)
        low = high = padded
        for axis in range(labels.dim()):
            size = low.shape[axis] - 1
            low = torch.minimum(low.narrow(axis, 0, size), low.narrow(axis, 1, size))
            high = torch.maximum(high.narrow(axis, 0, size), high.narrow(axis, 1, size))
        # The padding gives ``agreement`` the shape of ``padded``.
        agreement = F.pad(torch.where(low == high, low, classes + 1), [0, 1] * labels.dim())
        self.shape, self.padded, self.agreement = padded.shape, padded.flatten(), agreement.flatten()

    def corner(self, floors) -> torch.Tensor:
        """Index in the flat map of the neighbour with the lowest coordinates, clamped to the padding."""
        flat = 0
        for size, floor in zip(self.shape, floors):
            flat = flat * size + (floor + 2).nan_to_num(0).clamp(0, size - 2).int()
        return flat

    def neighbours(self, places) -> tuple[torch.Tensor, torch.Tensor, list]:
        """Labels and weights ``(2^D, n)`` of the neighbours of n positions, and the weights per axis."""
        floors = [place.floor() for place in places]
        per_axis = [(1 - (place - floor), place - floor) for place, floor in zip(places, floors)]
        first = self.corner(floors)
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        corners = _corners(len(places))
        away = [sum(step * stride for step, stride in zip(corner, strides)) for corner in corners]
        labels = torch.stack([self.padded.index_select(0, first + a) for a in away])
        weights = torch.stack(
            [functools.reduce(torch.mul, (w[step] for w, step in zip(per_axis, c))) for c in corners]
        )
        return labels, weights, per_axis


def _shares(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum, for each neighbour, of the weights of all neighbours with its label."""
    shares = list(weights.clone())
    for i, j in itertools.combinations(range(len(labels)), 2):
        same = labels[i] == labels[j]
        shares[i] += same * weights[j]
        shares[j] += same * weights[i]
    return torch.stack(shares)


def _corners(rank: int) -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1), repeat=rank))


def _places(displacement: torch.Tensor, first: int, length) -> list[torch.Tensor]:
    """Coordinates, flattened, one tensor per axis, at which a displacement reads the moving map.

    ``displacement`` covers the planes from number ``first`` on of a volume of size ``length``. An axis of one
    voxel is read at that voxel, as in :func:`tvf_core.fields.sample`.
    """
    places = []
    for axis, u in enumerate(displacement):
        numbers = torch.arange(u.shape[axis], device=u.device, dtype=u.dtype) + (first if axis == 0 else 0)
        u = u if length[axis] > 1 else torch.zeros_like(u)
        places.append((u + numbers.view([-1 if a == axis else 1 for a in range(u.dim())])).flatten())
    return places


def _chunks(displacement: torch.Tensor):
    """Slices of planes that together cover the volume, each of about ``CHUNK`` voxels."""
    depth, plane = displacement.shape[2], displacement.shape[3:].numel()
    rows = max(1, CHUNK.get(displacement.device.type, CHUNK["cuda"]) // plane)
    return [slice(first, min(first + rows, depth)) for first in range(0, depth, rows)]


def _bincount(labels: torch.Tensor, weights: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.bincount(labels.int(), weights.to(for_sums(weights.device)), minlength=classes + 1)[:classes]


@label_overlap.register_fake
def _(moving_labels, displacement, fixed_labels, classes):
    batch, shape = displacement.shape[0], displacement.shape[2:]
    return (
        displacement.new_empty(4, batch, classes, dtype=for_sums(displacement.device)),
        displacement.new_empty(batch, *shape, dtype=small(classes)),
    )


@label_overlap_backward.register_fake
def _(slopes, moving_labels, displacement, fixed_labels, seen, classes):
    return displacement.new_empty(displacement.shape)


def _keep(ctx, inputs, output):
    *tensors, ctx.classes = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, slopes, _):
    return None, label_overlap_backward(slopes, *ctx.saved_tensors, ctx.classes), None, None


label_overlap.register_autograd(_backward, setup_context=_keep)
