"""The list of training runs: how far each one is, and whether it is finished, running or stopped."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from pathlib import Path

from ..paths import runs
from . import lock
from .history import read_history
from .run_folder import HASH, differences


def list_runs(folder: Path | None = None) -> list[dict]:
    """The runs in a folder (default ``runs/``), one entry per run, the last changed first.

    Returns
    -------
    One dictionary per run:

    - ``run``: its path within the folder.
    - ``state``: finished, running or stopped; damaged where its files cannot be read; unfinished where the
      file system has no locks, so that running and stopped look the same.
    - ``step``, ``steps``: steps that are done, and steps of the whole training.
    - ``metric``, ``best``: the best validation score so far; NaN before the first.
    - ``seconds``: time that the training has taken.
    - ``changed``: when its files changed last, in seconds since 1970.
    - ``unlike``: of a run that lies beside one with other settings
      (:meth:`~tvf_core.training.run_folder.RunFolder.beside`), what differs; else empty.
    """
    folder = Path(folder) if folder else runs()
    entries = []
    for file in folder.rglob("run.json"):
        nothing = {
            "run": str(file.parent.relative_to(folder)),
            "state": "damaged",
            "step": 0,
            "steps": 0,
            "metric": "",
            "best": math.nan,
            "seconds": 0.0,
            "changed": file.stat().st_mtime,
            "unlike": "",
        }
        try:
            if "inputs" in json.loads(file.read_text("utf-8")):  # a registration of two scans
                continue
            entries.append(nothing | _about(file.parent))
        except (OSError, ValueError, KeyError, TypeError):
            entries.append(nothing)
    return sorted(entries, key=lambda entry: -entry["changed"])


def _about(path: Path) -> dict:
    """What the files of one run tell."""
    recipe = json.loads((path / "run.json").read_text("utf-8"))["recipe"]
    entry = {"steps": recipe["steps"], "metric": "dice" if recipe["labels"] else "ssim"}
    entry["unlike"] = _unlike(path, recipe)
    if (path / "weights.json").exists():
        card = json.loads((path / "weights.json").read_text("utf-8"))
        return entry | {
            "state": "finished",
            "step": recipe["steps"],
            "best": card["validation"]["score"],
            "seconds": card["seconds"],
            "changed": (path / "weights.json").stat().st_mtime,
        }
    records = read_history(path)
    if records:
        scores = [r["validation"] for r in records if not math.isnan(r.get("validation", math.nan))]
        entry |= {
            "step": records[-1]["step"] + 1,
            "seconds": records[-1]["seconds"],
            "best": max(scores, default=math.nan),
            "changed": (path / "history.jsonl").stat().st_mtime,
        }
    return entry | {"state": {True: "running", False: "stopped", None: "unfinished"}[lock.is_held(path)]}


def _unlike(path: Path, recipe: dict) -> str:
    """What differs from the run that this one lies beside; empty where it lies beside none."""
    name = re.fullmatch(rf"(.+)-[0-9a-f]{{{HASH}}}", path.name)
    other = path.with_name(name[1]) / "run.json" if name else path
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # it is gone or damaged
        return ", ".join(differences(json.loads(other.read_text("utf-8"))["recipe"], recipe))
    return ""


def elapsed(seconds: float) -> str:
    """A time as text: ``2 d 03 h``, ``3 h 07 min``, ``5 min 12 s`` or ``8 s``."""
    parts = time.gmtime(seconds)
    if seconds >= 86400:
        return f"{int(seconds // 86400)} d {parts.tm_hour:02d} h"
    if seconds >= 3600:
        return f"{parts.tm_hour} h {parts.tm_min:02d} min"
    return f"{parts.tm_min} min {parts.tm_sec:02d} s" if seconds >= 60 else f"{parts.tm_sec} s"
