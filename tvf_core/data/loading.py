"""Batches of pairs for training, loaded while the network computes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset

from .pairs import PairData, as_images


class _Pairs(Dataset):
    """Pairs by their (moving, fixed) image numbers, as stored."""

    def __init__(self, data: PairData):
        self.data = data

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, torch.Tensor]:
        return self.data.stored(*pair)


def default_workers(device) -> int:
    """Loading processes for a device: up to four beside a GPU.

    None beside a processor, which they would take time from, nor where a process starts without the memory of its
    parent (macOS, Windows) and the whole data set would have to be sent to it.
    """
    if torch.device(device).type != "cuda" or sys.platform != "linux":
        return 0
    return min(4, max(1, (os.cpu_count() or 1) - 1))


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
    workers = default_workers(device) if workers is None else workers
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {workers}")
    loader = DataLoader(_Pairs(data), batch_sampler=steps, num_workers=workers, pin_memory=device.type == "cuda",
                        prefetch_factor=4 if workers else None, generator=torch.Generator())
    for batch in loader:
        yield as_images({key: value.to(device, non_blocking=True) for key, value in batch.items()})
