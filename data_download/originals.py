"""What the data sets share that the user has to get: the files below what was named, and what they look like."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from tvf_core.data import prepared

from .building import same_recipe
from .unpack import unpack

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")


def below(source: Path, unpacked: Path, progress: bool = True) -> list[Path]:
    """All files below a folder, sorted; an archive is unpacked into ``unpacked`` first, once.

    Links to folders are followed; hidden files (such as macOS's ``._name``) are left out.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(
            f"{source} is not there; name the folder, or the archive, with the original files"
        )
    if source.is_file():
        if not source.name.lower().endswith(ARCHIVES):
            raise ValueError(
                f"{source} is neither a folder nor an archive ({', '.join(ARCHIVES)}); name the folder of the original files"
            )
        made_from = unpacked.with_name(f".{unpacked.name}.from")  # tells whether it is from this archive
        archive = f"{source.name} {source.stat().st_size}"
        if not (unpacked.is_dir() and made_from.is_file() and made_from.read_text() == archive):
            if made_from.is_file():  # then the folder is one of ours
                shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            made_from.write_text(archive)  # first, so that a stop between the two blocks nothing
            unpack(source, unpacked, progress)
        source = unpacked
    return sorted(
        Path(folder) / name
        for folder, _, names in os.walk(source, followlinks=True)
        for name in names
        if not name.startswith(".")
    )


def digest(files: list[Path]) -> str:
    """Hash of the files' names (with the last folder) and sizes: cheap, and changes when the source does."""
    return hashlib.sha256(
        "\n".join(f"{f.parent.name}/{f.name} {f.stat().st_size}" for f in files).encode()
    ).hexdigest()[:16]


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
        return "it holds label maps without images, as SynthSeg's are (those are for: python -m data_download anatomies)"
    if asked != "oasis" and any("OASIS" in f.parent.name + f.name for f in scans):
        return "this looks like OASIS: python -m data_download oasis"
    if asked != "oasis" and any(n.endswith((".pkl", ".pickle")) for n in names):
        return "it holds pickles, as the OASIS of TransMorph is packed: python -m data_download oasis"
    if archives:
        return f"it holds archives ({', '.join(archives[:2])}): name the archive itself, or unpack it"
    return f"it holds {len(files)} other files ({', '.join(names[:3])})"
