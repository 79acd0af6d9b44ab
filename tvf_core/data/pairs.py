"""Pairs of images as every method sees them, and the registry of data sets.

A data set is a stack of images (with label maps where it has them) and, for each split, a list of
ordered (moving, fixed) index pairs. The lists are the same for every method.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from .. import fields, integrate
from ..checks import one_of
from ..paths import cache, data_root, sha256, write_then_rename
from . import demo_brains, demo_faces, prepared

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PairData:
    """One split of a data set.

    Attributes
    ----------
    images : (n, *S) uint8, 255 is intensity 1.
    labels : (n, *S) uint8 or None.
    pairs : ordered (moving, fixed) indices into ``images``.
    names : name of each image.
    label_names : label number -> structure, without background.
    axes : 3D: where the array's axes run: R or L, A or P, S or I, as in nibabel.
    origin : hash of a prepared data set; see :meth:`fingerprint`.
    """

    name: str
    split: str
    images: np.ndarray
    pairs: list[tuple[int, int]]
    names: list[str]
    labels: np.ndarray | None = None
    label_names: dict[int, str] = field(default_factory=dict)
    axes: str = "RAS"
    origin: str = ""

    @property
    def dim(self) -> int:
        return self.images.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    @property
    def classes(self) -> int:
        """Number of label classes including background; 0 without labels."""
        return max(self.label_names) + 1 if self.label_names else 0

    def fingerprint(self) -> str:
        """Hash of the data, so that results know what they are from: the prepared set's own, else of images and labels."""
        if self.origin:
            return self.origin
        digest = hashlib.sha256(np.ascontiguousarray(self.images))
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pairs)

    def pair_name(self, k: int) -> str:
        moving, fixed = self.pairs[k]
        return f"{self.names[moving]}->{self.names[fixed]}"

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        """Pair k: ``moving``, ``fixed`` (1, *S) float in [0, 1], and their labels (1, *S) if there are any."""
        return self.take(*self.pairs[k])

    def take(self, moving: int, fixed: int) -> dict[str, torch.Tensor]:
        """Any two images as a pair."""
        return as_images(self.stored(moving, fixed))

    def stored(self, moving: int, fixed: int) -> dict[str, torch.Tensor]:
        """Any two images as a pair, as they are stored (uint8): what :func:`as_images` makes floats of."""
        item = {}
        for role, index in (("moving", moving), ("fixed", fixed)):
            item[role] = torch.from_numpy(np.array(self.images[index]))[None]
            if self.labels is not None:
                item[f"{role}_labels"] = torch.from_numpy(np.array(self.labels[index]))[None]
        return item

    def upright(self, volume, vectors: bool = False) -> torch.Tensor:
        """A volume ``(..., *S)`` of this data set with its axes to the right, the front and the top, as figures want it.

        With ``vectors``, a field ``(..., 3, *S)``, whose components turn with the axes. 2D is left as it is.
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
    """Stored bytes as images, float in [0, 1], and labels, long."""
    return {
        key: value.long() if key.endswith("labels") else value.float() / 255 for key, value in stored.items()
    }


def load(name: str, split: str, size: int | None = None, progress: bool = False) -> PairData:
    """One split of a data set by name.

    Parameters
    ----------
    name : see ``DATASETS``.
    split : ``train``, ``val`` or ``test``; no subject is in two of them.
    size : edge in pixels, for data sets that come in several sizes.
    progress : show a bar while embedded data are generated (the first time only).
    """
    one_of(name, DATASETS, "data set")
    one_of(split, SPLITS, "split")
    return DATASETS[name](split, size, progress)


def _demo_faces(split: str, size: int | None, progress: bool) -> PairData:
    """53/7/7 subjects; every ordered pair of different expressions of one subject (the paper's protocol)."""
    size = size or 128
    images = _cached(
        f"demo_faces_{size}", demo_faces.SOURCES, lambda: {"images": demo_faces.render_all(size, progress)}
    )["images"]
    subjects = {"train": range(53), "val": range(53, 60), "test": range(60, 67)}[split]
    expressions = len(demo_faces.EXPRESSIONS)
    pairs = [
        (s * expressions + a, s * expressions + b)
        for s in subjects
        for a, b in itertools.permutations(range(expressions), 2)
    ]
    names = [f"s{s:02d}_{e}" for s in range(demo_faces.N_SUBJECTS) for e in demo_faces.EXPRESSIONS]
    return PairData("demo_faces", split, images.reshape(-1, size, size), pairs, names)


def _demo_brains(split: str, size: int | None, progress: bool) -> PairData:
    """38/4/8 subjects; training on all ordered pairs, validation and test on neighbours, both directions."""
    if size is not None:
        raise ValueError(f"demo_brains: comes in one size, {demo_brains.SHAPE}; got size={size}")

    def make():
        images, labels = demo_brains.make_all(progress)
        return {"images": images, "labels": labels}

    arrays = _cached("demo_brains", [demo_brains.__file__, integrate.__file__, fields.__file__], make)
    subjects = {"train": range(38), "val": range(38, 42), "test": range(42, 50)}[split]
    if split == "train":
        pairs = list(itertools.permutations(subjects, 2))
    else:
        pairs = [p for s in subjects[:-1] for p in ((s, s + 1), (s + 1, s))]
    names = [f"b{s:02d}" for s in range(demo_brains.N_SUBJECTS)]
    return PairData(
        "demo_brains", split, arrays["images"], pairs, names, arrays["labels"], demo_brains.LABELS
    )


def _cached(name: str, sources: list[str], make) -> dict[str, np.ndarray]:
    """Arrays from the cache, made once per state of the code that makes them."""
    path = cache() / f"{name}_{sha256(*map(Path, sources))[:12]}.npz"
    if not path.exists():
        arrays = make()
        with write_then_rename(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _prepared(name: str, folder: str, command: str):
    """Loader of a data set that ``python -m data_download COMMAND`` has prepared in a folder of the data root."""

    def load(split: str, size: int | None, progress: bool) -> PairData:
        place = data_root() / folder
        if prepared.about(place) is None:
            raise FileNotFoundError(
                f"{name} is not in {place}; get it with: python -m data_download {command}"
            )
        data = PairData(name, split, **prepared.read(place, split))
        if size not in (None, *data.shape):
            raise ValueError(f"{name}: comes in one size, {data.shape}; got size={size}")
        return data

    return load


# Name -> loader of (split, size or None, progress). Those below the first two are prepared by data_download.
DATASETS = {
    "demo_faces": _demo_faces,
    "demo_brains": _demo_brains,
    "anatomies": _prepared("anatomies", "anatomies/2.5mm", "anatomies"),
    "anatomies_2mm": _prepared("anatomies_2mm", "anatomies/2mm", "anatomies --spacing 2"),
    "anatomies_1mm": _prepared("anatomies_1mm", "anatomies/1mm", "anatomies --spacing 1"),
    "rafd": _prepared("rafd", "rafd", "rafd --help"),
    "oasis": _prepared("oasis", "oasis", "oasis --help"),
}
