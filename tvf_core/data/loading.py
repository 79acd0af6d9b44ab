"""Batches of pairs for training, loaded while the network computes."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset

from .pairs import PairData, as_images

_AHEAD = 2  # batches that a process keeps ready


class _Pairs(Dataset):
    """Gives a pair, as it is stored, for its (moving, fixed) image numbers."""

    def __init__(self, data: PairData):
        self.data = data

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, torch.Tensor]:
        return self.data.stored(*pair)


def default_workers(device, batch_bytes: int = 0) -> int:
    """Number of loading processes for a device.

    Beside a GPU there are up to four, as many as the shared memory has room for. Beside a processor there is
    none, because they would take time from it. There is none on macOS and Windows either: a process starts
    there without the memory of its parent, and the whole data set would have to be sent to it.
    """
    if torch.device(device).type != "cuda" or sys.platform != "linux":
        return 0
    room = (
        shutil.disk_usage("/dev/shm").free // (2 * _AHEAD * batch_bytes)
        if batch_bytes and os.path.isdir("/dev/shm")
        else 4
    )
    # Containers often have little shared memory, and a process that exceeds it is killed: hence the room.
    return min(4, max(1, (os.cpu_count() or 1) - 1), room)


def batches(data: PairData, steps: Iterable[list[tuple[int, int]]], device="cpu", workers: int | None = None):
    """Yield a batch on ``device`` for every list of (moving, fixed) image numbers, in order.

    Images and labels travel to a GPU as they are stored, and become floats and longs there.

    Parameters
    ----------
    steps : the lists, one per batch. A few of them are read ahead.
    workers : number of loading processes; 0 loads in this one, None takes :func:`default_workers`.

    Yields
    ------
    ``moving``, ``fixed`` (B, 1, *S) float in [0, 1] and, where the data have labels, ``moving_labels``,
    ``fixed_labels`` (B, 1, *S) long.
    """
    device = torch.device(device)
    if workers is None:
        steps = iter(steps)
        first = next(steps, [])
        steps = itertools.chain([first] if first else [], steps)
        workers = default_workers(device, len(first) * data.pair_bytes)
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {workers}")
    loader = DataLoader(
        _Pairs(data),
        batch_sampler=steps,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=_AHEAD if workers else None,
        generator=torch.Generator(),
    )
    for batch in loader:
        yield as_images({key: value.to(device, non_blocking=True) for key, value in batch.items()})
