"""Twenty real anatomies: public label maps, aligned, resampled and painted as T1-like images.

The label maps are those of the public repository BBillot/SynthSeg (Apache-2.0). The shapes in them are those
of real people. The intensities are made here: a mean for each structure, then texture, blur, bias field and
noise. A measurement on these images says something about the real variability of anatomy, and nothing about
scanners.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage as ndi

from .building import Building, recipe_hash
from .fetch import Remote, fetch, full_disk, only_one
from .originals import ready
from .parallel import each
from .structures import LABELS as OASIS_LABELS

COMMIT = "66342c1f05e520f3729a6d7ca1042eb7f01b6266"
_URL = f"https://raw.githubusercontent.com/BBillot/SynthSeg/{COMMIT}/data/training_label_maps/"
_HERE = Path(__file__).parent
SUBJECTS = range(1, 21)

# FreeSurfer's number of a left structure -> its number in OASIS, and its mean intensity in a T1 image. The
# numbers of the right structures follow from these.
_LEFT = {
    2: (1, 0.80),
    3: (2, 0.53),
    4: (3, 0.13),
    5: (4, 0.14),
    7: (5, 0.77),
    8: (6, 0.51),
    10: (7, 0.65),
    11: (8, 0.54),
    12: (9, 0.59),
    13: (10, 0.70),
    17: (14, 0.54),
    18: (15, 0.52),
    26: (16, 0.53),
    28: (17, 0.68),
}
_RIGHT = {
    2: 41,
    3: 42,
    4: 43,
    5: 44,
    7: 46,
    8: 47,
    10: 49,
    11: 50,
    12: 51,
    13: 52,
    17: 53,
    18: 54,
    26: 58,
    28: 60,
}
_MIDDLE = {14: (11, 0.14), 15: (12, 0.16), 16: (13, 0.71)}
# Parts that the maps tell apart and OASIS does not. Each is painted in a tone of its own and has the label of
# the structure that holds it: choroid plexus lies in the ventricles, white matter lesions lie in white
# matter.
_PARTS = {136: (4, 0.30), 137: (5, 0.30), 163: (43, 0.30), 164: (44, 0.30), 25: (2, 0.66), 57: (41, 0.66)}
_FLUID = 0.12  # intensity of the fluid in fissures and around the brain

# Spacing in millimetres -> voxels along left, inferior, anterior. At 1 mm it is the grid of OASIS; the other
# grids are cut closer to the brain.
GRIDS = {1.0: (160, 192, 224), 2.0: (80, 80, 96), 2.5: (64, 64, 80)}
_CENTRE = (0.0, -2.0, 4.0)  # middle of the grids, RAS mm; (0, 0, 0) is the mean of the centroids
_SEED = 20220711


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Number in a map -> OASIS label (uint8, 0 is background) and -> mean intensity (NaN: not brain)."""
    labels, means = np.zeros(1024, np.uint8), np.full(1024, np.nan, np.float32)
    for number, (label, mean) in {**_LEFT, **_MIDDLE}.items():
        labels[number], means[number] = label, mean
    for left, right in _RIGHT.items():
        label = _LEFT[left][0]
        labels[right], means[right] = label + (19 if label <= 10 else 16), means[left]
    for number, (holder, mean) in _PARTS.items():
        labels[number], means[number] = labels[holder], mean
    return labels, means


LABELS = {int(k): OASIS_LABELS[int(k)] for k in np.unique(_tables()[0]) if k}


def remotes() -> list[Remote]:
    """The twenty files with their published places and our hashes of them."""
    lines = (_HERE / "anatomies.sha256").read_text("utf-8").splitlines()
    return [
        Remote(name, _URL + name, f"sha256:{digest}", f"synthseg/{name}", int(size))
        for digest, size, name in map(str.split, lines)
    ]


def splits() -> dict[str, list[int]]:
    """Subjects of the three splits: 14, 2 and 4."""
    known = json.loads((_HERE / "splits.json").read_text("utf-8"))["anatomies"]
    return {split: known[split] for split in ("train", "val", "test")}


