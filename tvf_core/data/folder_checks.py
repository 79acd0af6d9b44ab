"""What a data set may hold: where a check fails, one line says what is wrong and how to correct it."""

from __future__ import annotations

import operator
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

import nibabel as nib
import numpy as np

SPLITS = ("train", "val", "test")
LARGEST = 2**63 - 1  # labels become int64 in PyTorch


def checked(
    images,
    names=None,
    labels=None,
    label_names: Mapping | None = None,
    subjects=None,
    axes: str = "RAS",
    known_labels: bool = False,
    landmarks=None,
    landmark_scale: Iterable[int] = (),
) -> dict:
    """Check what a data set is to hold, and give it in the form in which it is kept.

    Parameters
    ----------
    images : as :func:`image_bytes` takes them.
    names : a text for each image; default its number.
    labels : as :func:`label_maps` takes them, of all images or of the first ones; None for none.
    label_names : label number -> structure, for every label that occurs; default "label 1" and so on.
    subjects : for each image, which person it shows; default another one each.
    axes : 3D: where the arrays' axes run.
    known_labels : the data were checked before. Then the values are not read, for they may be large files.
    landmarks, landmark_scale : as :func:`landmark_points` takes them; None for no landmarks.

    Returns
    -------
    ``images`` (n, *S) uint8, ``labels`` (m, *S) integers or None, ``names``, ``label_names``, ``subjects``,
    ``axes``, ``landmarks`` (m, K, D) float32 or None, ``landmark_scale``, a tuple.
    """
    images = image_bytes(images)
    if not known_labels and images.size and images.max() == 1:
        raise ValueError(
            "images: uint8 without a value above 1, where 255 is intensity 1; multiply them by 255"
        )
    labels = None if labels is None else label_maps(labels)
    shapes(images, labels)
    names = texts(range(len(images)) if names is None else names, len(images), "names")
    given = check_label_names({} if label_names is None else label_names)
    if labels is None and given:
        raise ValueError("label_names: without labels they have no effect")
    if labels is not None and not (known_labels and given):
        given = named(occurring(labels), given)
    return {
        "images": images,
        "labels": labels,
        "names": names,
        "label_names": given,
        "subjects": texts(names if subjects is None else subjects, len(images), "subjects"),
        "axes": check_axes(axes),
        **landmark_points(landmarks, landmark_scale, images.shape),
    }


def plain_name(name, where, how: str = "choose a plain one, such as my_scans") -> str:
    """A data set's name; ValueError where it could not be the name of a folder. ``how`` to correct it."""
    if (
        not isinstance(name, str)
        or not name.strip()
        or _controls(name)
        or name[0] == "."
        or set(name) & set('/\\:*?"<>|')
        or len(name.encode("utf-8", "surrogateescape")) > 200
    ):
        raise ValueError(f"{where}: the data set's name {name!r} cannot name a folder of results; {how}")
    return name


def _controls(text: str) -> bool:
    """Whether a text has a line break or another character that controls a terminal."""
    return any(unicodedata.category(character) == "Cc" for character in text)


def texts(values, count: int, what: str) -> list[str]:
    """A text for each image, from texts or whole numbers; names must differ."""
    values = (
        list(values) if isinstance(values, Iterable) and not isinstance(values, (str, Mapping)) else [None]
    )
    if not all(isinstance(v, (str, int, np.integer)) and str(v).strip() for v in values):
        raise ValueError(f"{what}: expected a list with a text or a number for each image")
    if odd := [v for v in values if _controls(str(v))]:
        raise ValueError(f"{what}: {odd[0]!r} holds characters that cannot be printed, such as a line break")
    if len(values) != count:
        raise ValueError(f"{what}: expected one for each of the {count} images, got {len(values)}")
    values = [str(v) for v in values]
    if what == "names" and len(set(values)) < count:
        raise ValueError(f"names: two images have the name {Counter(values).most_common(1)[0][0]!r}")
    if what == "names" and (odd := [v for v in values if "->" in v]):
        raise ValueError(f"names: {odd[0]!r} has '->' in it, which stands between the two names of a pair")
    return values


