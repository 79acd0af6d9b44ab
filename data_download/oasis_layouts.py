"""The three ways in which the OASIS scans of the challenge are handed out: which file is which subject.

| layout | files | numbers | validation subjects |
|---|---|---|---|
| neurite | ``OASIS_OAS1_0438_MR1/aligned_norm.nii.gz`` | OASIS's, with gaps | 0438..0457 |
| learn2reg | ``imagesTr/OASIS_0395_0000.nii.gz`` | 0001..0414; tests 0415..0453 | 0395..0414 |
| pickles | ``All/*.pkl``: image and labels | OASIS's, with gaps | 0438..0457 |

- ``neurite`` is neurite's release and Learn2Reg's of 2021. The labels are ``aligned_seg35.nii.gz`` beside the
  image, the test images are ``img0001.nii.gz`` and so on.
- ``learn2reg`` is Learn2Reg's release since 2022. The labels have the same name in ``labelsTr``, the test
  images lie in ``imagesTs``.
- ``pickles`` are TransMorph's. A file such as ``Test/p_0438_0439.pkl`` holds a validation pair.
"""

from __future__ import annotations

import itertools
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from . import originals
from .unpickle import load_arrays

SUBJECTS, TESTS = 414, 39
VALIDATION = {"neurite": range(438, 458), "learn2reg": range(395, 415), "pickles": range(438, 458)}
_TEST_NUMBERS = {"neurite": range(1, 40), "learn2reg": range(415, 454), "pickles": range(0)}
_FILES = {  # (layout, kind): last folder and name
    ("neurite", "images"): r"OASIS_OAS1_(\d{4})_MR1/aligned_norm\.nii\.gz",
    ("neurite", "labels"): r"OASIS_OAS1_(\d{4})_MR1/aligned_seg35\.nii\.gz",
    ("neurite", "tests"): r".*/img(\d{4})\.nii\.gz",
    ("learn2reg", "images"): r"imagesTr/OASIS_(\d{4})_0000\.nii\.gz",
    ("learn2reg", "labels"): r"labelsTr/OASIS_(\d{4})_0000\.nii\.gz",
    ("learn2reg", "tests"): r"imagesTs/OASIS_(\d{4})_0000\.nii\.gz",
    ("pickles", "subjects"): r"All/(?:.*\D)?(\d+)\.pkl",
    ("pickles", "pairs"): r"Test/p_(\d{4}_\d{4})\.pkl",
}
_GET = "get the release again, or check that it was unpacked completely"


@dataclass(frozen=True)
class Scan:
    """One scan, and the places where it is.

    Each of ``copies`` is (NIfTI file of the image, of the labels), or (pickle, number of the image in it, of
    the labels).
    """

    name: str
    copies: tuple[tuple, ...]

    @property
    def files(self) -> list[Path]:
        return [part for copy in self.copies for part in copy if isinstance(part, Path)]


@dataclass(frozen=True)
class Release:
    """Scans of one layout, by number: with labels, and for the test without."""

    layout: str
    labelled: dict[int, Scan]
    tests: dict[int, Scan]

    @property
    def scans(self) -> list[Scan]:
        return [*self.labelled.values(), *self.tests.values()]


def name(number: int) -> str:
    """Name of a subject."""
    return f"OASIS_{number:04d}"


def test_name(layout: str, number: int) -> str:
    """Name of a test image; in the neurite layout its number is one of its own."""
    return f"OASIS_test_{number:04d}" if layout == "neurite" else name(number)


def split(layout: str, numbers) -> tuple[list[int], list[int]]:
    """Training and validation subjects."""
    return [n for n in numbers if n not in VALIDATION[layout]], [
        n for n in numbers if n in VALIDATION[layout]
    ]


def pairs(layout: str, numbers, tests=()) -> dict[str, list[tuple[str, str]]]:
    """Ordered (moving, fixed) names of each split, as in the challenge.

    Training: every two subjects, both ways. Validation and test: fixed k, moving k + 1. No test images, no
    test split.
    """
    training, validation = split(layout, numbers)
    result = {
        "train": [(name(m), name(f)) for m, f in itertools.permutations(training, 2)],
        "val": [(name(k + 1), name(k)) for k in validation if k + 1 in validation],
    }
    if tests:
        result["test"] = [
            (test_name(layout, k + 1), test_name(layout, k)) for k in sorted(tests) if k + 1 in tests
        ]
    return result


