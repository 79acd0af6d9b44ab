"""Files that the user has to get: find them in the folder or archive that was named, and recognise them."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from tvf_core.data import prepared

from .building import same_recipe
from .unpack import unpack

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")
_MADE_FROM = ".unpacked_from"  # in an unpacked folder: the name and the hash of its archive


def below(source: Path, unpacked: Path, progress: bool = True) -> list[Path]:
    """All files below a folder, sorted; an archive is unpacked into ``unpacked`` first.

    It is unpacked again only when its name or its content has changed. Hidden files (such as macOS's
    ``._name``) are left out. Links to folders are followed, but no folder is listed twice, so links that lead
    in a circle end.

    Raises
    ------
    FileNotFoundError : ``source`` is not there.
    ValueError : ``source`` is neither a folder nor an archive, or it is a bad archive.
    FileExistsError : ``source`` is an archive, and ``unpacked`` was not unpacked by this function.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(
            f"{source} is not there; name the folder, or the archive, with the original files"
        )
    if source.is_file():
        if not source.name.lower().endswith(ARCHIVES):
            raise ValueError(
                f"{source} is neither a folder nor an archive ({', '.join(ARCHIVES)}); "
                "name the folder of the original files"
            )
        _unpack_once(source, unpacked, progress)
        source = unpacked
    return sorted(_walk(source))


def _unpack_once(archive: Path, folder: Path, progress: bool) -> None:
    """Unpack an archive into ``folder``, unless exactly this archive has been unpacked there already.

    A folder that this function made contains the file ``_MADE_FROM``; it is replaced if the archive is
    another one. The file is inside the folder, so that it cannot be taken for that of a folder which the user
    puts in the same place. Any other folder belongs to the user and is never read, changed or deleted.
    """
    made_from = folder / _MADE_FROM
    if os.path.lexists(folder) and not made_from.is_file():
        raise FileExistsError(
            f"{folder} is there already and was not unpacked by this command: move it away, "
            "or name that folder instead of the archive if it holds the original files"
        )
    content = f"{archive.name} {digest([archive], progress)}"
    if made_from.is_file() and made_from.read_text(encoding="utf-8") == content:
        return
    new = folder.with_name(f".{folder.name}.new")  # renamed when it is complete, so a stop leaves no half
    shutil.rmtree(new, ignore_errors=True)
    if folder.exists():
        folder.rename(new)  # first, so that a stop during the deletion does not leave a part in its place
        shutil.rmtree(new)
    unpack(archive, new, progress)
    (new / _MADE_FROM).write_text(content, encoding="utf-8")
    new.rename(folder)


def _walk(source: Path) -> Iterator[Path]:
    """Files below a folder. A folder that can be reached by its own path and by a link has its own path."""
    seen, queue = set(), [source]
    for start in queue:  # it grows by the links that are found
        for folder, folders, names in os.walk(start):
            if (real := os.path.realpath(folder)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            queue += [link for name in folders if (link := Path(folder) / name).is_symlink()]
            files = (Path(folder) / name for name in names if not name.startswith("."))
            yield from (file for file in files if file.is_file())  # no pipes, no links that lead nowhere


def digest(files: list[Path], progress: bool = True) -> str:
    """Hash of the files' names (each with its last folder) and contents.

    It reads every byte, at some hundred megabytes a second. Sizes and dates would be quicker, but a file can
    change without them.
    """
    sizes = [file.stat().st_size for file in files]
    found = hashlib.sha256()
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="verifying", disable=not progress) as bar:
        for file, size in zip(files, sizes):
            found.update(os.fsencode(f"{file.parent.name}/{file.name} {size}\n"))
            with open(file, "rb") as content:
                while block := content.read(1 << 20):
                    found.update(block)
                    bar.update(len(block))
    return found.hexdigest()[:16]


def ready(folder: Path, recipe: dict) -> bool:
    """Whether a data set made in this very way lies in ``folder``, undamaged."""
    if not same_recipe(folder, recipe):
        return False
    bad = prepared.damaged(folder)
    if bad:
        print(f"{folder}: damaged ({', '.join(bad)}), prepared again", file=sys.stderr)
    return not bad


def looks_like(files: list[Path], asked: str) -> str:
    """Half a sentence on what lies in a folder where the data set that was asked for was not found."""
    names = [f.name for f in files]
    scans = [f for f in files if f.name.endswith((".nii", ".nii.gz", ".mgz"))]
    archives = [n for n in names if n.lower().endswith(ARCHIVES)]
    if not files:
        return "it holds no files"
    if asked != "rafd" and any(n.startswith("Rafd") for n in names):
        return "this looks like RaFD: python -m data_download rafd"
    if scans and all("seg" in f.name.lower() or "label" in f.name.lower() for f in scans):
        return (
            "it holds label maps without images, as SynthSeg's are "
            "(those are for: python -m data_download anatomies)"
        )
    if asked != "oasis" and any("OASIS" in f.parent.name + f.name for f in scans):
        return "this looks like OASIS: python -m data_download oasis"
    if asked != "oasis" and any(n.endswith((".pkl", ".pickle")) for n in names):
        return "it holds pickles, as the OASIS of TransMorph is packed: python -m data_download oasis"
    if archives:
        return f"it holds archives ({', '.join(archives[:2])}): name the archive itself, or unpack it"
    return f"it holds {len(files)} other files ({', '.join(names[:3])})"
