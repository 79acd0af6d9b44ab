"""What a data set may hold: where a check fails, one line says what is wrong and how to correct it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import nibabel as nib
import numpy as np

SPLITS = ("train", "val", "test")


def plain_name(name, where) -> str:
    """A data set's name; ValueError where it could not be the name of a folder."""
    if not isinstance(name, str) or not name.strip() or name[0] == "." or set(name) & set('/\\:*?"<>|\n'):
        raise ValueError(
            f"{where}: the data set's name {name!r} cannot name a folder of results; "
            'write a plain one, such as "name": "my_scans", into its dataset.json'
        )
    return name


def texts(values, count: int, what: str) -> list[str]:
    """A text for each image, from texts or whole numbers; names must differ."""
    values = (
        list(values) if isinstance(values, Iterable) and not isinstance(values, (str, Mapping)) else [None]
    )
    if not all(isinstance(v, (str, int, np.integer)) and str(v).strip() for v in values):
        raise ValueError(f"{what}: expected a list with a text or a number for each image")
    if len(values) != count:
        raise ValueError(f"{what}: expected one for each of the {count} images, got {len(values)}")
    values = [str(v) for v in values]
    if what == "names" and len(set(values)) < count:
        raise ValueError(f"names: two images have the name {Counter(values).most_common(1)[0][0]!r}")
    if what == "names" and (odd := [v for v in values if "->" in v]):
        raise ValueError(f"names: {odd[0]!r} has '->' in it, which stands between the two names of a pair")
    return values


def arrays(images: np.ndarray, labels: np.ndarray | None) -> None:
    """Check images ``(n, *S)`` and label maps ``(m, *S)``, m <= n, as they are stored."""
    if images.dtype != np.uint8:
        raise ValueError(
            f"images.npy holds {images.dtype}, expected uint8 where 255 is intensity 1; "
            "of images in [0, 1] that is np.round(255 * images).astype(np.uint8)"
        )
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(
            f"images.npy has the shape {images.shape}, expected (images, *space) with 2 or 3 axes of space"
        )
    if labels is None:
        return
    if labels.dtype != np.uint8:
        raise ValueError(f"labels.npy holds {labels.dtype}, expected uint8: whole numbers from 0 to 255")
    if labels.shape[1:] != images.shape[1:] or not 0 < len(labels) <= len(images):
        raise ValueError(
            f"labels.npy {labels.shape} and images.npy {images.shape} do not fit: "
            "label maps are of the images' shape, for all images or for the first ones"
        )


def label_names(given) -> dict[int, str]:
    """Label number -> structure, from the keys of a JSON object or from numbers."""
    try:
        found = {int(number): structure for number, structure in given.items()}
    except (AttributeError, TypeError, ValueError):
        found = {0: ""}
    if not all(0 < number < 256 and isinstance(text, str) and text for number, text in found.items()):
        raise ValueError(
            'label_names: expected a name for each number from 1 to 255, such as {"1": "left ventricle"}'
        )
    if len(set(found.values())) < len(found):
        raise ValueError("label_names: two labels have the same name; give each its own")
    return found


def named(present: Iterable[int], given: dict[int, str]) -> dict[int, str]:
    """``given`` names of labels, checked against those that are present; without any, "label 1" and so on."""
    given = given or {int(number): f"label {number}" for number in present}
    if without := sorted(set(present) - given.keys()):
        raise ValueError(
            f"the label maps hold {', '.join(map(str, without[:5]))}, for which label_names has no name; "
            "name what is to be measured and set the rest to 0"
        )
    return given


def occurring(labels: np.ndarray) -> tuple[int, ...]:
    """The labels that occur in label maps (uint8), without background."""
    found = np.zeros(256, bool)
    for one in labels:
        found |= np.bincount(one.ravel(), minlength=256) > 0
    return tuple(int(label) for label in np.flatnonzero(found) if label)


