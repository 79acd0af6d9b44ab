"""Pairs of images as every method sees them, and how a data set is found: by its name or by its folder.

A data set is a stack of images (with label maps where it has them) and, for each split, a list of
ordered (moving, fixed) index pairs. The lists are the same for every method.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from .. import fields, integrate
from ..card import content
from ..checks import one_of
from ..paths import cache, data_root, must_be_writable, write_then_rename
from . import demo_brains, demo_faces, prepared
from .folder_checks import SPLITS, checked, numbered_pairs, once, plain_name


@dataclass(frozen=True)
class PairData:
    """One split of a data set. Everything in it is checked when it is made.

    Attributes
    ----------
    name : under which runs and results are filed.
    split : ``train``, ``val`` or ``test``.
    images : (n, *S) uint8, 255 is intensity 1. Float in [0, 1] may be given; it is rounded to 1 / 255.
    pairs : ordered (moving, fixed) indices into ``images``.
    names : name of each image; by default its number.
    labels : None, or (m, *S) label maps of the first m images, in whatever type of integers they are given.
        Whole numbers may be given as float, and label maps one by one; they are kept in the smallest unsigned
        type.
    label_names : label number -> structure, without background; by default "label 1" and so on.
    subjects : the person that each image shows; by default another one each.
    axes : 3D: where the array's axes run: R or L, A or P, S or I, as in nibabel.
    origin : hash of the files of a data set that lies in a folder; see :meth:`fingerprint`. The values of
        such label maps were checked when the folder was read, and are not read again.
    landmarks : None, or (m, K, D) points of the first m images, in voxels along the axes of the images. The
        k-th point of every image is the same place of the face or of the anatomy.
    landmark_scale : the numbers of two landmarks whose distance in the fixed image is the unit of errors in
        per cent; empty for none.
    credit : what a figure of these images must say of where they are from.

    Raises
    ------
    ValueError : something does not fit; one line says what is wrong and how to correct it.
    """

    name: str
    split: str
    images: np.ndarray
    pairs: list[tuple[int, int]]
    names: list[str] = field(default_factory=list)
    labels: np.ndarray | None = None
    label_names: dict[int, str] = field(default_factory=dict)
    subjects: list[str] = field(default_factory=list)
    axes: str = "RAS"
    origin: str = ""
    landmarks: np.ndarray | None = None
    landmark_scale: tuple[int, ...] = ()
    credit: str = ""

    def __post_init__(self):
        plain_name(self.name, "PairData")
        names, subjects = (None if x is None else list(x) or None for x in (self.names, self.subjects))
        try:
            one_of(self.split, SPLITS, "split")
            parts = checked(
                self.images,
                names,
                self.labels,
                self.label_names,
                subjects,
                self.axes,
                known_labels=bool(self.origin),
                landmarks=self.landmarks,
                landmark_scale=self.landmark_scale,
            )
            arrays = {"label map": parts["labels"], "landmark": parts["landmarks"]}
            having = {what: len(array) for what, array in arrays.items() if array is not None}
            parts["pairs"] = once(numbered_pairs(self.pairs, len(parts["images"]), having), self.split)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.name}: {error}") from None
        for key, value in parts.items():
            object.__setattr__(self, key, value)  # the way to set it in a frozen dataclass

    @property
    def dim(self) -> int:
        return self.images.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    @property
    def label_numbers(self) -> tuple[int, ...]:
        """Label numbers that count, ascending: background (0) and those with a name; () without labels."""
        return tuple(sorted({0, *self.label_names})) if self.label_names else ()

    def fingerprint(self) -> str:
        """Hash by which results tell what they are from: ``origin``, else that of the arrays."""
        if self.origin:
            return self.origin
        digest = hashlib.sha256(np.ascontiguousarray(self.images))
        for more in (self.labels, self.landmarks):
            if more is not None:
                digest.update(np.ascontiguousarray(more))
        return digest.hexdigest()[:16]

    @property
    def pair_bytes(self) -> int:
        """Size of a pair as :meth:`stored` gives it."""
        return 2 * math.prod(self.shape) * (1 + (0 if self.labels is None else self.labels.itemsize))

    def __len__(self) -> int:
        return len(self.pairs)

    def pair_name(self, k: int) -> str:
        moving, fixed = self.pairs[k]
        return f"{self.names[moving]}->{self.names[fixed]}"

    def person(self, k: int) -> str:
        """The person that the fixed image of pair k shows."""
        return self.subjects[self.pairs[k][1]]

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        """Pair k: ``moving``, ``fixed`` (1, *S) float in [0, 1], and their labels (1, *S), if any."""
        return self.take(*self.pairs[k])

    def take(self, moving: int, fixed: int) -> dict[str, torch.Tensor]:
        """Any two images as a pair."""
        return as_images(self.stored(moving, fixed))

    def stored(self, moving: int, fixed: int) -> dict[str, torch.Tensor]:
        """Any two images as a pair, as they are stored: what :func:`as_images` makes float and long."""
        item = {}
        for role, index in (("moving", moving), ("fixed", fixed)):
            item[role] = torch.from_numpy(np.array(self.images[index]))[None]
            if self.labels is not None:
                kind = self.labels.dtype
                plain = np.dtype(f"{kind.kind}{kind.itemsize}")  # PyTorch takes no other bytes or names of it
                item[f"{role}_labels"] = torch.from_numpy(np.array(self.labels[index], plain).view(plain))[
                    None
                ]
        return item

    def upright(self, volume, vectors: bool = False) -> torch.Tensor:
        """A volume ``(..., *S)`` turned for figures, so that its axes run to the right, to the front and up.

        With ``vectors`` it is a field ``(..., 3, *S)``, whose components turn with the axes. 2D stays as is.
        """
        volume = volume if isinstance(volume, torch.Tensor) else torch.tensor(np.asarray(volume))
        if self.dim == 2 or self.axes == "RAS":
            return volume
        turns = nib.orientations.axcodes2ornt(self.axes)  # per axis: where it goes, and with which sign
        source = [int(axis) for axis in np.argsort(turns[:, 0])]
        lead = volume.dim() - 3
        volume = volume.flip([lead + axis for axis in range(3) if turns[axis, 1] < 0])
        volume = volume.permute(*range(lead), *(lead + axis for axis in source))
        if vectors:
            volume = torch.stack(
                [turns[axis, 1] * volume.select(lead - 1, axis) for axis in source], lead - 1
            )
        return volume

    def landmarks_of(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Landmarks of the moving and of the fixed image of pair k, each (K, D) float32, in voxels."""
        moving, fixed = (torch.from_numpy(np.array(self.landmarks[index])) for index in self.pairs[k])
        return moving, fixed

    def batch(self, ks) -> dict[str, torch.Tensor]:
        """Pairs of the split, by number, stacked along a batch axis."""
        return self.stack([self.pairs[k] for k in ks])

    def stack(self, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        """Any (moving, fixed) image indices as one batch."""
        items = [self.take(*pair) for pair in pairs]
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def spread(self, limit: int = 0) -> list[int]:
        """Numbers of ``limit`` pairs, evenly spread over the split; 0 is all."""
        if limit < 0:
            raise ValueError(f"limit: expected 0 (all pairs) or more, got {limit}")
        count = min(limit or len(self), len(self))
        return np.linspace(0, len(self) - 1, count).round().astype(int).tolist()


def as_images(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stored bytes as images, float in [0, 1], and labels of any type as long."""
    return {
        key: value.long() if key.endswith("labels") else value.float() / 255 for key, value in stored.items()
    }


def load(name: str | Path, split: str, size: int | None = None, progress: bool = False) -> PairData:
    """Load one split of a data set.

    Parameters
    ----------
    name : a name in ``DATASETS``, or the path of a folder as :mod:`tvf_core.data.prepared` describes it.
        Where it is both, the name counts; ``./name`` is then the folder.
    split : ``train``, ``val`` or ``test``; in the data sets of ``DATASETS`` no person is in two of them.
    size : edge in pixels. Square 2D images are made smaller by averaging, to a whole fraction of their edge;
        ``demo_faces`` is drawn in any size. By default it is the data set's own: 128 for ``demo_faces`` and
        ``london``.
    progress : show a bar while embedded data are generated (the first time only).

    Raises
    ------
    ValueError : neither a known name nor a folder, an unknown split, a size that the data do not come in,
        or a folder whose files do not fit together.
    FileNotFoundError : the folder lacks a file, or known data are not prepared yet.
    """
    one_of(split, SPLITS, "split")
    if str(name) in DATASETS:
        return DATASETS[str(name)](split, size, progress)
    folder = _folder(name)
    if known := _known(folder):
        return DATASETS[known](split, size, progress)
    return in_size(PairData(_own_name(folder), split, **prepared.read(folder, split)), size)


def load_pairs(name: str | Path, split: str, size: int | None = None, progress: bool = False) -> PairData:
    """:func:`load` for what needs at least one pair: ValueError where the split has none."""
    data = load(name, split, size, progress)
    if not len(data):
        raise ValueError(without_pairs(name, split))
    return data


def without_pairs(name: str | Path, split: str) -> str:
    """What is to be said of a split without pairs; empty where it has pairs, or cannot be loaded."""
    counts = {}
    for part in SPLITS:
        # Warnings about one of these splits would have nothing to do with what was asked for.
        with contextlib.suppress(OSError, ValueError), contextlib.redirect_stderr(io.StringIO()):
            counts[part] = len(load(name, part))
    if counts.get(split) != 0:
        return ""
    there = ", ".join(part for part, count in counts.items() if count)
    return f"{name}: the split {split!r} has no pairs; there are pairs for: {there or 'no split'}"


def name_of(data: str | Path) -> str:
    """Name under which runs and results of a data set are filed; ``data`` is that name, or a folder's path.

    ValueError for a path at which there is no folder, and for a folder whose data set has a name of
    ``DATASETS`` but was not prepared by ``data_download``: weights and results of two would be mixed up.
    """
    if str(data) in DATASETS or not _is_path(data):
        return str(data)
    return _own_name(_folder(data))


def _own_name(folder: Path) -> str:
    """Name of the data set in a folder, as :func:`name_of` gives it."""
    if known := _known(folder):
        return known
    name = prepared.own_name(folder)
    if name in DATASETS and "command" not in (prepared.about(folder) or {}):
        raise ValueError(
            f"{folder}: the name {name!r} belongs to a data set that comes with this program; "
            f'write another one, such as "name": "my_{name}", into its {prepared.ABOUT}'
        )
    return name


def _known(folder: Path) -> str:
    """The first name of ``PREPARED`` whose place in the data root this folder is; empty if there is none."""
    places = {(data_root() / place).resolve(): name for name, place in reversed(PREPARED.items())}
    return places.get(folder.resolve(), "")


def _is_path(data: str | Path) -> bool:
    """Whether it can only be a path: not a plain name, or that of a folder with a data set."""
    return Path(data).name != str(data) or (Path(data) / prepared.ABOUT).is_file()


def _folder(name: str | Path) -> Path:
    """The folder of a data set that is named by its path."""
    folder = Path(name).expanduser()
    if not str(name) or not folder.is_dir():
        raise ValueError(
            f"unknown data set {str(name)!r}; known: {', '.join(sorted(DATASETS))}, or the path of "
            f"a folder with {prepared.IMAGES}, {prepared.pairs_file('train')} and {prepared.ABOUT}; "
            + prepared.HELP
        )
    return folder


def in_size(data: PairData, size: int | None) -> PairData:
    """The data with square 2D images averaged down to an edge of ``size`` pixels.

    A pixel of the result is the mean of a block of pixels. Its label is the one in the middle of the block
    (of an even block: at the pixel after its middle), and landmarks stay at their places in the picture.
    ``None``, and an edge that the images have, change nothing. ValueError where the size is no whole fraction
    of the edge.
    """
    if size in (None, *data.shape):
        return data
    edge = data.shape[0]
    square = data.dim == 2 and data.shape[1] == edge
    if not square or size < 1 or edge % size:
        smaller = [str(edge // k) for k in range(2, 9) if edge % k == 0 and edge > k] if square else []
        own = f"{edge} x {edge} pixels, or smaller: {', '.join(smaller)}" if smaller else ""
        raise ValueError(f"{data.name}: comes in {own or f'one size, {data.shape}'}; got size={size}")
    width = edge // size
    blocks = data.images.reshape(-1, size, width, size, width)
    small = {"images": np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)}
    if data.labels is not None:
        small["labels"] = np.ascontiguousarray(data.labels[:, width // 2 :: width, width // 2 :: width])
    if data.landmarks is not None:  # the middle of the first block is the new 0
        small["landmarks"] = (data.landmarks + 0.5) / width - 0.5
    return replace(data, **small)


def _demo_faces(split: str, size: int | None, progress: bool) -> PairData:
    """53/7/7 subjects; every ordered pair of different expressions of one subject (the paper's protocol)."""
    size = size or 128
    images = _cached(
        f"demo_faces_{size}", demo_faces.MODULES, lambda: {"images": demo_faces.render_all(size, progress)}
    )["images"]
    subjects = {"train": range(53), "val": range(53, 60), "test": range(60, 67)}[split]
    expressions = len(demo_faces.EXPRESSIONS)
    pairs = [
        (s * expressions + a, s * expressions + b)
        for s in subjects
        for a, b in itertools.permutations(range(expressions), 2)
    ]
    people = [f"s{s:02d}" for s in range(demo_faces.N_SUBJECTS) for _ in demo_faces.EXPRESSIONS]
    names = [f"{person}_{e}" for person, e in zip(people, itertools.cycle(demo_faces.EXPRESSIONS))]
    return PairData("demo_faces", split, images.reshape(-1, size, size), pairs, names, subjects=people)


def _demo_brains(split: str, size: int | None, progress: bool) -> PairData:
    """38/4/8 subjects; training on all ordered pairs, validation and test on neighbours, both directions."""
    if size is not None:
        raise ValueError(f"demo_brains: comes in one size, {demo_brains.SHAPE}; got size={size}")

    def make():
        images, labels = demo_brains.make_all(progress)
        return {"images": images, "labels": labels}

    arrays = _cached("demo_brains", [demo_brains, integrate, fields], make)
    subjects = {"train": range(38), "val": range(38, 42), "test": range(42, 50)}[split]
    if split == "train":
        pairs = list(itertools.permutations(subjects, 2))
    else:
        pairs = [p for s in subjects[:-1] for p in ((s, s + 1), (s + 1, s))]
    names = [f"b{s:02d}" for s in range(demo_brains.N_SUBJECTS)]
    return PairData(
        "demo_brains", split, arrays["images"], pairs, names, arrays["labels"], demo_brains.LABELS
    )


def _cached(name: str, modules: list, make) -> dict[str, np.ndarray]:
    """Arrays from the cache, made once per state of the code of the modules that make them."""
    code = "\n".join(content(Path(m.__file__).read_text("utf-8"), m.__package__) for m in modules)
    path = cache() / f"{name}_{hashlib.sha256(code.encode()).hexdigest()[:12]}.npz"
    if not os.path.isfile(path):  # nor where the folder may not even be looked into
        must_be_writable(path.parent, "name another folder for data that are generated: TVF_CACHE=FOLDER")
        arrays = make()
        with write_then_rename(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _prepared(name: str, command: str, listing: str = "pairs", own_size: int | None = None):
    """Make a loader of a data set that ``python -m data_download COMMAND`` prepares in the data root.

    ``listing`` names its lists of pairs, ``own_size`` the size that it has unless another one is asked for.
    """

    def load(split: str, size: int | None, progress: bool) -> PairData:
        place = data_root() / PREPARED[name]
        if prepared.about(place) is None:
            raise FileNotFoundError(
                f"{name} is not in {place}; get it with: python -m data_download {command}"
            )
        return in_size(PairData(name, split, **prepared.read(place, split, listing)), size or own_size)

    return load


# Name -> folder in the data root, of the data sets that data_download prepares.
PREPARED = {
    "anatomies": "anatomies/2.5mm",
    "anatomies_2mm": "anatomies/2mm",
    "anatomies_1mm": "anatomies/1mm",
    "london": "london",
    "london_people": "london",
    "rafd": "rafd",
    "oasis": "oasis",
}
# Name -> loader of (split, size or None, progress).
DATASETS = {
    "demo_faces": _demo_faces,
    "demo_brains": _demo_brains,
    "anatomies": _prepared("anatomies", "anatomies"),
    "anatomies_2mm": _prepared("anatomies_2mm", "anatomies --spacing 2"),
    "anatomies_1mm": _prepared("anatomies_1mm", "anatomies --spacing 1"),
    "london": _prepared("london", "london", own_size=128),
    "london_people": _prepared("london_people", "london", "people", own_size=128),
    "rafd": _prepared("rafd", "rafd --help"),
    "oasis": _prepared("oasis", "oasis --help"),
}
