"""The log of a training run: a record per step, as lines of JSON and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path

from tqdm import tqdm

from ..paths import write_then_rename


class History:
    """The log of a run, a line of JSON per step, written as they come; opened for a run that has done ``steps`` steps.

    Lines of later steps, from before a stop, are cut off, and lines that cannot be read (the machine went down while they were
    written) left out. Where a line cannot be written (a full disk), it is kept and written with the next.
    """

    def __init__(self, folder: Path, steps: int):
        self.path = Path(folder) / "history.jsonl"
        known = [(json.dumps(_written(record)) + "\n").encode() for record in read_history(folder, steps)]
        if len(known) < steps:
            tqdm.write(
                f"{self.path} lacks {steps - len(known)} of the {steps} steps before this one",
                file=sys.stderr,
            )
        with write_then_rename(self.path) as temporary:
            temporary.write_bytes(b"".join(known))
        self.file, self.good, self.pending = open(self.path, "ab"), sum(map(len, known)), b""

    def __call__(self, record: dict) -> None:
        """Add a record."""
        self.pending += (json.dumps(_written(record)) + "\n").encode()
        with contextlib.suppress(OSError):
            self.flush()

    def flush(self) -> None:
        """Write what is pending; OSError where that is not possible."""
        try:
            if self.pending:
                os.ftruncate(self.file.fileno(), self.good)  # a part of a line may be there
                os.write(self.file.fileno(), self.pending)
                size = os.fstat(self.file.fileno()).st_size
                if size != self.good + len(self.pending):
                    raise OSError(f"{self.path}: no space left")
                self.good, self.pending = size, b""
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.file.fileno(), self.good)
            raise

    def sync(self) -> None:
        """Bring what is written to the disk, where that is possible."""
        with contextlib.suppress(OSError):
            self.flush()
            os.fsync(self.file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        """Write what is left and close; where that is not possible, say so."""
        try:
            self.flush()
        except OSError as reason:
            tqdm.write(
                f"the last {self.pending.count(10)} lines of {self.path} could not be written ({reason})",
                file=sys.stderr,
            )
        self.file.close()


def read_history(folder: Path, steps: int | None = None) -> list[dict]:
    """Records of a run's log, or of its first ``steps``; NaN where a number was not finite. Lines that cannot be read are left out."""
    path, records = Path(folder) / "history.jsonl", []
    if not path.exists():
        return records
    with open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                record = json.loads(line)
                if line.endswith(b"\n") and (steps is None or record["step"] < steps):
                    records.append({k: math.nan if v is None else v for k, v in record.items()})
    return records


def _written(record: dict) -> dict:
    """A record as JSON can hold it: what is not finite is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


class TensorBoard:
    """Writer of the same records for TensorBoard, into a folder ``tensorboard``."""

    def __init__(self, folder: Path, steps: int):
        from torch.utils.tensorboard import (
            SummaryWriter,  # needs a package that is optional, and slow to import
        )

        self.writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=steps)

    def __call__(self, record: dict) -> None:
        with contextlib.suppress(OSError):  # a full disk: the history has these numbers, too
            for name, value in record.items():
                if name not in ("step", "seconds", "skipped"):
                    self.writer.add_scalar(name, value, record["step"])

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError):
            self.writer.close()