def axes(given) -> str:
    """Where the axes of an array run, such as LIA."""
    try:
        directions = (
            {int(axis) for axis, _ in nib.orientations.axcodes2ornt(given)} if len(given) == 3 else ()
        )
    except (TypeError, ValueError):
        directions = ()
    if len(directions) != 3:
        raise ValueError(
            f"axes: expected one of R or L, A or P, and S or I for each axis, such as RAS, got {given!r}"
        )
    return given


def image_bytes(images: Iterable) -> np.ndarray:
    """Images as they are stored, ``(n, *S)`` uint8, from arrays of float in [0, 1] or of uint8."""
    return _stack([_image_bytes(np.asarray(image), k) for k, image in enumerate(images)], "images")


def _image_bytes(image: np.ndarray, number: int) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f":
        raise ValueError(f"image {number}: expected float in [0, 1] or uint8, got {image.dtype}")
    if not np.isfinite(image).all():
        raise ValueError(f"image {number}: has NaN or infinite values; expected finite intensities in [0, 1]")
    low, high = float(image.min(initial=0)), float(image.max(initial=0))
    if low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(
            f"image {number}: intensities from {low:.4g} to {high:.4g}, expected [0, 1]; "
            "scale them, such as by (x - x.min()) / (x.max() - x.min())"
        )
    return np.round(255 * image.clip(0, 1)).astype(np.uint8)


def label_bytes(labels: Iterable) -> np.ndarray:
    """Label maps as they are stored, ``(m, *S)`` uint8, from arrays of whole numbers from 0 to 255."""
    return _stack([_label_bytes(np.asarray(one), k) for k, one in enumerate(labels)], "labels")


def _label_bytes(labels: np.ndarray, number: int) -> np.ndarray:
    if labels.dtype.kind not in "iub" and not (
        labels.dtype.kind == "f" and (labels == np.round(labels)).all()
    ):
        raise ValueError(f"label map {number}: expected whole numbers, got {labels.dtype}")
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > 255:
        raise ValueError(
            f"label map {number}: labels from {low} to {high}, expected 0 to 255; number them anew"
        )
    return labels.astype(np.uint8)


def _stack(stored: list[np.ndarray], what: str) -> np.ndarray:
    if not stored:
        raise ValueError(f"{what}: expected at least one array")
    if len(shapes := dict.fromkeys(array.shape for array in stored)) > 1:
        raise ValueError(
            f"{what}: expected arrays of one shape, got {' and '.join(map(str, list(shapes)[:2]))}"
        )
    return np.stack(stored)


def named_pairs(pairs: Mapping[str, Iterable], names: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Split -> pairs of names, from pairs of image names or numbers."""
    if not pairs or set(pairs) - set(SPLITS):
        raise ValueError(
            f"pairs: expected lists for {', '.join(SPLITS)}, got {', '.join(map(str, pairs)) or 'none'}"
        )
    return {split: [_named_pair(pair, names, split) for pair in listing] for split, listing in pairs.items()}


def _named_pair(pair, names: list[str], split: str) -> tuple[str, str]:
    numbers = [k for k in pair if isinstance(k, (int, np.integer))]
    if len(pair) != 2 or isinstance(pair, str) or any(not 0 <= k < len(names) for k in numbers):
        raise ValueError(
            f"pairs of {split}: expected (moving, fixed) by name or by number from 0 to {len(names) - 1}, "
            f"got {pair!r}"
        )
    return tuple(names[k] if isinstance(k, (int, np.integer)) else k for k in pair)


def shared_persons(split: str, pairs: Mapping[str, Iterable[tuple[int, int]]], subjects: list[str]) -> str:
    """A warning if persons of the validation or the test split are in another split too; else nothing."""
    people = {part: {subjects[k] for pair in listing for k in pair} for part, listing in pairs.items()}
    for other in () if split == "train" else sorted(people.keys() - {split}):
        if both := sorted(people[split] & people[other]):
            some = ", ".join(both[:3]) + ", ..." * (len(both) > 3)
            return (
                f"{len(both)} of {len(people[split])} persons of the split {split} are in {other} too "
                f"({some}); "
                "unless they are templates, draw the splits by person, or the scores flatter a trained method"
            )
    return ""