def _name(subject: int) -> str:
    return f"a{subject:02d}"


def _source(folder: Path, subject: int) -> Path:
    return folder / f"training_seg_{subject:02d}.nii.gz"


def _load(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map (numbers of its structures) around the brain, and the affine of that part: voxel -> RAS mm."""
    image = nib.load(file)
    numbers = np.asarray(image.dataobj).astype(np.int16)
    brain = _tables()[0][numbers] > 0
    box = tuple(slice(max(0, s.start - 8), s.stop + 8) for s in ndi.find_objects(brain.astype(np.uint8))[0])
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return numbers[box], affine


def centroids(file: Path) -> np.ndarray:
    """Middle of each structure of ``LABELS`` in RAS mm, ``(31, 3)``."""
    numbers, affine = _load(file)
    labels = _tables()[0][numbers]
    where = np.nonzero(labels)
    found = labels[where]
    count = np.bincount(found, minlength=64)[list(LABELS)]
    if not count.all():
        raise ValueError(
            f"{file.name}: has no {OASIS_LABELS[list(LABELS)[int(np.argmin(count))]]}; "
            "is it one of the twenty maps?"
        )
    middle = np.stack([np.bincount(found, axis, minlength=64)[list(LABELS)] / count for axis in where], 1)
    return middle @ affine[:3, :3].T + affine[:3, 3]


def align(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Affine ``(4, 4)`` that takes points ``(n, 3)`` to ``target`` with the least squared distances."""
    solution = np.linalg.lstsq(np.c_[points, np.ones(len(points))], target, rcond=None)[0]
    affine = np.eye(4)
    affine[:3] = solution.T
    return affine


def grid(spacing: float) -> np.ndarray:
    """Affine of the common grid: voxel -> mm; axes to the left, down and to the front, as in OASIS."""
    affine = np.eye(4)
    affine[:3, :3] = spacing * np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    affine[:3, 3] = _CENTRE - affine[:3, :3] @ ((np.array(GRIDS[spacing]) - 1) / 2)
    return affine


def paint(
    numbers: np.ndarray, spacing: float, to_map: np.ndarray, subject: int
) -> tuple[np.ndarray, np.ndarray]:
    """T1-like image, float32 in [0, 1] and 0 outside the brain, and labels, uint8, on the common grid.

    Parameters
    ----------
    numbers : map at 1 mm, numbers of its structures.
    spacing : of the grid in mm, a key of ``GRIDS``.
    to_map : (4, 4), voxel of the grid -> voxel of the map.
    subject : seeds what is random.
    """
    rng = np.random.default_rng([_SEED, subject])
    labels, means = _tables()
    # Tissue differs from person to person.
    means = means + rng.normal(0, 0.02, means.shape).astype(np.float32)
    brain = ndi.binary_closing(labels[numbers] > 0, iterations=3)
    image = means[numbers]
    image = np.where(np.isnan(image), _FLUID, image)
    image *= 1 + 0.05 * _smooth_noise(rng, numbers.shape, 2.0)  # tissue is not even
    image = np.where(brain, image, 0).astype(np.float32)
    image = ndi.gaussian_filter(image, max(0.6, spacing / 2.355))  # the width of a voxel at half height
    matrix, offset, shape = to_map[:3, :3], to_map[:3, 3], GRIDS[spacing]
    image = ndi.affine_transform(image, matrix, offset, shape, order=1)
    inside = ndi.affine_transform(brain.astype(np.float32), matrix, offset, shape, order=1) > 0.5
    labels = ndi.affine_transform(labels[numbers], matrix, offset, shape, order=0)
    bias = ndi.zoom(
        rng.standard_normal((4, 4, 4)), np.array(shape) / 4, order=3, mode="nearest", grid_mode=True
    )
    image = image ** rng.uniform(0.85, 1.2) * (1 + 0.1 * bias / np.abs(bias).max())
    noise = rng.normal(0, 0.02, (2, *shape))
    image = np.hypot(image + noise[0], noise[1])  # Rician, as in magnitude images
    return np.where(inside, np.clip(image, 0, 1), 0).astype(np.float32), np.where(inside, labels, 0).astype(
        np.uint8
    )


def _smooth_noise(rng: np.random.Generator, shape, sigma: float) -> np.ndarray:
    noise = ndi.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=3)
    return noise / noise.std()


