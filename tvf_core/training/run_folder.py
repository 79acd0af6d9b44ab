"""The folder of a training run: what lies in it, how it is written so that nothing is lost, and what it tells of the run.

| file | holds |
|---|---|
| ``run.json`` | the recipe, written when the run begins |
| ``history.jsonl`` | a line per step: losses, norm of the gradient, learning rate, seconds, score where there was a validation |
| ``state.pt``, ``state.previous.pt`` | everything that is needed to go on, of the last two times that it was saved |
| ``weights.safetensors`` | the best weights so far |
| ``state.damaged.pt`` | a state that could not be read, while the one before it was used |
| ``weights.json`` | the run card; where it is, the run is finished, and the states are gone |
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..paths import runs, write_json, write_then_rename
from .history import read_history
from .memory import is_out_of_memory


class RunFolder:
    """One run's files.

    Parameters
    ----------
    path : the folder; it need not be there yet.
    recipe : settings that decide the result. A run with others is refused.
    writes : whether this process writes; with several, one does.
    """

    def __init__(self, path: Path, recipe: dict, writes: bool = True):
        self.path, self.writes = Path(path), writes
        self.recipe = json.loads(json.dumps(recipe))  # as it will be read: tuples are lists
        self.state, self.previous = self.path / "state.pt", self.path / "state.previous.pt"
        self.weights, self.card = self.path / "weights.safetensors", self.path / "weights.json"
        self.saved_step = None  # of the newest good state

    @contextlib.contextmanager
    def locked(self):
        """Hold the folder; ValueError where another process trains in it."""
        if not self.writes:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=1)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.path}: another process is training here; wait for it or choose another out folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            self.say(f"{self.path} cannot be locked ({error}): let no other training use it")
        try:
            for left in self.path.glob(".*.part"):  # by a process that was killed while it wrote
                left.unlink()
            yield
        finally:
            lock.release()

    def put_aside(self) -> Path | None:
        """Rename an earlier run, if there is one, to the first free of ``<name>.1``, ``<name>.2``, ...; give where it went."""
        if not self.writes or not any(
            file.exists() for file in (self.path / "run.json", self.state, self.previous, self.card)
        ):
            return None
        with self.locked():  # not from under a process that trains
            pass
        place = next(
            p for k in range(1, 10**6) if not (p := self.path.with_name(f"{self.path.name}.{k}")).exists()
        )
        self.path.rename(place)
        return place

    def finished(self) -> dict | None:
        """The card of a finished run with its history, or None."""
        if not self.card.exists():
            return None
        try:
            card = json.loads(self.card.read_text())
        except json.JSONDecodeError:
            if self.state.exists() or self.previous.exists():
                return None  # the machine went down at the very end
            raise ValueError(
                f"{self.card} is damaged; start again with resume 'new', which puts this run aside"
            ) from None
        self._same_recipe(card["settings"])
        return card | {"history": read_history(self.path), "weights": self.weights}

    def load(self) -> dict | None:
        """The newest state that is whole, or None where there is none. Says so if it is not the newest.

        ValueError: the state is one of another recipe, or all that were saved are damaged.
        """
        file = self.path / "run.json"
        if file.exists() and (self.state.exists() or self.previous.exists() or read_history(self.path)):
            with contextlib.suppress(json.JSONDecodeError):  # a state says it, too
                self._same_recipe(json.loads(file.read_text())["recipe"])
        damaged = []
        for file in (self.state, self.previous):
            if not file.exists():
                continue
            try:
                content = _read(file)
            except (ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile) as error:
                if is_out_of_memory(error):  # that, and a disk that is away, says nothing about the file
                    raise
                damaged.append(
                    f"{file} is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
                )
                continue
            self._same_recipe(json.loads(content["recipe"]))
            if damaged:
                if self.writes:  # or the next one that is saved would push out the good one
                    os.replace(self.state, self.path / "state.damaged.pt")
                self.say(f"{damaged[0]}; going on from the one before it, of step {content['step']}")
            self.saved_step = content["step"]
            return content
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged)}; start again with resume 'new', which puts this run aside"
            )
        return None

    def save(self, step: int, content: dict) -> bool:
        """Write a state and keep the one before it. Where that fails, say so and keep the last one as it is; give whether it went well."""
        if not self.writes or step == self.saved_step:
            return True
        try:
            with write_then_rename(self.state) as temporary:
                with open(temporary, "wb") as file:
                    torch.save({"recipe": json.dumps(self.recipe), "step": step, **content}, file)
                    file.flush()
                    os.fsync(file.fileno())
                if self.state.exists():
                    os.replace(self.state, self.previous)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError, at times
            kept = (
                "there is none yet"
                if self.saved_step is None
                else f"the last one, of step {self.saved_step}, is as it was"
            )
            why = (
                str(error)
                if isinstance(error, OSError)
                else f"{shutil.disk_usage(self.path).free / 1e6:.0f} MB are free there"
            )
            self.say(f"the state of step {step} could not be saved in {self.path} ({why}); {kept}")
            return False
        self.saved_step = step
        return True

    def keep(self, write: Callable[[], None], what: str) -> None:
        """Write something that the run can do without for now; where that fails, say so."""
        if not self.writes:
            return
        try:
            write()
        except OSError as error:
            self.say(f"{what} could not be written ({error}); the training goes on")

    def begin(self, execution: dict) -> None:
        """Write down what runs here, and how."""
        self.execution = execution
        if self.writes:
            write_json(self.path / "run.json", {"recipe": self.recipe, "execution": execution})

    def end(self, card: dict) -> None:
        """Write the card: the run is finished."""
        if self.writes:
            write_json(self.card, card)
            for file in (self.weights, self.card):  # on the disk, before the states go
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            for file in self.path.glob("state*.pt"):
                file.unlink()

    def _same_recipe(self, found: dict) -> None:
        different = sorted(k for k in found.keys() | self.recipe.keys() if found.get(k) != self.recipe.get(k))
        if different:
            told = ["origin: other images, labels or pairs" if k == "origin" else k for k in different]
            raise ValueError(
                f"{self.path} holds a run with other settings ({', '.join(told)}); "
                "choose another out folder, or resume 'new', which puts that run aside"
            )

    def say(self, text: str) -> None:
        """Print a line on stderr, above a progress bar."""
        if self.writes:
            tqdm.write(text, file=sys.stderr)


def list_runs(folder: Path | None = None) -> list[dict]:
    """What lies in a folder of runs (default ``runs/``): one entry per run, the last changed first.

    Returns
    -------
    Entries of ``run`` (its path in the folder), ``state`` (finished, running or stopped; damaged where it cannot be read, unfinished
    where it cannot be locked), ``step``, ``steps``, ``metric``, ``best`` (validation score, NaN before the first), ``seconds`` and
    ``changed`` (time stamp).
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
        }
        try:
            entries.append(nothing | _about(file.parent))
        except (OSError, ValueError, KeyError, TypeError):
            entries.append(nothing)
    return sorted(entries, key=lambda entry: -entry["changed"])


