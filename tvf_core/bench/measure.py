"""Measuring time and memory of alternatives, side by side, and the best rates of the machine."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm


def seconds(
    runs: dict[str, Callable], repeats: int, device: str, progress: bool = True, what: str = ""
) -> dict[str, float]:
    """Median seconds of each function.

    Each runs once to warm up. Then they run in turn, so that a slow moment of the machine affects all alike.
    With ``repeats=0`` the first run is the one that counts.
    """
    times = {name: [] for name in runs}
    for k in tqdm(range(repeats + 1), desc=what, disable=not progress, leave=False):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if k or not repeats:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def peak_bytes(run: Callable, device: str) -> int:
    """Peak memory in bytes of tensors during a run, beyond the memory in use before it.

    On a CPU it comes from the record of PyTorch's allocator, without the private buffers of libraries. On a
    GPU it includes the work space of convolutions.
    """
    gc.collect()  # memory left by an earlier run must not be freed during this one
    if device == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated() - before
    with (
        _quiet(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _quiet():
    """Hide the messages that the profiler's library writes to the error stream of the process."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def rates(device: str) -> dict[str, float]:
    """Bytes per second of a large copy (read and written), and operations per second of a matrix product.

    The product is of large float32 matrices. On a GPU it uses TF32 if PyTorch lets convolutions use it, which
    is the default.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    source = torch.rand(32 * 2**20, device=device)
    target = torch.empty_like(source)
    a = torch.rand(4096, 4096, device=device)
    times = seconds(
        {"copy": lambda: target.copy_(source), "product": lambda: a @ a}, 5, device, progress=False
    )
    return {
        "bytes_per_second": 2 * source.nbytes / times["copy"],
        "flops_per_second": 2 * 4096**3 / times["product"],
    }


def largest_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest absolute difference of two lists of tensors, each relative to the expected tensor's maximum."""
    differences = []
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        differences.append(float((one.double() - other.double()).abs().max() / scale))
    return next((d for d in differences if math.isnan(d)), max(differences))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
