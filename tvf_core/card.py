"""Run cards: what produced a file, with which code, on what machine, in how long."""

from __future__ import annotations

import contextlib
import math
import platform
import sys
from pathlib import Path

import torch

from . import __version__
from .paths import sha256

# Hash of every Python file of the package, which changes whenever results could. Taken at import: a process
# that outlives an edit goes on with the code it has loaded.
CODE = sha256(*sorted(Path(__file__).parent.rglob("*.py")))[:16]


def reset_peak(device) -> None:
    """Let the memory that :func:`peak_mb` tells begin here, where the system can do that (a GPU, and Linux)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device) -> float:
    """Most memory in use, in megabytes: a GPU's by tensors, else the whole process's; NaN on a system that does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    with contextlib.suppress(ImportError):
        import resource  # not on Windows

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return math.nan


def run_card(settings: dict, seconds: float, device) -> dict:
    """Settings of a run together with versions, device and time."""
    return {
        "settings": settings,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tvf_core": __version__,
        "code": CODE,
    }
