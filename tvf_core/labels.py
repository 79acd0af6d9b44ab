"""Label maps of any integer type, in exact numbers, and with memory that does not depend on them.

Floating-point types do not hold every integer, and PyTorch lacks most operations for uint16, uint32 and
uint64. Label maps are therefore computed with as int64.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch


def as_int64(labels: torch.Tensor) -> torch.Tensor:
    """A label map as int64, in the same order: its numbers, and those of uint64 less 2**63."""
    return labels.view(torch.int64) ^ -(2**63) if labels.dtype == torch.uint64 else labels.to(torch.int64)


def from_int64(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A label map of type ``dtype`` from what :func:`as_int64` made of one."""
    return (stored ^ -(2**63)).view(dtype) if dtype == torch.uint64 else stored.to(dtype)


def offset(dtype: torch.dtype) -> int:
    """What :func:`as_int64` subtracts from the labels of a map of type ``dtype``."""
    return 2**63 if dtype == torch.uint64 else 0


def whole_numbers(labels: Iterable[int]) -> list[int]:
    """Label numbers as a list of Python's integers; TypeError if they are something else."""
    try:
        return [operator.index(number) for number in labels]
    except TypeError:
        raise TypeError(f"labels: expected label numbers such as (0, 1, 2), got {labels!r}") from None


def occurring(*maps: torch.Tensor) -> list[int]:
    """The numbers that occur in label maps, ascending."""
    found = set()
    for one in maps:
        runs = as_int64(one).flatten().unique_consecutive()  # far fewer than voxels, which takes less to sort
        found.update(k + offset(one.dtype) for k in runs.unique().tolist())
    return sorted(found)


def table(numbers: list[int], dtype: torch.dtype) -> tuple[list[int], int]:
    """Those of ``numbers`` (ascending) that a map of type ``dtype`` can hold, as :func:`as_int64` gives them.

    The second value is where the first of them stands in ``numbers``.
    """
    limits = torch.iinfo(dtype)
    values = [k - offset(dtype) for k in numbers if limits.min <= k <= limits.max]
    return values, sum(k < limits.min for k in numbers)


def positions(labels: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """Where each label of a map stands in ``numbers`` (ascending): int64 of the map's shape.

    A label that is not there gets ``len(numbers)``.
    """
    values, first = table(numbers, labels.dtype)
    found, there = look_up(as_int64(labels), values)
    return torch.where(there, found + first, len(numbers))


def look_up(stored: torch.Tensor, values: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each number of ``stored`` stands in ``values`` (ascending), and whether it is there at all."""
    if not values:
        return torch.zeros_like(stored), torch.zeros_like(stored, dtype=torch.bool)
    if without_gaps(values):
        found = stored - values[0]
        return found, (found >= 0) & (found < len(values))
    known = torch.tensor(values, device=stored.device)
    found = torch.searchsorted(known, stored.contiguous()).clamp_(max=len(values) - 1)
    return found, known[found] == stored


def without_gaps(values: list[int]) -> bool:
    """Whether ascending numbers follow each other like 3, 4, 5."""
    return values[-1] - values[0] == len(values) - 1


def small(count: int) -> torch.dtype:
    """Type of :func:`compact` maps of ``count`` labels; it has room for two numbers more."""
    return torch.uint8 if count + 1 < 256 else torch.int32


def compact(labels: torch.Tensor, numbers: list[int], name: str) -> torch.Tensor:
    """:func:`positions` of a map that has no other labels than ``numbers``, in the type of :func:`small`.

    ``name`` is that of the map in the ValueError for other labels.
    """
    return _compact(labels, *table(numbers, labels.dtype), len(numbers), name)


@torch.library.custom_op("tvf_core::compact_labels", mutates_args=())
def _compact(labels: torch.Tensor, values: Sequence[int], first: int, count: int, name: str) -> torch.Tensor:
    """:func:`compact` by a :func:`table`: an operation of its own, because it looks at values."""
    kind = small(count)
    stored = labels if labels.dtype == torch.uint8 else as_int64(labels)
    low, high = (int(x) for x in stored.aminmax())
    if values and values[0] == first and without_gaps(values) and first <= low and high <= values[-1]:
        return stored.to(
            kind, copy=True, memory_format=torch.contiguous_format
        )  # the labels are their positions already
    stored = as_int64(labels)
    found, there = look_up(stored, values)
    if not there.all():
        other = int(stored[~there][0]) + offset(labels.dtype)
        raise ValueError(
            f"{name}: the label {other} is none of the {count} in labels; "
            "add it to them, or make it background (0)"
        )
    return (found + first).to(kind).contiguous()


@_compact.register_fake
def _(labels, values, first, count, name):
    return labels.new_empty(labels.shape, dtype=small(count))