def recognise(source: Path, files: list[Path], partial: bool) -> Release:
    """The one release among the files; ValueError for none, two, or (without ``partial``) a part of one."""
    found = {key: _numbered(files, pattern) for key, pattern in _FILES.items()}
    layouts = [
        layout
        for layout in VALIDATION
        if any(found[key] for key in found if key[0] == layout and key[1] != "tests")
    ]
    if not layouts:
        raise ValueError(
            f"{source}: no release of OASIS in it or below (OASIS_OAS1_*_MR1/aligned_norm.nii.gz; imagesTr "
            f"and labelsTr; or All and Test); {_instead(files)}"
        )
    if len(layouts) > 1:
        raise ValueError(
            f"{source}: holds the releases {' and '.join(layouts)}; name the folder of one of them"
        )
    [layout] = layouts
    if layout == "pickles":
        release = _pickles(found["pickles", "subjects"], found["pickles", "pairs"])
    else:
        tests = {n: file for n, file in found[layout, "tests"].items() if int(n) in _TEST_NUMBERS[layout]}
        release = _nifti(layout, found[layout, "images"], found[layout, "labels"], tests, files, partial)
    if partial:
        if len(split(layout, release.labelled)[0]) < 2 or not pairs(layout, release.labelled)["val"]:
            first = VALIDATION[layout][0]
            raise ValueError(
                f"{source}: {len(release.labelled)} subjects; even a part needs two for training and two "
                f"neighbours for validation (as {first:04d} and {first + 1:04d})"
            )
    else:
        _complete(layout, release, found)
    return release


def _numbered(files: list[Path], pattern: str) -> dict[str, Path]:
    """Number, of at least four digits (or two numbers, of a pair) -> file; sorted."""
    table: dict[str, Path] = {}
    for file in files:
        if match := re.fullmatch(pattern, f"{file.parent.name}/{file.name}"):
            number = "_".join(f"{int(part):04d}" for part in match[1].split("_"))
            if table.setdefault(number, file) != file:
                raise ValueError(f"{number} comes twice: {table[number]} and {file}; leave only one")
    return dict(sorted(table.items()))


def _instead(files: list[Path]) -> str:
    """Half a sentence on what is there instead of a release."""
    names = {f.name for f in files}
    raw = sorted(
        n for n in names if re.fullmatch(r"(orig|norm|slice_orig|slice_norm|aligned_orig)\.nii\.gz", n)
    )
    if raw and not names & {"aligned_norm.nii.gz", "aligned_seg35.nii.gz"}:
        return (
            f"only {', '.join(raw)} of neurite's files; "
            "needed are aligned_norm.nii.gz and aligned_seg35.nii.gz of the 3D release"
        )
    return originals.looks_like(files, "oasis")


def _nifti(layout: str, images: dict, labels: dict, tests: dict, files: list[Path], partial: bool) -> Release:
    wanted = {
        "neurite": ("aligned_norm.nii.gz", "aligned_seg35.nii.gz"),
        "learn2reg": ("file in imagesTr", "file in labelsTr"),
    }[layout]
    subjects = {*images, *labels}
    if layout == "neurite":  # a subject's folder with neither
        subjects |= {
            match[1] for f in files if (match := re.fullmatch(r"OASIS_OAS1_(\d{4})_MR1", f.parent.name))
        }
    for number in sorted(subjects):
        for what, table in zip(wanted, (images, labels)):
            if number not in table:
                if not partial:
                    raise ValueError(
                        f"{name(int(number))}: has no {what}; {_GET}; --partial leaves such subjects out"
                    )
                print(f"left out: {name(int(number))} has no {what}", file=sys.stderr)
    return Release(
        layout,
        {int(n): Scan(name(int(n)), ((images[n], labels[n]),)) for n in sorted(images) if n in labels},
        {int(n): Scan(test_name(layout, int(n)), ((file, None),)) for n, file in tests.items()},
    )


def _pickles(subjects: dict, validation: dict) -> Release:
    """Scans of TransMorph's release. Its validation subjects lie in files of pairs, most of them in two."""
    scans = {int(n): [(file, 0, 1)] for n, file in subjects.items()}
    known = set(VALIDATION["pickles"])
    first, second = (1, 0) if _fixed_first(validation) else (0, 1)  # number of the moving, of the fixed image
    for number in scans:
        if number in known:
            raise ValueError(
                f"{subjects[f'{number:04d}']}: a validation subject in All, with those for training; "
                "take it away"
            )
    for pair, file in validation.items():
        fixed, moving = map(int, pair.split("_"))
        if not {fixed, moving} <= known or moving != fixed + 1:
            raise ValueError(
                f"{file}: not a pair of the challenge "
                f"(fixed k, moving k + 1 of {min(known):04d}..{max(known):04d}); take it away"
            )
        scans.setdefault(fixed, []).append((file, second, second + 2))  # two images, then their labels
        scans.setdefault(moving, []).append((file, first, first + 2))
    return Release("pickles", {n: Scan(name(n), tuple(scans[n])) for n in sorted(scans)}, {})


def _fixed_first(validation: dict) -> bool:
    """Whether the pair files hold the fixed image first; the released code reads the moving image first.

    Two neighbouring files tell: the middle one of their three scans is moving in one file and fixed in the
    next.
    """
    for pair, file in validation.items():
        fixed, moving = map(int, pair.split("_"))
        other = validation.get(f"{moving:04d}_{moving + 1:04d}")
        if other is not None:
            here, there = load_arrays(file), load_arrays(other)
            return not np.array_equal(here[0], there[1]) and np.array_equal(here[1], there[0])
    return False


