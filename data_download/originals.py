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


def below(source: Path, unpacked: Path, progress: bool = True) -> list[Path]:
    """All files below a folder, sorted; an archive is unpacked into ``unpacked`` first.

    It is unpacked again only when its name or its content has changed. Hidden files (such as macOS's
    ``._name``) are left out. Links to folders are followed, but no folder is listed twice, so links that lead
    in a circle end.
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
        made_from = unpacked.with_name(f".{unpacked.name}.from")  # tells from which archive ``unpacked`` is
        archive = f"{source.name} {digest([source], progress)}"
        if not (unpacked.is_dir() and made_from.is_file() and made_from.read_text() == archive):
            if made_from.is_file():  # an earlier call made the folder; a folder of the user is never deleted
                shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            made_from.write_text(
                archive
            )  # before the folder: after a stop between the two, the next call goes on
            unpack(source, unpacked, progress)
        source = unpacked
    return sorted(_walk(source))


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
            found.update(f"{file.parent.name}/{file.name} {size}\n".encode())
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
