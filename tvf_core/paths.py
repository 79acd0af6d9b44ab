"""Paths of the repository, runs, data and cache; writing files atomically; hashes of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path

import pooch

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "book" / "weights"  # shipped weights
RESULTS = ROOT / "book" / "results"  # shipped results, one JSON per data set and method


def runs() -> Path:
    """Folder for everything computed locally: ``$TVF_RUNS``, else ``runs/`` beside the package."""
    return Path(os.environ.get("TVF_RUNS") or ROOT / "runs")


def data_root() -> Path:
    """Folder of the data sets that ``python -m data_download`` prepares.

    It is ``$TVF_DATA`` or, without it, ``data/`` beside the package.
    """
    return Path(os.environ.get("TVF_DATA") or ROOT / "data")


def cache() -> Path:
    """Folder for generated data: ``$TVF_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("TVF_CACHE") or pooch.os_cache("tvf_core"))


OTHER_RUNS = "choose another out folder, or name one for all runs: TVF_RUNS=FOLDER"


def must_be_writable(folder: Path, remedy: str) -> None:
    """Make a folder if need be, and see that a file can be written in it; call it before any long work.

    Raises
    ------
    OSError : it cannot be written; one line says why and ends in ``remedy``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}); {remedy}") from None


def for_files(text: str) -> str:
    """A text that stands in a file, as part of a path: the same, but where names of files are not UTF-8.

    There, as with ``LC_ALL=C`` and ``PYTHONUTF8=0``, Python has their bytes in a form of its own.
    """
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def this_machine() -> str:
    """Name of this computer for temporary files: process numbers are unique on one machine only."""
    return platform.node().replace("/", "-") or "unnamed"


@contextlib.contextmanager
def write_then_rename(path: Path):
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, delete it on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{this_machine()}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    """Write JSON atomically, indented so that people can read it and a diff stays small."""
    with write_then_rename(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def sha256(*paths: Path) -> str:
    """SHA-256, in hexadecimal, of the contents of files read in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):  # files may be larger than the memory
                digest.update(block)
    return digest.hexdigest()