def _complete(layout: str, release: Release, found: dict) -> None:
    """Everything the release has must be there."""
    training, validation = split(layout, release.labelled)
    partly = f"{_GET}; --partial takes what is there"
    absent = [n for n in VALIDATION[layout] if n not in validation]
    if layout == "pickles":
        absent_pairs = [
            f"p_{k:04d}_{k + 1:04d}.pkl"
            for k in VALIDATION[layout][:-1]
            if f"{k:04d}_{k + 1:04d}" not in found[layout, "pairs"]
        ]
        if absent_pairs:
            raise ValueError(
                f"{len(absent_pairs)} of 19 pairs are missing in Test/: "
                f"{', '.join(absent_pairs[:5])}; {partly}"
            )
    if absent:
        raise ValueError(
            f"{len(absent)} validation subjects are missing: {', '.join(map(name, absent[:5]))}; {partly}"
        )
    if len(release.labelled) != SUBJECTS:
        raise ValueError(
            f"{len(training)} training subjects, the release has {SUBJECTS - len(validation)}; {partly}"
        )
    if release.tests and list(release.tests) != list(_TEST_NUMBERS[layout]):
        raise ValueError(f"{len(release.tests)} test images, the release has {TESTS}; {partly}")


def headers(release: Release, partial: bool) -> str:
    """Check the shapes and affines in the files' headers, and give the orientation that they name.

    Pickles have no headers; for them the result is ''.
    """
    if release.layout == "pickles":
        return ""
    said, shapes, apart = set(), {}, []
    for scan in release.scans:
        heads = [_open(file) for file in scan.files]
        shapes[scan] = _plain(heads[0].shape)
        said.add("".join(str(code) for code in nib.aff2axcodes(heads[0].affine)))
        for head in heads[1:]:
            if _plain(head.shape) != shapes[scan]:
                raise ValueError(
                    f"{scan.name}: image {shapes[scan]} and labels {_plain(head.shape)} differ in shape; "
                    f"{_GET}"
                )
            if nib.aff2axcodes(head.affine) != nib.aff2axcodes(heads[0].affine):
                apart.append(scan)
        check_shape(scan, shapes[scan], next(iter(shapes.values())), partial)
    if 0 < len(apart) < len(release.labelled):  # where it is so for all, it says nothing about any
        raise ValueError(
            f"{apart[0].name}: the headers of image and labels turn them differently, "
            f"those of other subjects do not; {_GET}"
        )
    return ", ".join(sorted(said))


def check_shape(scan: Scan, shape: tuple, others: tuple, partial: bool) -> None:
    """A shape must be the release's, and that of the other scans."""
    if len(shape) != 3 or (sorted(shape) != [160, 192, 224] and not partial):
        raise ValueError(
            f"{scan.name}: shape {shape}, expected 160, 192, 224 in some order; take the aligned volumes "
            "of the release (--partial accepts others)"
        )
    if shape != others:
        raise ValueError(f"{scan.name}: shape {shape}, the others {others}; {_GET}")


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray | None]:
    """Image and labels as stored; labels are None for a test image."""
    (image, labels), *others = [_copy(copy) for copy in scan.copies]
    for (image2, labels2), copy in zip(others, scan.copies[1:]):
        if not (np.array_equal(image, image2) and np.array_equal(labels, labels2)):
            raise ValueError(
                f"{scan.name}: not the same in {scan.copies[0][0].name} and {copy[0].name}; {_GET}"
            )
    return image, labels


def _copy(copy: tuple) -> tuple[np.ndarray, np.ndarray | None]:
    if len(copy) == 3:
        file, image, labels = copy
        arrays, expected = load_arrays(file), 2 if file.parent.name == "All" else 4
        if len(arrays) != expected:
            raise ValueError(f"{file}: holds {len(arrays)} arrays, expected {expected}; {_GET}")
        return tuple(arrays[k].reshape(_plain(arrays[k].shape)) for k in (image, labels))
    image, labels = copy
    return _array(image), None if labels is None else _array(labels)


def _open(file: Path):
    try:
        return nib.load(file)
    except _BROKEN as error:
        raise _unreadable(file, error) from None


def _array(file: Path) -> np.ndarray:
    try:
        array = np.asarray(nib.load(file).dataobj)
        return array.reshape(_plain(array.shape))
    except _BROKEN as error:
        raise _unreadable(file, error) from None


def _plain(shape: tuple) -> tuple:
    """A shape without axes of length 1 at its end, which some programs add."""
    return _plain(shape[:-1]) if len(shape) > 3 and shape[-1] == 1 else tuple(shape)


_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file}: cannot be read as NIfTI ({type(error).__name__}); {_GET}")
