"""Small stand-ins for data that cannot be passed on, with the real names, folders, axes and formats.

The faces are the drawn ones of this package, the brain is a table of 35 ellipsoids: nothing is from data.
"""

from __future__ import annotations

import itertools
import json
import pickle
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from tvf_core import data

MODELS = [m for m in range(1, 74) if m not in (6, 13, 17, 34, 62, 66)]
EXPRESSIONS = ("angry", "contemptuous", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")
_KINDS = (
    [("Caucasian", "female")] * 19
    + [("Caucasian", "male")] * 20
    + [("Kid", "male")] * 4
    + [("Kid", "female")] * 6
    + [("Moroccan", "male")] * 18
)


def rafd_name(model: int, expression: str, camera: str = "090", gaze: str = "frontal") -> str:
    """File name as in RaFD. The numbers of ethnicities and genders are right; who has which is made up."""
    return (
        "_".join((f"Rafd{camera}", f"{model:02d}", *_KINDS[MODELS.index(model)], expression, gaze)) + ".jpg"
    )


def rafd(folder: Path, width: int = 280, models=MODELS, cameras_too: bool = True) -> Path:
    """Upright colour photographs: all expressions from the front, and other views of the first two models."""
    height, side = round(width * 1024 / 681), round(width * 640 / 681)
    top, left = round(0.46 * height - side / 2), (width - side) // 2
    faces = data.load("demo_faces", "train", 128).images
    folder.mkdir(parents=True)
    for model, (k, expression) in itertools.product(models, enumerate(EXPRESSIONS)):
        face = Image.fromarray(faces[len(EXPRESSIONS) * MODELS.index(model) + k]).resize(
            (side, side), Image.Resampling.BILINEAR
        )
        photograph = np.full((height, width), 235, np.uint8)
        photograph[top + side :, left : left + side] = np.asarray(face)[-1]  # shoulders
        photograph[top : top + side, left : left + side] = face
        file = folder / rafd_name(model, expression)
        Image.fromarray((photograph[..., None] * np.array([1, 0.88, 0.76])).astype(np.uint8)).save(
            file, quality=85
        )
        if cameras_too and model in models[:2]:
            for camera, gaze in itertools.product(
                ("000", "045", "090", "135", "180"), ("left", "frontal", "right")
            ):
                if (camera, gaze) != ("090", "frontal"):
                    (folder / rafd_name(model, expression, camera, gaze)).write_bytes(file.read_bytes())
    return folder


# Brain: OASIS label of the left structure, of the right one (0: there is only one, in the middle), centre on
# the right side in RAS mm, radii in mm, tone.
_ELLIPSOIDS = [  # painted in this order
    (2, 21, (34, -18, 22), (34, 82, 56), 0.50),  # cerebral cortex
    (1, 20, (31, -18, 22), (25, 68, 42), 0.75),  # cerebral white matter
    (6, 25, (26, -64, -36), (24, 24, 20), 0.48),  # cerebellum cortex
    (5, 24, (20, -58, -36), (12, 13, 10), 0.72),  # cerebellum white matter
    (13, 0, (0, -26, -32), (9, 10, 24), 0.70),  # brain stem
    (3, 22, (15, -28, 26), (7, 30, 8), 0.12),  # lateral ventricle
    (19, 35, (22, -42, 18), (4, 6, 4), 0.30),  # choroid plexus
    (4, 23, (40, -30, -6), (4, 12, 4), 0.13),  # inferior lateral ventricle
    (7, 26, (12, -18, 8), (8, 13, 8), 0.65),  # thalamus
    (8, 27, (14, 14, 12), (6, 14, 10), 0.54),  # caudate
    (9, 28, (28, 2, 4), (6, 15, 9), 0.58),  # putamen
    (10, 29, (20, -6, 0), (5, 8, 6), 0.68),  # pallidum
    (11, 0, (0, -10, 2), (3, 9, 9), 0.12),  # 3rd ventricle
    (12, 0, (0, -46, -32), (6, 6, 9), 0.14),  # 4th ventricle
    (14, 30, (28, -24, -14), (6, 14, 6), 0.52),  # hippocampus
    (15, 31, (24, -4, -20), (7, 7, 7), 0.51),  # amygdala
    (16, 32, (10, 12, -8), (5, 6, 5), 0.55),  # accumbens
    (17, 33, (12, -16, -8), (6, 8, 5), 0.66),  # ventral DC
    (18, 34, (28, 4, -14), (3, 3, 3), 0.25),  # vessel
]
STRUCTURES = {
    label: (np.array(centre) * (side, 1, 1), radii, tone)
    for left, right, centre, radii, tone in _ELLIPSOIDS
    for label, side in ((left, -1), (right, 1))
    if label
}
_CENTRE = np.array((0.0, -18.0, 10.0))


@cache
def brain(subject: int, shape: tuple[int, int, int] = (20, 24, 28)) -> tuple[np.ndarray, np.ndarray]:
    """Image (float32, 8-bit steps in [0, 1]) and labels (uint8) of one; axes LIA, 160 x 192 x 224 mm."""
    rng = np.random.default_rng(subject)
    steps = [extent / n * (np.arange(n) - (n - 1) / 2) for extent, n in zip((160, 192, 224), shape)]
    left, down, front = np.meshgrid(*steps, indexing="ij")
    points = np.stack([-left, front, -down], -1)
    points = points * rng.uniform(0.96, 1.04, 3) + rng.uniform(-3, 3, 3)  # subjects differ in size, place
    for axis, phase in enumerate(rng.uniform(0, 2 * np.pi, 3)):  # and shape
        points[..., axis] += 2.5 * np.sin(points[..., (axis + 1) % 3] / 25 + phase)
    points += _CENTRE
    image, labels = np.zeros(shape), np.zeros(shape, np.uint8)
    nearest = []
    for label, (centre, radii, tone) in STRUCTURES.items():
        distance = (((points - centre) / radii) ** 2).sum(-1)
        image[distance < 1], labels[distance < 1] = tone, label
        nearest.append((np.unravel_index(np.argmin(distance), shape), label, tone))
    for voxel, label, tone in nearest:  # so that none is lost between two voxels
        image[voxel], labels[voxel] = tone, label
    image += 0.02 * rng.standard_normal(shape) * (labels > 0)
    return (np.round(255 * np.clip(image, 0, 1)) / 255).astype(np.float32), labels


def save_nifti(file: Path, array: np.ndarray, affine) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)


