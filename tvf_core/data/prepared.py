"""Prepared data sets, as ``python -m data_download`` leaves them in a folder.

| file | holds |
|---|---|
| ``images.npy`` | (n, *S) uint8, 255 is intensity 1 |
| ``labels.npy`` | (m, *S) uint8, of the first m images; no such file without labels |
| ``pairs_train.csv``, ``pairs_val.csv``, ``pairs_test.csv`` | ordered pairs: names of the ``moving`` and the ``fixed`` image |
| ``dataset.json`` | names of images and labels, spacing, where it all is from, how it was made, hashes of the files above |

Arrays are opened as memory maps: nothing is read before it is used, and processes share what was read.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np

from ..paths import sha256

ABOUT, IMAGES, LABELS = "dataset.json", "images.npy", "labels.npy"


def pairs_file(split: str) -> str:
    """Name of the list of pairs of a split."""
    return f"pairs_{split}.csv"


def about(folder: Path) -> dict | None:
    """What ``dataset.json`` says; None where no finished data set lies."""
    file = Path(folder) / ABOUT
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError:
        raise ValueError(
            f"{file} is damaged; delete {folder} and prepare it again with python -m data_download"
        ) from None


def fingerprint(known: dict) -> str:
    """Hash of the images, labels and pairs that ``dataset.json`` names: the same for the same content, however it was made."""
    content = [
        digest
        for name, digest in sorted(known["sha256"].items())
        if "/" not in name and name.endswith((".npy", ".csv"))
    ]
    return hashlib.sha256("".join(content).encode()).hexdigest()[:16]


def damaged(folder: Path) -> list[str]:
    """Names of the files of a prepared data set that are missing or not as they were written."""
    known = about(folder)["sha256"]
    return [
        name
        for name, digest in known.items()
        if not (Path(folder) / name).is_file() or sha256(Path(folder) / name) != digest
    ]


def read(folder: Path, split: str) -> dict:
    """Images, pairs, names and labels of one split: the arguments of :class:`tvf_core.data.PairData`.

    FileNotFoundError where the data set or the split is not there; ValueError if its files do not belong together.
    """
    folder, known = Path(folder), about(folder)
    if known is None:
        raise FileNotFoundError(f"{folder}: no prepared data set here")
    listing = folder / pairs_file(split)
    if not listing.is_file():
        here = ", ".join(sorted(f.stem.removeprefix("pairs_") for f in folder.glob("pairs_*.csv")))
        raise FileNotFoundError(f"{known['name']}: no pairs for the split {split!r}; here: {here}")
    try:
        images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
        labels = (
            np.load(folder / LABELS, mmap_mode="r", allow_pickle=False)
            if (folder / LABELS).is_file()
            else None
        )
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{folder} is damaged ({error}); prepare it again: python -m data_download {known['command']}"
        ) from None
    number = {name: k for k, name in enumerate(known["names"])}
    with open(listing, newline="", encoding="utf-8") as file:
        pairs = [(number[row["moving"]], number[row["fixed"]]) for row in csv.DictReader(file)]
    if len(images) != len(number) or (labels is not None and labels.shape[1:] != images.shape[1:]):
        raise ValueError(
            f"{folder} is damaged (its arrays do not fit {ABOUT}); "
            f"prepare it again: python -m data_download {known['command']}"
        )
    content = {
        "images": images,
        "pairs": pairs,
        "names": known["names"],
        "axes": known.get("axes", "RAS"),
        "origin": fingerprint(known),
    }
    if labels is not None and all(max(pair) < len(labels) for pair in pairs):
        content |= {"labels": labels, "label_names": {int(k): v for k, v in known["label_names"].items()}}
    return content
