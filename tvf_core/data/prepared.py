"""Data sets that lie in a folder: those that ``python -m data_download`` prepares, and your own.

| file | holds |
|---|---|
| ``images.npy`` | (n, *S) uint8, 2D or 3D, 255 is intensity 1 |
| ``labels.npy`` | (m, *S) of any integer type, label maps of the first m images, 0 is background; optional |
| ``landmarks.npy`` | (m, K, D) float, K points of each of the first m images, in voxels; optional |
| ``pairs_train.csv`` | a line ``moving,fixed``, then two names of images per line |
| ``pairs_val.csv``, ``pairs_test.csv`` | likewise |
| ``dataset.json`` | a JSON object; ``{}`` is enough |

Every key of ``dataset.json`` is optional:

| key | says | without it |
|---|---|---|
| ``name`` | the name under which runs and results are filed | the folder's name |
| ``names`` | a name for each image | 0, 1, 2, ... |
| ``subjects`` | for each image, which person it shows | each image shows another person |
| ``label_names`` | label number -> structure, without background | the labels that occur, "label 1", ... |
| ``landmark_scale`` | the numbers of two landmarks; 100 % of an error is their distance | no errors in % |
| ``axes`` | 3D: where the array's axes run: R or L, A or P, S or I | RAS |
| ``credit`` | what a figure of these images must say of where they are from | nothing |
| ``spacing_mm`` | the size of a voxel; every computation here is in voxels | unknown |
| ``sha256`` | file name -> hash, as :func:`write` stores them | computed whenever the data are loaded |

Other keys are remarks. Arrays are opened as memory maps: nothing is read before it is used, and processes
share what was read.

A folder may hold several lists of pairs, each of them a data set with a name of its own: ``pairs_train.csv``
is that of ``london``, and ``people_train.csv`` that of ``london_people``.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..paths import for_files, sha256, write_json
from . import folder_checks

ABOUT, IMAGES, LABELS, LANDMARKS = "dataset.json", "images.npy", "labels.npy", "landmarks.npy"
HELP = "book/your_data.md says how to write a data set"


def pairs_file(split: str, listing: str = "pairs") -> str:
    """Name of the list of pairs of a split. ``listing`` tells several lists of one split apart."""
    return f"{listing}_{split}.csv"


def about(folder: Path) -> dict | None:
    """Content of ``dataset.json``; None where there is no such file, as where a data set is not finished."""
    file = Path(folder) / ABOUT
    if not file.is_file():
        return None
    with contextlib.suppress(ValueError):
        if isinstance(content := json.loads(file.read_text(encoding="utf-8-sig")), dict):
            return content
    raise ValueError(
        f"{file} is damaged: it is not a JSON object such as {{}}; correct it or make the data set again"
    )


def own_name(folder: Path) -> str:
    """Name of the data set in a folder: what ``dataset.json`` says, else the folder's own name.

    ValueError where runs and results could not be filed in a folder of this name.
    """
    name = (about(folder) or {}).get("name", Path(folder).resolve().name)
    hint = f'write a plain one, such as "name": "my_scans", into its {ABOUT}'
    return for_files(folder_checks.plain_name(name, folder, hint))


def damaged(folder: Path) -> list[str]:
    """Names of the files of a prepared data set that are missing or not as they were written."""
    known = about(folder).get("sha256", {})
    return [
        name
        for name, digest in known.items()
        if not (Path(folder) / name).is_file() or sha256(Path(folder) / name) != digest
    ]


def read(folder: Path, split: str, listing: str = "pairs") -> dict:
    """Read one split of the data set in a folder.

    Parameters
    ----------
    listing : begin of the names of the lists of pairs, where a folder has several lists of each split.

    Returns
    -------
    The arguments of :class:`tvf_core.data.PairData` after its name and split. Labels are there if both images
    of every pair of the split have them, and so are landmarks.

    Raises
    ------
    FileNotFoundError : the data set, its images or the pairs of this split are not there.
    ValueError : its files do not fit together; one line says what is wrong and how to correct it.

    Notes
    -----
    A line on stderr warns where persons of the validation or test split are in another split too.
    """
    folder, known = Path(folder), about(folder)
    lacking = [name for name in (IMAGES, ABOUT) if not (folder / name).is_file()]
    if lacking:
        raise FileNotFoundError(f"{folder} is no data set, it has no {' and no '.join(lacking)}; {HELP}")
    listings = {f.stem.removeprefix(f"{listing}_"): f for f in sorted(folder.glob(pairs_file("*", listing)))}
    if split not in listings:
        raise FileNotFoundError(
            f"{folder}: no pairs for the split {split!r}; it needs a file {pairs_file(split, listing)}, "
            f"here are pairs for: {', '.join(listings) or 'no split'}"
        )
    try:
        images = _opened(folder / IMAGES)
        labels = _opened(folder / LABELS) if (folder / LABELS).is_file() else None
        landmarks = _opened(folder / LANDMARKS) if (folder / LANDMARKS).is_file() else None
        folder_checks.stored(images, labels)
        hashes = _hashes(folder, known, listings.values())
        names = folder_checks.texts(known.get("names", range(len(images))), len(images), "names")
        subjects = _subjects(folder, known, names)
        label_names = folder_checks.check_label_names(known.get("label_names", {}))
        if labels is not None and not (label_names and "sha256" in known):  # else they were checked already
            label_names = folder_checks.named(_values(folder / LABELS, _stamp(folder / LABELS)), label_names)
        axes = folder_checks.check_axes(known.get("axes", "RAS"))
        if landmarks is not None:
            points = folder_checks.landmark_points(landmarks, known.get("landmark_scale", ()), images.shape)
        pairs = {part: _read_pairs(file, part, names) for part, file in listings.items()}
    except (ValueError, TypeError, OSError) as error:
        again = (
            f"; prepare it again: python -m data_download {known['command']}" if "command" in known else ""
        )
        raise ValueError(f"{folder} cannot be used: {error}{again}") from None
    if shared := folder_checks.shared_persons(split, pairs, subjects):
        print(f"{folder}: {shared}", file=sys.stderr)
    content = {"images": images, "pairs": pairs[split], "names": names, "subjects": subjects, "axes": axes}
    content |= {"origin": _fingerprint(hashes), "credit": str(known.get("credit", ""))}
    if labels is not None and all(max(pair) < len(labels) for pair in pairs[split]):
        content |= {"labels": labels, "label_names": label_names}
    if landmarks is not None and all(max(pair) < len(landmarks) for pair in pairs[split]):
        content |= points
    return content


def write(
    folder: Path,
    images: Iterable,
    pairs: Mapping[str, Iterable[tuple]],
    *,
    names: Iterable[str] | None = None,
    labels: Iterable | None = None,
    label_names: Mapping[int, str] | None = None,
    subjects: Iterable | None = None,
    landmarks: Iterable | None = None,
    landmark_scale: Iterable[int] = (),
    spacing: float | tuple[float, ...] | None = None,
    axes: str = "RAS",
    name: str = "",
) -> Path:
    """Write a data set of your own: a folder whose path then stands for it wherever a data set is named.

    Parameters
    ----------
    folder : must not exist yet.
    images : n arrays of one shape, 2D or 3D: float in [0, 1], or uint8 (255 is intensity 1). Stored as uint8.
    pairs : split (``train``, ``val``, ``test``) -> ordered (moving, fixed) pairs: names, or numbers from 0.
    names : a name for each image; default its number.
    labels : label maps of whole numbers from 0 (background) on, of all images or of the first ones; stored in
        the smallest unsigned type that holds them.
    label_names : label number -> structure, for every label that occurs; default "label 1" and so on.
    subjects : for each image, which person it shows; default another one each.
    landmarks : points of all images or of the first ones, an array ``(K, D)`` for each, in voxels along the
        axes of the images; the same K points in the same order.
    landmark_scale : the numbers of two landmarks; errors are also given in per cent of their distance.
    spacing : size of a voxel in mm, one number or one for each axis; a remark only.
    axes : 3D: where the array's axes run, as nibabel's ``aff2axcodes`` tells.
    name : the name of the data set; default the folder's.

    Returns
    -------
    The folder.

    Raises
    ------
    FileExistsError : there is something at ``folder`` already.
    ValueError : an argument does not fit; nothing is left behind.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another folder, or delete it first")
    folder_checks.plain_name(name or folder.name, folder)
    checked = folder_checks.checked(
        images, names, labels, label_names, subjects, axes, landmarks=landmarks, landmark_scale=landmark_scale
    )
    arrays = {IMAGES: checked["images"]}
    known = ({"name": name} if name else {}) | {"names": checked["names"], "axes": checked["axes"]}
    if subjects is not None:
        known["subjects"] = checked["subjects"]
    if labels is not None:
        numbers = checked["labels"]
        arrays[LABELS] = numbers.astype(np.min_scalar_type(numbers.max()), copy=False)
        known["label_names"] = {str(number): text for number, text in checked["label_names"].items()}
    if landmarks is not None:
        arrays[LANDMARKS] = checked["landmarks"]
        known |= {"landmark_scale": list(scale)} if (scale := checked["landmark_scale"]) else {}
    if spacing is not None:
        known["spacing_mm"] = np.asarray(spacing, float).tolist()
    pairs = folder_checks.named_pairs(pairs, known["names"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        for file, array in arrays.items():
            np.save(part / file, array)
        complete(part, pairs, known)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def complete(folder: Path, pairs: Mapping[str, Iterable[tuple[str, str]]], known: dict, leave_out=()) -> None:
    """Add the lists of pairs and, last, ``dataset.json`` with hashes of all files to a folder of arrays.

    Parameters
    ----------
    pairs : split -> ordered (moving, fixed) names.
    known : what ``dataset.json`` is to say; ``names`` among it.
    leave_out : names of files that are not part of the data set.
    """
    write_pairs(folder, pairs, known["names"])
    files = sorted(
        f
        for f in folder.rglob("*")
        if f.is_file() and f.name not in (*leave_out, ABOUT) and not f.name.startswith(".")
    )
    hashes = {f.relative_to(folder).as_posix(): sha256(f) for f in files}
    write_json(folder / ABOUT, known | {"sha256": hashes})


def write_pairs(
    folder: Path, pairs: Mapping[str, Iterable[tuple[str, str]]], names: Iterable[str], listing: str = "pairs"
) -> None:
    """Write a list of ordered (moving, fixed) names for each split; ValueError for one not in ``names``."""
    for split, of_split in pairs.items():
        if unknown := {name for pair in of_split for name in pair} - set(names):
            raise ValueError(f"the pairs of {split} name unknown images: {', '.join(sorted(unknown)[:5])}")
        with open(folder / pairs_file(split, listing), "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("moving", "fixed"), *of_split])


def _opened(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file.name} is no whole array as np.save writes it ({error})") from None


def _stamp(file: Path) -> tuple[int, int]:
    """What changes when a file does."""
    return file.stat().st_mtime_ns, file.stat().st_size


@functools.lru_cache(maxsize=64)
def _hash(file: Path, stamp: tuple[int, int]) -> str:
    return sha256(file)


@functools.lru_cache(maxsize=64)
def _values(file: Path, stamp: tuple[int, int]) -> tuple[int, ...]:
    return folder_checks.occurring(_opened(file))


def _hashes(folder: Path, known: dict, listings: Iterable[Path]) -> dict[str, str]:
    """Hashes of the arrays and the lists of pairs: those that ``dataset.json`` has, else computed.

    ValueError where a list of ``listings``, which is easily edited, is not the one that was hashed.
    """
    files = [file for name in (IMAGES, LABELS, LANDMARKS) if (file := folder / name).is_file()]
    files += listings
    if "sha256" not in known:  # then of the folder's other lists too: all of them have one fingerprint
        files += [file for split in folder_checks.SPLITS for file in folder.glob(pairs_file(split, "[!.]*"))]
        return {file.name: _hash(file, _stamp(file)) for file in files}
    hashes = known["sha256"]
    if not isinstance(hashes, dict) or not all(isinstance(digest, str) for digest in hashes.values()):
        raise ValueError(f'"sha256" in {ABOUT} is no object of file names and hashes; delete this key')
    for name in (LABELS, LANDMARKS):
        if name in hashes and not (folder / name).is_file():
            raise ValueError(f"there is no {name}, which {ABOUT} tells of")
    for file in files:
        stored = hashes.get(file.name)
        if stored is None or (file.suffix == ".csv" and stored != _hash(file, _stamp(file))):
            raise ValueError(
                f'{file.name} is not the file that "sha256" in {ABOUT} tells of; '
                f'if you have changed it yourself, delete the key "sha256" from {ABOUT}'
            )
    return {name: digest for name, digest in hashes.items() if "/" not in name}


def _fingerprint(hashes: dict[str, str]) -> str:
    """Hash of all arrays and lists of pairs: the same for the same content, however it was made."""
    content = [digest for name, digest in sorted(hashes.items()) if name.endswith((".npy", ".csv"))]
    return hashlib.sha256("".join(content).encode()).hexdigest()[:16]


def _subjects(folder: Path, known: dict, names: list[str]) -> list[str]:
    """Which person each image shows."""
    given = known.get("subjects", names)
    if not isinstance(given, dict):
        return folder_checks.texts(given, len(names), "subjects")
    if sum(map(len, given.values())) < len(names):  # older folders list the persons of each split instead
        print(
            f"{folder}: {ABOUT} does not say which person an image shows, so each counts as another one; "
            f"prepare it again: python -m data_download {known.get('command')}",
            file=sys.stderr,
        )
    return names


def _read_pairs(listing: Path, split: str, names: list[str]) -> list[tuple[int, int]]:
    """Pairs of image numbers from a list of names."""
    number = {name: k for k, name in enumerate(names)}
    try:
        text = listing.read_text(encoding="utf-8-sig")  # Excel begins its files with a mark
    except UnicodeDecodeError:
        raise ValueError(f"{listing.name} is not in UTF-8; save it anew in this encoding") from None
    reader = csv.DictReader(text.splitlines())
    if not {"moving", "fixed"} <= set(reader.fieldnames or ()):
        raise ValueError(f"{listing.name} needs the columns moving and fixed, named in its first line")
    try:
        pairs = [(row["moving"], row["fixed"]) for row in reader]
        folder_checks.once(pairs, split, listing.name)
        return [(number[moving], number[fixed]) for moving, fixed in pairs]
    except KeyError as error:
        known = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        where = f"{listing.name}, line {reader.line_num}"
        raise ValueError(f"{where}: no image has the name {error}; the names are {known}") from None
