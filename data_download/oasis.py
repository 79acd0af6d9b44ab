"""OASIS brains as in the challenge: each release becomes a data set with the same axes, names and pairs.

Where the axes of an array point is found from the anatomy in the label maps, since the pickles have no
headers and the releases differ in their axes.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections import Counter
from functools import partial as fixed
from pathlib import Path

import nibabel as nib
import numpy as np

from tvf_core.data import prepared

from . import oasis_layouts as layouts
from . import originals, structures
from .building import Building, recipe_hash
from .fetch import Remote, only_one
from .oasis_layouts import Scan
from .parallel import each
from .structures import LABELS, MIDDLES

ACCESS = """\
OASIS: T1-weighted brain scans of 414 subjects of OASIS-1 (cross-sectional), skull-stripped, aligned,
160 x 192 x 224 voxels of 1 mm, intensities in [0, 1], with label maps of 35 structures; and 39 test images
without labels, which not every release has.

Terms: the OASIS data use agreement, https://www.oasis-brains.org. Acknowledge the OASIS grants; cite Marcus
et al. (2007) and, for these processed images, HyperMorph (Hoopes et al. 2021).

Any of these releases will do; name its folder (or a folder above it, or the archive) with --source:
  neurite     https://github.com/adalca/medical-datasets: the 3D archive, 6.6 GB;
              --download neurite --accept-terms fetches it
  Learn2Reg   https://learn2reg.grand-challenge.org/Datasets: the edition of 2021 or a later one
  TransMorph  the pickles of the repository TransMorph_Transformer_for_Medical_Image_Registration, 1.3 GB
"""

NEURITE = Remote(
    "neurite-oasis.v1.0.tar",
    "https://surfer.nmr.mgh.harvard.edu/ftp/data/neurite/data/neurite-oasis.v1.0.tar",
    "md5:081392a8150ff99ab7a64a9ded377835",
    "neurite-oasis/neurite-oasis.v1.0.tar",
)

AXES = "LIA"  # to the left, down, to the front: what the published weights were trained on
_ALIKE = 0.9  # how well an orientation must fit the reference (a correlation)
_CLEAR = 0.1  # by how much it must fit better than any other


def prepare(source: Path, root: Path, partial: bool = False, progress: bool = True, workers: int = 0) -> Path:
    """Prepare OASIS in ``root/oasis``; what is there already from the same files is only verified.

    Parameters
    ----------
    source : folder of a release, or one above it; or an archive, unpacked into ``root/oasis_originals``.
    root : folder of the prepared data sets.
    partial : accept fewer subjects, and volumes of another size, than the release has.
    progress : show a bar.
    workers : processes; 0 takes one per core.
    """
    root = Path(root)
    folder = root / "oasis"
    with only_one(root, ".oasis.lock"):
        release = layouts.recognise(
            source, originals.below(source, root / "oasis_originals", progress), partial
        )
        files = sorted({file for scan in release.scans for file in scan.files})
        recipe = {
            "data set": "oasis",
            "layout": release.layout,
            "files": originals.digest(files, progress),
            "code": recipe_hash(sys.modules[__name__], layouts, structures),
        }
        if originals.ready(folder, recipe):
            return folder
        in_headers = layouts.headers(release, partial)
        found, stored = common_orientation(list(release.labelled.values()), partial)
        shape = turned(np.empty(stored, np.uint8), found).shape
        if not partial and shape != (160, 192, 224):
            raise ValueError(
                f"{source}: axes {AXES} have {shape} voxels, expected (160, 192, 224); get the release again"
            )
        building = Building(
            folder, recipe, [scan.name for scan in release.scans], shape, len(release.labelled)
        )
        jobs = [(k, release.scans[k]) for k in building.missing()]
        each(fixed(_put, building, found, stored, partial), jobs, "oasis", workers, progress)
        parts = layouts.split(release.layout, release.labelled)
        about = {"orientation_in_headers": in_headers} if in_headers not in ("", found) else {}
        building.finish(
            "oasis",
            "oasis --source FOLDER",
            layouts.pairs(release.layout, release.labelled, release.tests),
            LABELS,
            spacing_mm=1.0,
            axes=AXES,
            layout=release.layout,
            orientation_found=found,
            **about,
            source=f"OASIS-1, {release.layout} layout",
            terms="OASIS data use agreement",
            cite="Marcus et al. 2007; Hoopes et al. 2021",
            subjects_of_splits={
                "train": [layouts.name(n) for n in parts[0]],
                "val": [layouts.name(n) for n in parts[1]],
                "test": [scan.name for scan in release.tests.values()],
            },
        )
    return folder


def subject_lists(folder: Path) -> str:
    """Subjects of each split of the prepared data set, as text."""
    lines = []
    known = prepared.about(folder)
    for part, names in known.get("subjects_of_splits", known.get("subjects", {})).items():
        numbers = " ".join(name.removeprefix("OASIS_").removeprefix("test_") for name in names)
        lines += [
            f"{part}, {len(names)} subjects:",
            *textwrap.wrap(numbers or "none", 100, initial_indent="  ", subsequent_indent="  "),
        ]
    return "\n".join(lines)


def orientation(labels: np.ndarray, name: str = "labels") -> str:
    """Where the axes of a label map run, such as LIA (the first to the left), from where its structures lie.

    Axes can run in 48 ways. It is the one in which the middles of the structures come closest to where they
    are in people (``structures.MIDDLES``). On twenty real brains it fits with a correlation of 0.99, the next
    one with 0.8.
    """
    count, centre = np.bincount(labels.ravel(), minlength=36), np.empty((36, 3))
    for axis, length in enumerate(labels.shape):
        along = np.broadcast_to(
            np.arange(length).reshape([-1 if a == axis else 1 for a in range(3)]), labels.shape
        )
        centre[:, axis] = np.bincount(labels.ravel(), along.ravel(), minlength=36) / np.maximum(count, 1)
    present = [label for label in MIDDLES if count[label]]
    if len(present) < 8:
        raise ValueError(
            f"{name}: the label map has only {len(present)} of {len(MIDDLES)} structures by which its "
            "orientation can be told; get the release again"
        )
    here, there = (x - x.mean(0) for x in (centre[present], np.array([MIDDLES[label] for label in present])))
    products = (
        here.T @ there / (np.linalg.norm(here) * np.linalg.norm(there))
    )  # (axis of the array, towards R, A, S)
    fits = sorted(
        (
            (
                sum(sign * products[axis, towards] for axis, (towards, sign) in enumerate(zip(order, signs))),
                order,
                signs,
            )
            for order in itertools.permutations(range(3))
            for signs in itertools.product((1, -1), repeat=3)
        ),
        reverse=True,
    )
    if fits[0][0] < _ALIKE or fits[0][0] - fits[1][0] < _CLEAR:
        raise ValueError(
            f"{name}: its structures do not lie along the axes as in a brain (fit {fits[0][0]:.2f}, needed "
            f"{_ALIKE}); take the aligned volumes of the release"
        )
    return "".join("RAS"[towards] if sign > 0 else "LPI"[towards] for towards, sign in zip(*fits[0][1:]))


def turned(array: np.ndarray, axes: str) -> np.ndarray:
    """An array whose axes run as given, with its axes exchanged and flipped to run as ``AXES``."""
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(axes), nib.orientations.axcodes2ornt(AXES)
    )
    return nib.orientations.apply_orientation(array, change)


def common_orientation(scans: list[Scan], partial: bool) -> tuple[str, tuple[int, ...]]:
    """Orientation and shape that most of three scans have: one turned scan must not set the rule for all."""
    found = []
    for scan in (scans[0], scans[len(scans) // 2], scans[-1]):
        image, labels = layouts.read(scan)
        layouts.check_shape(scan, image.shape, image.shape, partial)
        found.append((orientation(checked_labels(scan.name, image, labels), scan.name), image.shape))
    return Counter(found).most_common(1)[0][0]


def checked_image(name: str, image: np.ndarray) -> np.ndarray:
    """The image as float32; it must be the release's normalised one."""
    if not np.isfinite(image).all():
        raise ValueError(f"{name}: the image has NaN or infinite intensities; get it again")
    low, high = float(image.min()), float(image.max())
    if low == high == 0:
        raise ValueError(f"{name}: the image is all zero; get it again")
    if low < -0.1 or not 0.3 <= high <= 1.5:  # a little beyond [0, 1], as resampling leaves it, is cut off
        raise ValueError(
            f"{name}: intensities from {low:.4g} to {high:.4g}, expected [0, 1]; take the normalised image "
            "of the release (aligned_norm), unchanged"
        )
    return image.astype(np.float32, copy=False)


