"""The folder of a training run: which files it holds, and how they are written so that nothing is lost.

| file | content |
|---|---|
| ``run.json`` | the recipe, written when the run begins |
| ``history.jsonl`` | one line per step: losses, gradient norm, learning rate, seconds, validation score |
| ``state.pt``, ``state.previous.pt`` | the last two saved states: everything that is needed to continue |
| ``state.damaged.pt`` | a state that could not be read, so that the one before it was used |
| ``weights.safetensors`` | the best weights so far |
| ``weights.json`` | the run card; it exists once the run is finished, and then the states are deleted |
| ``.lock`` | the lock (:mod:`tvf_core.training.lock`); it stays in the folder and says nothing by itself |
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from ..paths import write_json, write_then_rename
from . import lock
from .history import read_history
from .memory import is_out_of_memory

HASH = 8  # hexadecimal digits of the settings' hash in the name of a folder


class RunFolder:
    """One run's files.

    Parameters
    ----------
    path : the folder; it need not exist yet.
    recipe : settings that decide the result. A folder that holds a run with other settings is refused;
        :meth:`beside` gives another folder then.
    writes : whether this process writes; of several processes, only one does.
    """

    def __init__(self, path: Path, recipe: dict, writes: bool = True):
        self.path, self.writes = Path(path), writes
        self.recipe = json.loads(json.dumps(recipe))  # as it will be read again: JSON turns tuples into lists
        self.state, self.previous = self.path / "state.pt", self.path / "state.previous.pt"
        self.weights, self.card = self.path / "weights.safetensors", self.path / "weights.json"
        self.begun, self.history = self.path / "run.json", self.path / "history.jsonl"
        self.saved_step = None  # step of the newest good state

    @contextlib.contextmanager
    def locked(self):
        """Hold the folder's lock within this block; ValueError where another process trains in the folder."""
        if not self.writes:
            yield
            return
        with lock.hold(self.path) as without:
            if without is None:
                names = (self.begun, self.history, self.state, self.weights, self.card)
                lock.delete_leftovers(self.path, [file.name for file in names])
            else:
                self.say(f"{self.path} cannot be locked ({without}): let no other training use it")
            yield

    def held(self) -> dict | None:
        """The recipe of the run in the folder; None where there is no run, or where it cannot be read."""
        sources = [(self.card, "settings")] * self.card.exists()
        if self.state.exists() or self.previous.exists() or read_history(self.path):
            sources += [(self.begun, "recipe")] * self.begun.exists()
        for file, key in sources:
            if isinstance(recipe := _json(file).get(key), dict):
                return recipe
        return None

    def beside(self) -> RunFolder:
        """This folder or, where it is taken by other settings, one beside it for these settings.

        It is taken where it holds a run with other settings, and where another process begins one. The name
        of the folder beside it ends with a hash of the settings. So the same settings find their run again,
        and the runs of any number of settings lie side by side.
        """
        digest = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()
        other = RunFolder(self.path.with_name(f"{self.path.name}-{digest[:HASH]}"), self.recipe, self.writes)
        held = self.held()
        if held is None and self.path.exists() and lock.is_held(self.path) is True:
            held = _json(self.begun).get("recipe", {})  # of the run that just begins
        if held is None:  # the plain folder is free, but it may not have been when this run was made
            return self if other.held() is None else other
        return other if differences(held, self.recipe) else self

    def put_aside(self) -> Path | None:
        """Move the files of an earlier run into the first free folder of ``<name>.1``, ``<name>.2``, ...

        Call it while the lock is held. The lock file stays, so that no other training can begin meanwhile.

        Returns
        -------
        The new folder, or None where there was no run.
        """
        marks = [file for file in (self.card, self.begun, self.previous, self.state) if file.exists()]
        if not self.writes or not marks:
            return None
        place = next(
            p for k in range(1, 10**6) if not (p := self.path.with_name(f"{self.path.name}.{k}")).exists()
        )
        place.mkdir()
        others = [file for file in self.path.iterdir() if file not in marks and file.name != lock.NAME]
        for file in [
            *others,
            *marks,
        ]:  # the marks of a run come last, so that an interrupted move is repeated
            file.rename(place / file.name)
        return place

    def finished(self) -> dict | None:
        """The card of a finished run with its history, or None."""
        if not self.card.exists():
            return None
        card = _json(self.card)
        if not isinstance(card.get("settings"), dict):
            if self.state.exists() or self.previous.exists():
                return None  # the machine stopped while the card was written
            raise ValueError(
                f"{self.card} is damaged; start again with --resume new, which puts this run aside"
            )
        self._same_recipe(card["settings"])
        return card | {"history": read_history(self.path), "weights": self.weights}

    def load(self) -> dict | None:
        """The newest undamaged state, or None where none was saved. A damaged newer one is reported.

        Raises
        ------
        ValueError : the run has other settings, or all saved states are damaged.
        """
        if (held := self.held()) is not None:  # a state holds the recipe as well
            self._same_recipe(held)
        damaged = []
        for file in (self.state, self.previous):
            if not file.exists():
                continue
            try:
                content = _read(file)
            except (ValueError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile) as error:
                if is_out_of_memory(error):  # the file itself may be good
                    raise
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                damaged.append(f"{file} is damaged ({why})")
                continue
            self._same_recipe(json.loads(content["recipe"]))
            if damaged:
                if self.writes:  # otherwise the next save would keep this one and delete the good one
                    os.replace(self.state, self.path / "state.damaged.pt")
                self.say(f"{damaged[0]}; going on from the one before it, of step {content['step']}")
            self.saved_step = content["step"]
            return content
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged)}; start again with --resume new, which puts this run aside"
            )
        return None

    def save(self, step: int, content: dict) -> bool:
        """Save a state and keep the one before it.

        Returns
        -------
        Whether it was saved. Where it was not, the reason is reported and the last state is left as it is.
        """
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
        except (OSError, RuntimeError) as error:  # torch sometimes turns a full disk into a RuntimeError
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
        """Call ``write``, which writes ``what``; an OSError is reported and does not end the training."""
        if not self.writes:
            return
        try:
            write()
        except OSError as error:
            self.say(f"{what} could not be written ({error}); the training goes on")

    def begin(self, execution: dict) -> None:
        """Write the recipe and how it is executed (processes, parts of a batch, device)."""
        self.execution = execution
        if self.writes:
            write_json(self.begun, {"recipe": self.recipe, "execution": execution})

    def end(self, card: dict) -> None:
        """Write the run card and delete the states: the run is finished."""
        if self.writes:
            write_json(self.card, card)
            for file in (self.weights, self.card):  # they must be on the disk before the states are deleted
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            for file in self.path.glob("state*.pt"):
                file.unlink()

    def _same_recipe(self, found: dict) -> None:
        if told := differences(found, self.recipe):
            raise ValueError(
                f"{self.path} holds a run with other settings ({', '.join(told)}): "
                "go on in a folder of its own with --resume beside or --out FOLDER, "
                "or put that run aside with --resume new"
            )

    def say(self, text: str) -> None:
        """Print a line on stderr, above a progress bar."""
        if self.writes:
            tqdm.write(text, file=sys.stderr)


def differences(found: dict, wanted: dict) -> list[str]:
    """How the recipe of a run differs from another one, a text per setting; empty where they are the same."""
    told = []
    for key in sorted(found.keys() | wanted.keys()):
        one, two = found.get(key), wanted.get(key)
        if one == two:
            continue
        if key == "origin":
            told.append("origin: other images, labels or pairs")
        elif any(isinstance(value, dict | list | None) for value in (one, two)):
            told.append(key)
        else:
            told.append(f"{key}: {one} there, {two} here")
    return told


def _json(file: Path) -> dict:
    """What a file of JSON holds; nothing where it is damaged, as one that was cut off."""
    with contextlib.suppress(ValueError, OSError):
        if isinstance(content := json.loads(file.read_text("utf-8")), dict):
            return content
    return {}


def _read(file: Path) -> dict:
    """Read a state; ValueError where a check sum is wrong."""
    with zipfile.ZipFile(file) as archive:  # torch writes zip files
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"check sum of {bad}")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it holds something else than a state") from None