def neurite(folder: Path, subjects, shape=(20, 24, 28), tests: int = 0) -> Path:
    """neurite's release, and with test images Learn2Reg's of 2021."""
    affine = np.array([[-8.0, 0, 0, 80], [0, 0, 8, -112], [0, -8, 0, 96], [0, 0, 0, 1]])
    for subject in subjects:
        image, labels = brain(subject, shape)
        place = folder / f"OASIS_OAS1_{subject:04d}_MR1"
        save_nifti(place / "aligned_norm.nii.gz", image, affine)
        save_nifti(place / "aligned_seg35.nii.gz", labels, affine)
        save_nifti(place / "aligned_seg4.nii.gz", np.minimum(labels, 4), affine)
    for k in range(1, tests + 1):
        save_nifti(folder / f"img{k:04d}.nii.gz", brain(1000 + k, shape)[0], affine)
    (folder / "subjects.txt").write_text("".join(f"OASIS_OAS1_{s:04d}_MR1\n" for s in subjects))
    return folder


def learn2reg(
    folder: Path, subjects, tests: int = 2, shape=(20, 24, 28), first: int = 1, first_val: int = 395
) -> Path:
    """Learn2Reg's release since 2022: axes left-right, back-front, down-up; and headers that say nothing.

    ``subjects`` are numbers of the other layouts. Here the validation subjects, from 438, count from
    ``first_val``, and the others from ``first``.
    """
    training = [s for s in subjects if s not in range(438, 458)]
    names = {s: first + k for k, s in enumerate(training)} | {
        s: first_val + s - 438 for s in subjects if s not in training
    }
    entries = []
    for subject, number in names.items():
        image, labels = (a.transpose(0, 2, 1)[:, :, ::-1] for a in brain(subject, shape))  # LIA -> LAI -> LAS
        name = f"OASIS_{number:04d}_0000.nii.gz"
        save_nifti(folder / "imagesTr" / name, image, np.eye(4))
        save_nifti(folder / "labelsTr" / name, labels, np.eye(4))
        entries.append(
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}", "mask": f"./masksTr/{name}"}
        )
    for k in range(1, tests + 1):
        save_nifti(
            folder / "imagesTs" / f"OASIS_{414 + k:04d}_0000.nii.gz",
            brain(1000 + k, shape)[0].transpose(0, 2, 1)[:, :, ::-1],
            np.eye(4),
        )
    (folder / "OASIS_dataset.json").write_text(
        json.dumps(
            {
                "name": "OASIS",
                "training": entries,
                "registration_val": [],
                "registration_test": [],
                "tensorImageShape": {"0": [shape[0], shape[2], shape[1]]},
            }
        )
    )
    return folder


def write_pickle(file: Path, *arrays: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as out:
        pickle.dump(arrays, out, protocol=pickle.HIGHEST_PROTOCOL)


def pickles(folder: Path, subjects, shape=(20, 24, 28)) -> Path:
    """TransMorph's pickles: a file per training subject, a file per pair of neighbours for validation."""
    validation = [s for s in subjects if s in range(438, 458)]
    for subject in set(subjects) - set(validation):
        write_pickle(folder / "All" / f"p_{subject:04d}.pkl", *brain(subject, shape))
    for fixed in validation:
        if fixed + 1 in validation:
            (x, x_labels), (y, y_labels) = brain(fixed + 1, shape), brain(fixed, shape)
            write_pickle(folder / "Test" / f"p_{fixed:04d}_{fixed + 1:04d}.pkl", x, y, x_labels, y_labels)
    return folder