def checked_labels(name: str, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The labels as uint8; they must be the 35 structures of the challenge."""
    if labels.shape != image.shape:
        raise ValueError(
            f"{name}: image {image.shape} and labels {labels.shape} differ in shape; get the release again"
        )
    values = np.unique(labels)
    odd = values[~np.isfinite(values) | (values != np.round(values))]
    if len(odd):
        raise ValueError(
            f"{name}: the label map holds {odd[0]:.4g}, not whole numbers; "
            "take aligned_seg35 of the release, not resampled"
        )
    beyond = [f"{v:g}" for v in values if not 0 <= v <= 35]
    if beyond:
        raise ValueError(
            f"{name}: the label map holds {', '.join(beyond[:4])}, expected 0..35; these are other numbers "
            "(FreeSurfer's go to 60 and beyond): take aligned_seg35 of the release"
        )
    if values.max() <= 4:
        raise ValueError(
            f"{name}: the label map holds only {', '.join(f'{v:g}' for v in values)}, as seg4 does; "
            "take aligned_seg35 of the release"
        )
    return labels.astype(np.uint8)


def _put(building: Building, axes: str, shape: tuple, partial: bool, job: tuple[int, Scan]) -> None:
    """Read, check, turn and write one scan."""
    index, scan = job
    image, labels = layouts.read(scan)
    layouts.check_shape(scan, image.shape, shape, partial)
    image = checked_image(scan.name, image)
    if labels is not None:
        labels = checked_labels(scan.name, image, labels)
        mine = orientation(labels, scan.name)
        if mine != axes:
            raise ValueError(
                f"{scan.name}: flipped or rotated: its orientation is {mine}, the others {axes}; "
                "get the release again"
            )
        labels = turned(labels, axes)
    building.put(index, turned(image, axes), labels)
