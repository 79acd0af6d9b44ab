"""The log of a training run: one record per step, as lines of JSON and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..paths import write_then_rename


class History:
    """Writes the log of a run: one line of JSON per step, as soon as the step is done.

    ``steps`` is the number of steps that the run has already done. Opening removes the lines of later steps,
    which an earlier process wrote after its last saved state, and the lines that cannot be read because the
    machine stopped while they were written. A line that cannot be written now (a full disk) is kept and
    written with the next one.
    """

    def __init__(self, folder: Path, steps: int):
        self.path = Path(folder) / "history.jsonl"
        known = [(json.dumps(_written(record)) + "\n").encode() for record in read_history(folder, steps)]
        if len(known) < steps:
            tqdm.write(
                f"{self.path} lacks {steps - len(known)} of the {steps} steps that this run has done",
                file=sys.stderr,
            )
        with write_then_rename(self.path) as temporary:
            temporary.write_bytes(b"".join(known))
        self.file, self.good, self.pending = open(self.path, "ab"), sum(map(len, known)), b""

    def __call__(self, record: dict) -> None:
        """Add the record of a step."""
        self.pending += (json.dumps(_written(record)) + "\n").encode()
        with contextlib.suppress(OSError):
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait; OSError where that is not possible."""
        try:
            if self.pending:
                os.ftruncate(self.file.fileno(), self.good)  # an earlier attempt may have left half a line
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
        """Make sure that all lines are on the disk, where that is possible."""
        with contextlib.suppress(OSError):
            self.flush()
            os.fsync(self.file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        """Write the lines that still wait and close the file. Lines that cannot be written are reported."""
        try:
            self.flush()
        except OSError as reason:
            tqdm.write(
                f"the last {self.pending.count(10)} lines of {self.path} could not be written ({reason})",
                file=sys.stderr,
            )
        self.file.close()


def read_history(folder: Path, steps: int | None = None) -> list[dict]:
    """The records of a run's log, or those of its first ``steps`` steps.

    A number that was not finite is NaN. Lines that cannot be read are left out.
    """
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


def mean_loss(records: list[dict]) -> float:
    """Mean loss of some records; steps that were skipped, whose loss is NaN, do not count."""
    return float(np.nanmean([record["loss"] for record in records]))


def _written(record: dict) -> dict:
    """A record as JSON can hold it: numbers that are not finite become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


class TensorBoard:
    """Writes the same records for TensorBoard, into the folder ``tensorboard`` of the run."""

    def __init__(self, folder: Path, steps: int):
        # Imported only here: it needs an optional package and takes seconds.
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=steps)

    def __call__(self, record: dict) -> None:
        with contextlib.suppress(OSError):  # on a full disk; the history holds the same numbers
            for name, value in record.items():
                if name not in ("step", "seconds", "skipped"):
                    self.writer.add_scalar(name, value, record["step"])

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError):
            self.writer.close()
