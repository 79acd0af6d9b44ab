"""Run cards: what produced a file, with which code, on what machine, in how long."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from . import __version__
from .paths import sha256

# Hash of every Python file of the package, which changes whenever results could. Taken at import: a process
# that outlives an edit goes on with the code it has loaded.
CODE = sha256(*sorted(Path(__file__).parent.rglob("*.py")))[:16]


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
