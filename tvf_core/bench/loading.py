"""Loading of a pair with its labels: from a prepared data set, and from compressed NIfTI files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..data.loading import batches
from ..data.pairs import PairData
from .operations import Operation, Setting, painted, regions


def loading(s: Setting) -> Operation:
    """Loading of one pair with its label maps from disk to the device.

    The operating system may have the files in memory. The literal form reads compressed NIfTI files, the
    format in which such data sets are released.
    """
    folder = tempfile.TemporaryDirectory(prefix="tvf-bench-")
    place = Path(folder.name)
    images = [np.round(255 * x[0, 0].cpu().numpy()).astype(np.uint8) for x in painted(s)]
    labels = [x[0, 0].cpu().numpy() for x in regions(s)]
    for name, arrays in (("images", images), ("labels", labels)):
        np.save(place / f"{name}.npy", np.stack(arrays))
        for k, array in enumerate(arrays):
            stored = array / np.float32(255) if name == "images" else array
            nib.save(nib.Nifti1Image(stored, np.eye(4)), place / f"{name}{k}.nii.gz")
    opened = [
        np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("images", "labels")
    ]
    part = PairData("bench", "train", opened[0], [(0, 1)], labels=opened[1])

    def ours():
        [batch] = batches(part, [[(0, 1)]], s.device, workers=0)
        return [batch[key] for key in ("moving", "fixed", "moving_labels", "fixed_labels")]

    def read(name):
        path = Path(folder.name) / f"{name}.nii.gz"  # the reference to ``folder`` keeps the temporary files
        return torch.from_numpy(np.asarray(nib.load(path).dataobj))[None, None]

    def literal():
        return [
            *(read(f"images{k}").float().to(s.device) for k in (0, 1)),
            *(read(f"labels{k}").long().to(s.device) for k in (0, 1)),
        ]

    return Operation({"ours": ours, "literal": literal}, moved=2.0 * (4 + 8) * images[0].size)
