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
from tvf_core.data import prepared
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
    """

    def __init__(
        self, folder: Path, recipe: dict, names: list[str], shape: tuple[int, ...], labelled: int = 0
    ):
        self.folder, self.part = Path(folder), Path(folder).with_name(f".{Path(folder).name}.part")
        self.recipe, self.names, self.shape, self.labelled = recipe, list(names), tuple(shape), labelled
        self._voxels = int(np.prod(shape))
        self.bytes = (len(names) + labelled) * self._voxels
        file = self.part / _RECIPE
        mine = {"recipe": recipe, "names": self.names, "shape": list(self.shape), "labelled": labelled}
        if not (file.is_file() and json.loads(file.read_text("utf-8")) == mine):
            shutil.rmtree(self.part, ignore_errors=True)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            check_space(self.folder.parent, self.bytes)
            with full_disk(self.part, self.bytes):
                self.part.mkdir()
                for name, count in ((prepared.IMAGES, len(names)), (prepared.LABELS, labelled)):
                    if count:
                        with open(self.part / name, "wb") as out:
                            np.lib.format.write_array_header_1_0(
                                out, {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
                            )
                (self.part / _DONE).write_bytes(bytes(len(names)))
                write_json(file, mine)

    def missing(self) -> list[int]:
        """Numbers of the images that are not written yet."""
        return [k for k, done in enumerate((self.part / _DONE).read_bytes()) if not done]

    def put(self, index: int, image: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Write one image, float in [0, 1] or uint8, and its labels."""
        if image.dtype != np.uint8:
            image = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
        if (labels is not None) != (index < self.labelled):
            raise ValueError(f"image {index}: the first {self.labelled} images have labels, no others")
        with full_disk(self.part):
            for name, array in ((prepared.IMAGES, image), (prepared.LABELS, labels)):
                if array is not None:
                    if array.shape != self.shape:
                        raise ValueError(
                            f"{self.names[index]}: expected shape {self.shape}, got {array.shape}"
                        )
                    self._write(name, index * self._voxels, np.ascontiguousarray(array, np.uint8))
            with open(self.part / _DONE, "r+b") as file:
                file.seek(index)
                file.write(b"\1")

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


def recipe_hash(*modules) -> str:
    """Hash of what the modules do that decide how a data set looks, as 16 hexadecimal digits.

    It depends on their code and on the names that they import, but not on comments, docstrings and layout
    (:func:`tvf_core.card.content`), so that an edit of these does not make anybody prepare a data set again.
    Unlike :func:`tvf_core.card.code_hash` it leaves out the modules that these modules import.
    """
    texts = [content(Path(m.__file__).read_text(encoding="utf-8"), m.__package__) for m in modules]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
