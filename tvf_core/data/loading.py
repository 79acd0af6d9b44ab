"""Batches of pairs for training, loaded while the network computes."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import sys
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset

from .pairs import PairData, as_images

_AHEAD = 2  # batches that a process keeps ready


class _Pairs(Dataset):
    """Pairs by their (moving, fixed) image numbers, as stored."""

    def __init__(self, data: PairData):
        self.data = data

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, torch.Tensor]:
        return self.data.stored(*pair)


def default_workers(device, batch_bytes: int = 0) -> int:
    """Loading processes for a device: up to four beside a GPU, as many as the shared memory has room for.

    None beside a processor, which they would take time from, nor where a process starts without the memory of its
    parent (macOS, Windows) and the whole data set would have to be sent to it.
    """
    if torch.device(device).type != "cuda" or sys.platform != "linux":
        return 0
    room = (
        shutil.disk_usage("/dev/shm").free // (2 * _AHEAD * batch_bytes)
        if batch_bytes and os.path.isdir("/dev/shm")
        else 4
    )
    return min(
        4, max(1, (os.cpu_count() or 1) - 1), room
    )  # containers often have little: batches too many would end them


def batches(data: PairData, steps: Iterable[list[tuple[int, int]]], device="cpu", workers: int | None = None):
    """Yield a batch on ``device`` for every list of (moving, fixed) image numbers, in order.

    Images travel as stored, one byte per voxel, through pinned memory to a GPU, and become floats there.

    Parameters
    ----------
    steps : the lists, one per batch; read ahead a little.
    workers : loading processes; 0 loads in this one, None is :func:`default_workers`.

    Yields
    ------
    ``moving``, ``fixed`` (B, 1, *S) float in [0, 1] and ``moving_labels``, ``fixed_labels`` (B, 1, *S) long, if there are any.
    """
    device = torch.device(device)
    if workers is None:
        steps = iter(steps)
        first = next(steps, [])
        steps = itertools.chain([first] if first else [], steps)
        workers = default_workers(
            device, 2 * len(first) * math.prod(data.shape) * (1 + (data.labels is not None))
        )
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