def stored(images: np.ndarray, labels: np.ndarray | None) -> None:
    """Check the arrays of ``images.npy`` and ``labels.npy``, whose types are those of a data set."""
    if images.dtype != np.uint8:
        raise ValueError(
            f"images.npy holds {images.dtype}, expected uint8 where 255 is intensity 1; "
            "of images in [0, 1] that is np.round(255 * images).astype(np.uint8)"
        )
    if labels is not None and labels.dtype.kind not in "iu":
        raise ValueError(f"labels.npy holds {labels.dtype}, expected integers, such as uint8 or uint16")
    shapes(images, labels)


def shapes(images: np.ndarray, labels: np.ndarray | None) -> None:
    """Check images ``(n, *S)`` and label maps ``(m, *S)``, m <= n."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(
            f"the images have the shape {images.shape}, expected (images, *space) with 2 or 3 axes of space"
        )
    if labels is not None and (labels.shape[1:] != images.shape[1:] or not 0 < len(labels) <= len(images)):
        raise ValueError(
            f"label maps {labels.shape} and images {images.shape} do not fit: "
            "label maps are of the images' shape, for all images or for the first ones"
        )


def check_label_names(given) -> dict[int, str]:
    """Label number -> structure, from the keys of a JSON object or from numbers."""
    try:
        found = {
            int(number) if isinstance(number, str) else operator.index(number): structure
            for number, structure in given.items()
        }
    except (AttributeError, TypeError, ValueError):
        found = {0: ""}
    if not all(0 < number <= LARGEST and isinstance(text, str) and text for number, text in found.items()):
        raise ValueError(
            "label_names: expected a name for each label, whose number is a whole one above 0, "
            'such as {"1": "left ventricle"}'
        )
    if len(set(found.values())) < len(given):  # "1" and "01" are one number
        raise ValueError("label_names: two labels have the same name or number; give each its own")
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


def occurring(labels: np.ndarray, first: int = 0) -> tuple[int, ...]:
    """The labels that occur in label maps ``(m, *S)`` of integers, without background.

    ``first`` is the number of the first of these maps, for messages.

    ValueError for a label below 0 or beyond int64. The memory and the time do not depend on the numbers.
    """
    found = set()
    for number, one in enumerate(labels, first):
        flat = one.ravel(order="K")
        starts = np.append(True, flat[1:] != flat[:-1])  # most neighbours are alike: this leaves few to sort
        values = np.unique(flat[starts])
        _check_labels(values[0], values[-1], number)
        found |= set(values.tolist())
    return tuple(sorted(found - {0}))


def landmark_points(landmarks, scale: Iterable[int], shape: tuple[int, ...]) -> dict:
    """Check the landmarks of images ``(n, *S)``, and give them in the form in which they are kept.

    Parameters
    ----------
    landmarks : (m, K, D) numbers, or an array ``(K, D)`` for each of the first m images: K points in voxels
        along the axes of the images, each inside its image. None for none.
    scale : the numbers of two landmarks whose distance is the unit of errors in per cent; empty for none.

    Returns
    -------
    ``landmarks`` (m, K, D) float32 or None, ``landmark_scale``, a tuple of two numbers or of none.
    """
    count, size = shape[0], np.array(shape[1:])
    scale = tuple(scale) if isinstance(scale, Iterable) and not isinstance(scale, str) else (scale,)
    if landmarks is None:
        if scale:
            raise ValueError("landmark_scale: without landmarks it has no effect")
        return {"landmarks": None, "landmark_scale": ()}
    given = _arrays(landmarks, "landmarks")
    if not isinstance(given, np.ndarray):
        given = _stack([_array(one, f"landmarks of image {k}") for k, one in enumerate(given)], "landmarks")
    if given.ndim != 3 or given.shape[2] != len(size) or not 0 < len(given) <= count or not given.shape[1]:
        raise ValueError(
            f"landmarks: expected (images, points, {len(size)}) numbers, of all {count} images or of the "
            f"first ones, got {given.shape}"
        )
    if given.dtype.kind not in "iuf":
        raise ValueError(f"landmarks: expected numbers, got {given.dtype}")
    points = given.astype(np.float32)
    inside = ((points >= -0.5) & (points <= size - 0.5)).all(2)  # NaN is not
    if not inside.all():
        image, number = np.argwhere(~inside)[0].tolist()
        raise ValueError(
            f"landmarks: point {number} of image {image}, {points[image, number].tolist()}, lies outside the "
            f"image of {' x '.join(map(str, size))}; give voxels along the image's axes (of a picture: row, "
            "then column), and only points that every image has"
        )
    if scale:
        whole = all(isinstance(k, (int, np.integer)) and 0 <= k < given.shape[1] for k in scale)
        if len(scale) != 2 or not whole or scale[0] == scale[1]:
            raise ValueError(
                f"landmark_scale: expected two different numbers from 0 to {given.shape[1] - 1}, got "
                f"[{', '.join(map(str, scale))}]"
            )
        if len(same := np.flatnonzero((points[:, scale[0]] == points[:, scale[1]]).all(1))):
            raise ValueError(f"landmark_scale: in image {same[0]} these two landmarks are at the same place")
    return {"landmarks": points, "landmark_scale": tuple(int(k) for k in scale)}


def check_axes(given) -> str:
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


def image_bytes(images) -> np.ndarray:
    """Images as they are stored, ``(n, *S)`` uint8, 255 for intensity 1.

    ``images`` is an array, or arrays one by one, of float in [0, 1] or of uint8. An array of uint8, such as a
    memory map, is given back as it is.
    """
    images = _arrays(images, "images")
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
        return images
    return _stack([_image_bytes(_array(one, f"image {k}"), k) for k, one in enumerate(images)], "images")


def _image_bytes(image: np.ndarray, number: int) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind not in "biuf":
        raise ValueError(f"image {number}: expected float in [0, 1] or uint8, got {image.dtype}")
    if not np.isfinite(image).all():
        raise ValueError(f"image {number}: has NaN or infinite values; expected finite intensities in [0, 1]")
    low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 0.0)
    if image.dtype.kind != "f" or low < -1e-6 or high > 1 + 1e-6:
        raise ValueError(
            f"image {number}: {image.dtype} with intensities from {low:.4g} to {high:.4g}, expected float in "
            "[0, 1] (or uint8, where 255 is intensity 1); scale it, such as by "
            "x = x.astype(float); x = (x - x.min()) / (x.max() - x.min())"
            + " (this image is constant)"
            * (low == high)
        )
    # In float16 the product would be rounded: to an eighth above 128.
    precise = image.astype(np.result_type(image, np.float32), copy=False)
    return np.round(255 * precise.clip(0, 1)).astype(np.uint8)


def label_maps(labels) -> np.ndarray:
    """Label maps as integers ``(m, *S)``, from whole numbers of 0 (background) and more in any type.

    An array of integers, such as a memory map, is given back as it is, and :func:`occurring` checks its
    values. From label maps one by one, and from float and bool, the smallest unsigned type is made.
    """
    labels = _arrays(labels, "labels")
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return labels
    return _stack([_label_map(_array(one, f"label map {k}"), k) for k, one in enumerate(labels)], "labels")


def _label_map(labels: np.ndarray, number: int) -> np.ndarray:
    whole = labels.dtype.kind in "iub" or (
        labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.round(labels)).all()
    )
    if not whole:
        raise ValueError(
            f"label map {number}: expected whole numbers, got {labels.dtype} with others among them; "
            "resample label maps by nearest neighbour"
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    _check_labels(low, high, number)
    return labels.astype(np.min_scalar_type(high))


def _check_labels(low, high, number: int) -> None:
    if low < 0 or high > LARGEST:
        raise ValueError(
            f"label map {number}: labels from {low} to {high}, expected 0 (background) to 2**63 - 1; "
            "number them anew"
        )


def _arrays(given, what: str) -> np.ndarray | Iterable:
    """One array of all, or what gives arrays one by one."""
    if hasattr(given, "__array__") and (array := _array(given, what)).ndim:
        return array
    if (
        isinstance(given, Iterable)
        and not isinstance(given, (str, Mapping))
        and not hasattr(given, "__array__")
    ):
        return given
    raise ValueError(f"{what}: expected an array, or arrays one by one, got {type(given).__name__}")


def _array(given, what: str) -> np.ndarray:
    """An array of what may be an array, a tensor or numbers in lists."""
    if np.ma.isMaskedArray(given):
        raise ValueError(
            f"{what}: a masked array; say what counts where it is masked, such as by x.filled(0)"
        )
    try:
        return np.asarray(given)
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor on a GPU, rows of many lengths
        raise ValueError(f"{what}: expected an array ({error})") from None


def _stack(arrays: list[np.ndarray], what: str) -> np.ndarray:
    if not arrays:
        raise ValueError(f"{what}: expected at least one array")
    if len(found := dict.fromkeys(array.shape for array in arrays)) > 1:
        raise ValueError(
            f"{what}: expected arrays of one shape, got {' and '.join(map(str, list(found)[:2]))}"
        )
    return np.stack(arrays)


def numbered_pairs(pairs: Iterable, images: int, having: Mapping[str, int]) -> list[tuple[int, int]]:
    """(moving, fixed) image numbers, checked against how many images there are, and how many have what.

    ``having`` says how many images, from the first on, have a ``label map`` or a ``landmark``; what it does
    not name is not needed.
    """
    try:
        pairs = [(operator.index(moving), operator.index(fixed)) for moving, fixed in pairs]
    except (TypeError, ValueError):
        raise ValueError(
            "pairs: expected (moving, fixed) numbers of images, such as [(0, 1), (1, 0)]"
        ) from None
    numbers = {number for pair in pairs for number in pair}
    if odd := sorted(number for number in numbers if not 0 <= number < images):
        raise ValueError(f"pairs: there is no image {odd[0]}; the images have the numbers 0 to {images - 1}")
    for what, count in having.items():
        if odd := sorted(number for number in numbers if number >= count):
            raise ValueError(
                f"pairs: image {odd[0]} has no {what}, only the first {count} have any; "
                f"leave out the {what}s or these pairs"
            )
    return pairs


def once(pairs: list, split: str, where: str = "pairs") -> list:
    """The pairs of a split, none of which may stand there twice, because it would count twice in every mean.

    In training that may be meant.
    """
    if split != "train" and len(set(pairs)) < len(pairs):
        one, two = Counter(pairs).most_common(1)[0][0]
        raise ValueError(
            f"{where}: the pair {one}->{two} of {split} stands there twice; delete one of the two"
        )
    return pairs


def named_pairs(pairs: Mapping[str, Iterable], names: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Split -> pairs of names, from pairs of image names or numbers."""
    if not isinstance(pairs, Mapping) or not pairs or set(pairs) - set(SPLITS):
        got = ", ".join(map(str, pairs)) if isinstance(pairs, Mapping) else type(pairs).__name__
        raise ValueError(f"pairs: expected lists for {', '.join(SPLITS)}, got {got or 'none'}")
    return {
        split: once([_named_pair(pair, names, split) for pair in listing], split)
        for split, listing in pairs.items()
    }


def _named_pair(pair, names: list[str], split: str) -> tuple[str, str]:
    two = list(pair) if isinstance(pair, Iterable) and not isinstance(pair, str) else []
    numbers = [k for k in two if not isinstance(k, str)]
    if len(two) != 2 or not all(isinstance(k, (int, np.integer)) and 0 <= k < len(names) for k in numbers):
        raise ValueError(
            f"pairs of {split}: expected (moving, fixed) by name or by number from 0 to {len(names) - 1}, "
            f"got {pair!r}"
        )
    return tuple(k if isinstance(k, str) else names[k] for k in two)


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