def _make(building: Building, sources: Path, spacing: float, job: tuple[int, np.ndarray]) -> None:
    """Paint one subject into the data set and beside it as NIfTI files."""
    subject, affine = job
    numbers, voxel_to_mm = _load(_source(sources, subject))
    image, labels = paint(numbers, spacing, np.linalg.inv(affine @ voxel_to_mm) @ grid(spacing), subject)
    image = np.round(255 * image).astype(np.uint8)
    with full_disk(building.part):
        for kind, array in (("image", image), ("labels", labels)):
            nib.save(
                nib.Nifti1Image(array, grid(spacing)),
                building.part / "nifti" / f"{_name(subject)}_{kind}.nii.gz",
            )
    building.put(subject - 1, image, labels)


def recipe(spacing: float) -> dict:
    """Everything that decides how the anatomies of a spacing look."""
    return {
        "maps": COMMIT,
        "spacing_mm": spacing,
        "code": recipe_hash(sys.modules[__name__]),
        "splits": splits(),
    }


def folder(root: Path, spacing: float) -> Path:
    """Where the anatomies of a spacing lie."""
    return Path(root) / "anatomies" / f"{spacing:g}mm"


def prepare(root: Path, spacing: float = 2.5, workers: int = 0, progress: bool = True) -> tuple[Path, str]:
    """Fetch the maps (32 MB), align and paint them; give the folder and what was done, in words.

    Parameters
    ----------
    root : of all data sets.
    spacing : 1, 2 or 2.5 mm.
    workers : processes; 0 takes one per core.
    """
    if spacing not in GRIDS:
        raise ValueError(f"spacing: expected {', '.join(f'{s:g}' for s in GRIDS)} mm, got {spacing:g}")
    root = Path(root)
    sources, target = root / "anatomies" / "label_maps", folder(root, spacing)
    # This comes first: a data set that is ready needs neither the maps nor a folder that can be written.
    if ready(target, recipe(spacing)):
        return target, "already there and verified"
    with only_one(root / "anatomies"):
        files, new = fetch(remotes(), sources, progress)
        middles = dict(zip(SUBJECTS, each(centroids, files, "aligning", workers, progress)))
        # Where the structures of the training subjects lie on average; test subjects do not shape the space.
        goal = np.mean([middles[s] - middles[s].mean(0) for s in splits()["train"]], 0)
        affines = {s: align(middles[s], goal) for s in SUBJECTS}
        building = Building(
            target, recipe(spacing), [_name(s) for s in SUBJECTS], GRIDS[spacing], len(SUBJECTS)
        )
        with full_disk(building.part):
            (building.part / "nifti").mkdir(exist_ok=True)
        jobs = [(k + 1, affines[k + 1]) for k in building.missing()]
        each(
            partial(_make, building, sources, spacing), jobs, f"painting at {spacing:g} mm", workers, progress
        )
        pairs = {
            split: [(_name(m), _name(f)) for m in subjects for f in subjects if m != f]
            for split, subjects in splits().items()
        }
        building.finish(
            "anatomies",
            f"anatomies --spacing {spacing:g}",
            pairs,
            LABELS,
            spacing_mm=spacing,
            axes="LIA",
            affine=grid(spacing).tolist(),
            source=f"label maps of github.com/BBillot/SynthSeg at {COMMIT}",
            terms="Apache-2.0",
            middles_mm={str(k): np.round(middle, 2).tolist() for k, middle in zip(LABELS, goal)},
            native_to_common_mm={_name(s): np.round(a, 6).tolist() for s, a in affines.items()},
        )
        return (
            target,
            f"{new} label maps fetched, {len(files) - new} were there; "
            f"{len(jobs)} of {len(files)} anatomies painted",
        )
