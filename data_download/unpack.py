"""Unpack an archive into a new folder: all of it or nothing, and nothing outside that folder.

``tarfile`` (with its filter "data") and ``zipfile`` extract the members. ``shutil.unpack_archive`` is not
used: it extracts the members before a bad one, leaves out bad members of a zip without a word, writes links
of a zip as files and takes a tar that was cut between two members for a whole one.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from gzip import BadGzipFile
from pathlib import Path

from tqdm import tqdm

from .fetch import check_space, full_disk

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    BadGzipFile,
    zlib.error,
    EOFError,
    struct.error,
    UnicodeDecodeError,
    OverflowError,
    NotImplementedError,
)
FILTER = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4


def unpack(archive: Path, folder: Path, progress: bool = True) -> Path:
    """Unpack a .tar, .tar.gz, .tgz or .zip into ``folder``, which must not be there yet.

    While it grows, the new folder is named ``.NAME.part``, beside ``folder``. Two calls for one folder at the
    same time would disturb each other: hold ``fetch.only_one`` around them.
    """
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} is there already: move it away or choose another folder")
    part = folder.with_name(f".{folder.name}.part")
    if part.exists():  # a run that was killed has left it
        shutil.rmtree(part)
    is_zip = archive.suffix.lower() == ".zip"
    try:
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as opened:
            members = _zip_members(opened) if is_zip else _tar_members(opened)
            for _, name, _, wrong in members:
                wrong = wrong or (_leaves(name) and "has a name that leaves the folder")
                if wrong:
                    raise ValueError(
                        f"{archive}: refused, member {name[:80]!r} {wrong}; "
                        "if you trust it, unpack it yourself and name the folder"
                    )
            if not members:
                raise ValueError(f"{archive}: holds no files")
            total = sum(size for _, _, size, _ in members)
            folder.parent.mkdir(parents=True, exist_ok=True)
            check_space(folder.parent, total)
            bar = tqdm(
                total=total, unit="B", unit_scale=True, desc=f"unpacking {archive.name}", disable=not progress
            )
            with full_disk(folder.parent, total), bar:
                part.mkdir()
                for member, _, size, _ in members:
                    opened.extract(member, part, **({} if is_zip else FILTER))
                    bar.update(size)
        os.rename(part, folder)
    except DAMAGE as error:
        raise ValueError(
            f"{archive}: not a .tar, .tar.gz or .zip archive, or damaged or cut short "
            f"({type(error).__name__})"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _leaves(name: str) -> bool:
    """Whether a name could lead out of the folder, on any operating system."""
    return (
        not name
        or name.startswith("/")
        or "\\" in name
        or "\0" in name
        or ".." in name.split("/")
        or re.match("[A-Za-z]:", name) is not None
    )


def _zip_members(archive: zipfile.ZipFile) -> list[tuple]:
    """For every member: the member, its name as the archive has it, its size, and what is wrong with it."""

    def wrong(member):
        if member.flag_bits & 1:
            return "is encrypted"
        plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
        return "" if plain else "is a link or a device"

    return [(m, m.orig_filename, m.file_size, wrong(m)) for m in archive.infolist()]


def _tar_members(archive: tarfile.TarFile) -> list[tuple]:
    """Like :func:`_zip_members`. It reads the archive to its end, where gzip's checksum is."""
    members = [
        (m, m.name, m.size if m.isreg() else 0, "" if m.isreg() or m.isdir() else "is a link or a device")
        for m in archive
    ]
    archive.fileobj.seek(archive.offset)
    # A whole tar ends with a block of zeros. ``tarfile`` alone takes a cut between two members for the end.
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError
    while archive.fileobj.read(1 << 20):
        pass
    return members
