"""The lock of a run's folder, so that one training at a time writes in it; leftovers of killed trainings."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..paths import OTHER_RUNS, must_be_writable, this_machine

NAME = ".lock"
NO_LOCKS = (OSError, NotImplementedError)  # what filelock raises where a file system has no locks
OLD = 24 * 3600.0  # seconds after which nobody writes a temporary file any more


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Exception | None]:
    """Hold the lock of a folder within this block.

    Yields
    ------
    None where the lock is held; the error where the file system has no locks and nothing is held.

    Raises
    ------
    ValueError : another process holds the lock.
    OSError : the folder cannot be written.
    """
    must_be_writable(folder, OTHER_RUNS)
    lock, without = FileLock(folder / NAME, timeout=1), None
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder}: another process is training here; wait for it or choose another out folder"
        ) from None
    except NO_LOCKS as error:
        without = error
    try:
        yield without
    finally:
        lock.release()


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the lock of a folder; None where the file system has no locks."""
    try:
        with FileLock(folder / NAME, timeout=0):
            return False
    except Timeout:
        return True
    except NO_LOCKS:
        return None


def delete_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete the temporary files that killed processes left beside the files ``names`` of a folder.

    Call it only while the folder's lock is held. Some file systems give one lock to several machines.
    Therefore a temporary file (``tvf_core.paths.write_then_rename``) is deleted only if the process that
    wrote it ran on this machine and has ended, or if the file is older than ``OLD``.
    """
    known = "|".join(map(re.escape, names))
    for file in folder.glob(".*.part"):
        parts = re.fullmatch(rf"\.(?:{known})\.(?P<machine>.*)\.(?P<process>\d+)\.part", file.name)
        with contextlib.suppress(FileNotFoundError):
            if parts and (
                (parts["machine"] == this_machine() and _has_ended(int(parts["process"])))
                or time.time() - file.stat().st_mtime > OLD
            ):
                file.unlink()


def _has_ended(process: int) -> bool:
    """Whether this machine has no such process; False on Windows, where asking would end the process."""
    if os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        pass
    return False
