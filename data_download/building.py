"""Write a data set into a folder (:mod:`tvf_core.data.prepared`) image by image, safe against being stopped.

:func:`tvf_core.data.prepared.write` does it at once, for images that fit into the memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from tvf_core.card import content
from tvf_core.data import folder_checks, prepared
from tvf_core.paths import write_json

from .fetch import check_space, full_disk

_DONE = "done"  # one byte per image: 1 once it is written
_RECIPE = "recipe.json"


def same_recipe(folder: Path, recipe: dict) -> bool:
    """Whether a finished data set in ``folder`` was made in this very way; False if its file is damaged."""
    with contextlib.suppress(ValueError):
        known = prepared.about(folder)
        return known is not None and known.get("recipe") == recipe
    return False


class Building:
    """A data set in the making: in ``.NAME.part`` beside ``folder``, until :meth:`finish` puts it there.

    What an earlier, interrupted call with the same recipe has written is kept.
    Several processes may put images at once.

    Parameters
    ----------
    folder : where the data set is to lie; one that lies there is replaced, at the very end.
    recipe : everything that decides the content; JSON.
    names : of the images, in their order.
    shape : of an image.
    labelled : how many images, from the first, have labels.
    label_type : name of the unsigned integer type in which labels are stored.
    """

    def __init__(
        self,
        folder: Path,
        recipe: dict,
        names: list[str],
        shape: tuple[int, ...],
        labelled: int = 0,
        label_type: str = "uint8",
    ):
        self.folder, self.part = Path(folder), Path(folder).with_name(f".{Path(folder).name}.part")
        self.recipe, self.names, self.shape, self.labelled = recipe, list(names), tuple(shape), labelled
        self._voxels = int(np.prod(shape))
        self._types = {prepared.IMAGES: np.dtype("uint8"), prepared.LABELS: np.dtype(label_type)}
        if self._types[prepared.LABELS].kind != "u":
            raise ValueError(
                f"label_type: expected an unsigned integer type, such as uint16, got {label_type}"
            )
        counts = {prepared.IMAGES: len(names), prepared.LABELS: labelled}
        self.bytes = sum(count * self._voxels * self._types[file].itemsize for file, count in counts.items())
        file = self.part / _RECIPE
        mine = {"recipe": recipe, "names": self.names, "shape": list(self.shape), "labelled": labelled}
        mine["label_type"] = label_type
        if not (file.is_file() and json.loads(file.read_text("utf-8")) == mine):
            shutil.rmtree(self.part, ignore_errors=True)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            check_space(self.folder.parent, self.bytes)
            with full_disk(self.part, self.bytes):
                self.part.mkdir()
                for name, count in counts.items():
                    if count:
                        header = {"descr": np.lib.format.dtype_to_descr(self._types[name])}
                        header |= {"fortran_order": False, "shape": (count, *self.shape)}
                        with open(self.part / name, "wb") as out:
                            np.lib.format.write_array_header_1_0(out, header)
                (self.part / _DONE).write_bytes(bytes(len(names)))
                write_json(file, mine)

    def missing(self) -> list[int]:
        """Numbers of the images that are not written yet."""
        return [k for k, done in enumerate((self.part / _DONE).read_bytes()) if not done]

    def put(self, index: int, image: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Write one image, float in [0, 1] or uint8, and its labels.

        What lies a little outside [0, 1], as resampling leaves it, is cut off. ValueError for other
        intensities, for labels that are no whole numbers or too large for ``label_type``, and another shape.
        """
        if (labels is not None) != (index < self.labelled):
            raise ValueError(f"image {index}: the first {self.labelled} images have labels, no others")
        try:
            arrays = {prepared.IMAGES: folder_checks.image_bytes([_within(image)])[0]}
            arrays |= {} if labels is None else {prepared.LABELS: self._fitting(labels)}
        except ValueError as error:
            raise ValueError(f"{self.names[index]}: {error}") from None
        for array in arrays.values():
            if array.shape != self.shape:
                raise ValueError(f"{self.names[index]}: expected shape {self.shape}, got {array.shape}")
        with full_disk(self.part):
            for name, array in arrays.items():
                array = np.ascontiguousarray(array, self._types[name])
                self._write(name, index * array.nbytes, array)
            with open(self.part / _DONE, "r+b") as file:
                file.seek(index)
                file.write(b"\1")

    def _fitting(self, labels: np.ndarray) -> np.ndarray:
        """Labels that the type of the file can hold."""
        labels = folder_checks.label_maps([labels])[0]
        if labels.dtype.itemsize > (kind := self._types[prepared.LABELS]).itemsize:
            raise ValueError(
                f"labels go up to {labels.max()}, too large for {kind}: "
                f"give Building label_type={str(labels.dtype)!r}, or number them anew"
            )
        return labels

    def _write(self, name: str, offset: int, array: np.ndarray) -> None:
        with open(self.part / name, "r+b") as file:  # not a memory map: on a full disk that kills the process
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            file.seek(offset, os.SEEK_CUR)
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())

    def finish(
        self,
        name: str,
        command: str,
        pairs: dict[str, list[tuple[str, str]]],
        label_names: dict[int, str] | None = None,
        **about,
    ) -> None:
        """Add the lists of pairs and ``dataset.json``, and put the data set in its place.

        Parameters
        ----------
        name : of the data set.
        command : what makes it again, after ``python -m data_download``.
        pairs : split -> ordered (moving, fixed) names.
        label_names : label -> structure, without background.
        about : whatever else ``dataset.json`` is to say: subjects (the person on each image), axes, source.
        """
        if self.missing():
            raise ValueError(f"{name}: {len(self.missing())} images are not written yet")
        with full_disk(self.part):
            known = {
                "name": name,
                "command": command,
                **about,
                "shape": list(self.shape),
                "names": self.names,
                "label_names": {str(k): v for k, v in (label_names or {}).items()},
                "recipe": self.recipe,
            }
            prepared.complete(self.part, pairs, known, leave_out=(_DONE, _RECIPE))
        old = self.folder.with_name(f".{self.folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        self.part.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        for name in (_DONE, _RECIPE):  # last, so that a stop before the renaming loses nothing
            (self.folder / name).unlink()


def _within(image: np.ndarray) -> np.ndarray:
    """The image with what lies a little outside [0, 1] cut off."""
    if image.dtype.kind == "f" and image.size and image.min() >= -0.1 and image.max() <= 1.5:
        return image.clip(0, 1)
    return image


def recipe_hash(*modules) -> str:
    """Hash of what the modules do that decide how a data set looks, as 16 hexadecimal digits.

    It depends on their code and on the names that they import, but not on comments, docstrings and layout
    (:func:`tvf_core.card.content`), so that an edit of these does not make anybody prepare a data set again.
    Unlike :func:`tvf_core.card.code_hash` it leaves out the modules that these modules import.
    """
    texts = [content(Path(m.__file__).read_text(encoding="utf-8"), m.__package__) for m in modules]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
