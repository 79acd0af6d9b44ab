"""The rows of a running evaluation, written to the disk one by one, so that a stopped one can continue."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..paths import OTHER_RUNS, must_be_writable, write_then_rename


@contextlib.contextmanager
def kept_rows(file: Path, about: dict, pairs: list[str]):
    """Rows that an earlier evaluation left in ``file``, and a function that keeps one more.

    Parameters
    ----------
    file : a line for ``about``, then a line per row. It is deleted when the block ends without an error.
    about : what the evaluation depends on, as JSON. Rows that belong to something else are not taken.
    pairs : names of the pairs in their order. Rows are taken as long as they follow it, so that rows of a
        second process, where files cannot be locked, do no harm. A line that a kill cut off or a power cut
        damaged is not taken, nor is any after it.

    Raises
    ------
    ValueError : another process holds the file.
    OSError : its folder cannot be written.
    """
    must_be_writable(file.parent, OTHER_RUNS)
    lock = FileLock(file.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{file.parent}: another process is evaluating under this name here; "
            "wait for it, or choose another name or folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        text = (
            f"{file.parent} cannot be locked ({error}): let no other process evaluate under this name there"
        )
        tqdm.write(text, file=sys.stderr)
    try:  # the lock is held until the results have their names and this file is gone
        rows = _read(file, about, pairs)
        with write_then_rename(file) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in (about, *rows)), "utf-8")
        with open(file, "a", encoding="utf-8") as stream:

            def keep(row: dict) -> None:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
                rows.append(row)

            yield rows, keep
        file.unlink(missing_ok=True)  # without locks, a second process may have finished first
    finally:
        lock.release()


def _read(file: Path, about: dict, pairs: list[str]) -> list[dict]:
    """The rows in a file that belong to ``about`` and follow the order of the pairs."""
    if not file.is_file():
        return []
    lines = file.read_text("utf-8", "replace").split("\n")[:-1]  # the last one is empty, or it was cut off
    if not lines or lines[0] != json.dumps(about):
        return []
    rows = []
    for line, pair in zip(lines[1:], pairs):
        try:
            row = json.loads(line)
        except ValueError:  # the line is damaged; its pair and all later ones are measured again
            break
        if not isinstance(row, dict) or row.get("pair") != pair:
            break
        rows.append(row)
    return rows