def _about(path: Path) -> dict:
    recipe = json.loads((path / "run.json").read_text())["recipe"]
    entry = {"steps": recipe["steps"], "metric": "dice" if recipe["labels"] else "ssim"}
    if (path / "weights.json").exists():
        card = json.loads((path / "weights.json").read_text())
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
    try:
        with FileLock(path / ".lock", timeout=0):
            return entry | {"state": "stopped"}
    except Timeout:
        return entry | {"state": "running"}
    except (OSError, NotImplementedError):  # no locks there
        return entry | {"state": "unfinished"}


def _read(file: Path) -> dict:
    """A state; ValueError where its check sums are not right."""
    with zipfile.ZipFile(file) as archive:  # which is what torch writes
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"check sum of {bad}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("no state of a training") from None


def elapsed(seconds: float) -> str:
    """A time for people: ``2 d 03 h``, ``3 h 07 min``, ``5 min 12 s``, ``8 s``."""
    parts = time.gmtime(seconds)
    if seconds >= 86400:
        return f"{int(seconds // 86400)} d {parts.tm_hour:02d} h"
    if seconds >= 3600:
        return f"{parts.tm_hour} h {parts.tm_min:02d} min"
    return f"{parts.tm_min} min {parts.tm_sec:02d} s" if seconds >= 60 else f"{parts.tm_sec} s"
