"""Bring files of a known hash into a folder, from a mirror or over HTTP.

A transfer that broke continues where it broke, every file is verified, and one process at a time works in a
folder. ``pooch`` is not used for this: it begins a broken download again at its first byte, and one file here
has 6.6 GB.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

from tvf_core.paths import must_be_writable

CHUNK = 1 << 16  # the most bytes that are lost when a connection breaks
WAITS = (1, 4, 10)  # seconds before each new attempt after a broken connection
TIMEOUT = (15, 60)  # seconds to connect, and between two packets
FULL = (errno.ENOSPC, errno.EDQUOT)
_LOCKS: dict[Path, FileLock] = {}


@dataclass(frozen=True)
class Remote:
    """One file: its name, its address, and the hash that its content must have."""

    name: str  # file name in the target folder
    url: str
    hash: str  # "sha256:<hex>" or "md5:<hex>"
    mirror: str  # path below the folder that TVF_DATA_MIRROR names
    size: int = 0  # bytes if known, else 0


def fetch(remotes: Sequence[Remote], folder: Path, progress: bool = True) -> tuple[list[Path], int]:
    """Have every file in ``folder`` with the right hash; fetch those that are missing or damaged.

    Files come from the folder ``$TVF_DATA_MIRROR`` where that is set, else from their URL. A file that is not
    whole yet is named ``folder/.NAME.part``; the next call continues it.

    Returns
    -------
    paths, fetched
        The files in the order of ``remotes``, and how many of them were not there before.
    """
    sizes = [remote.size for remote in remotes]
    with (
        only_one(folder),
        tqdm(
            total=sum(sizes) if all(sizes) else None,
            unit="B",
            unit_scale=True,
            desc=Path(folder).name,
            disable=not progress,
        ) as bar,
    ):
        missing = []
        for remote in remotes:
            path = folder / remote.name
            if not path.exists():
                missing.append(remote)
            elif _hash(path, remote) == remote.hash:
                bar.update(_size(path))
            else:
                missing.append(remote)
                tqdm.write(
                    f"{path} is damaged (its hash is not {remote.hash}): fetched anew", file=sys.stderr
                )
        check_space(folder, sum(max(r.size - _size(_part(folder, r)), 0) for r in missing))
        for k, remote in enumerate(missing):
            with full_disk(folder, sum(r.size for r in missing[k:])):
                _bring(remote, folder, bar)
    return [folder / remote.name for remote in remotes], len(missing)


@contextlib.contextmanager
def only_one(folder: Path, name: str = ".lock"):
    """Hold the lock file of that name in a folder, which is made if need be.

    OSError if another process or thread holds it, or the folder cannot be written. Blocks of one thread may
    be nested.
    """
    must_be_writable(folder, "choose another --root, or name one for all data: TVF_DATA=FOLDER")
    file = folder.resolve() / name
    lock = _LOCKS.setdefault(file, FileLock(file))  # a FileLock counts how often it is held
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another data_download is working in {folder}: wait until it has ended") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def full_disk(folder: Path, needed: int = 0):
    """Turn the error of a full disk (or quota) in the block into an OSError of one line.

    ``needed`` is the number of bytes that are still to be written, 0 if it is not known.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        more = f": {_mb(needed)} MB more are needed" if needed else ""
        raise OSError(f"the disk at {folder} is full{more}; free some or choose another --root") from None


def check_space(folder: Path, needed: int) -> None:
    """OSError before any work where ``needed`` bytes do not fit on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the disk at {folder} is too full: {_mb(needed)} MB are needed, {free // 10**6} MB are free; "
            "free some or choose another --root"
        )


def _mb(size: int) -> int:
    return -(-size // 10**6)


def _part(folder: Path, remote: Remote) -> Path:
    return folder / f".{remote.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hash(path: Path, remote: Remote) -> str:
    """Hash of a file by the algorithm of ``remote.hash``, written like it: "sha256:<hex>"."""
    algorithm = remote.hash.split(":")[0]
    with open(path, "rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _bring(remote: Remote, folder: Path, bar: tqdm) -> None:
    """Fetch one file. If a continued part has the wrong hash, the file is fetched from its beginning."""
    part = _part(folder, remote)
    mirror = os.path.expanduser(os.environ.get("TVF_DATA_MIRROR", ""))
    while True:
        begun = _size(part)
        bar.update(begun)
        try:
            if mirror:
                _copy(Path(mirror) / remote.mirror, part, bar)
            else:
                _download(remote.url, part, bar)
        except OSError as error:
            if error.errno in FULL:  # the part would go on filling the disk
                part.unlink(missing_ok=True)
            raise
        found = _hash(part, remote)
        if found == remote.hash:
            os.replace(part, folder / remote.name)
            return
        bar.update(-_size(part))
        part.unlink()
        if not begun:
            break
    told = f"{remote.name}: expected {remote.hash}, got {found[: len(found.split(':')[0]) + 9]}...;"
    if mirror:
        copy = Path(mirror) / remote.mirror
        raise ValueError(
            f"{told} the copy {copy} is damaged: replace it, or unset TVF_DATA_MIRROR to download"
        )
    raise ValueError(f"{told} try again; if it stays so, the publisher changed {remote.url}")


def _copy(source: Path, part: Path, bar: tqdm) -> None:
    if not source.is_file():
        raise FileNotFoundError(
            f"{source} is missing in the mirror: put it there, or unset TVF_DATA_MIRROR to download"
        )
    with open(source, "rb") as there, open(part, "ab") as here:
        there.seek(here.tell())
        while chunk := there.read(CHUNK):
            here.write(chunk)
            bar.update(len(chunk))


def _download(url: str, part: Path, bar: tqdm) -> None:
    """Download the rest of ``part``. A broken connection is tried again; a refusal of the server is not."""
    waits = iter((*WAITS, None))
    while True:
        begun = before = _size(part)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
                if begun and answer.status_code == 416:
                    return  # the server has no more bytes: the part is whole or wrong, as its hash will tell
                answer.raise_for_status()
                if begun and answer.status_code != 206:
                    bar.update(-begun)
                with open(part, "ab" if answer.status_code == 206 else "wb") as file:
                    begun = file.tell()
                    for chunk in answer.raw.stream(CHUNK, decode_content=False):  # .gz stays compressed
                        file.write(chunk)
                        bar.update(len(chunk))
                    # urllib3 1 does not tell when a connection ends too early.
                    if file.tell() < begun + int(answer.headers.get("Content-Length", 0)):
                        raise requests.ConnectionError
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _size(part) > before:
                waits = iter((*WAITS, None))  # bytes came, so this break is a new one with all its attempts
            wait, answer = next(waits), getattr(error, "response", None)
            status = answer.status_code if answer is not None else 0
            if wait is None or 400 <= status < 500 and status not in (408, 429):
                why = (
                    f"the server answers {status} {answer.reason}"
                    if status
                    else f"no connection ({type(error).__name__})"
                )
                raise OSError(f"{url}: {why}; the same command continues with what is there") from None
            time.sleep(wait)
