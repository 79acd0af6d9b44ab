"""The Face Research Lab London Set: 102 real people, neutral and smiling, 189 landmarks on the neutral faces.

The photographs become gray images of 256 x 256 pixels. All are cut by one square, and no image is aligned to
another, so that a registration has to find the movement of the head too. There are two lists of pairs, and
each is a data set by name:

- london, ``pairs_*.csv``: the two images of one person, in both directions (the paper's task).
- london_people, ``people_*.csv``: the neutral faces of two persons, all ordered pairs; these have landmarks.

Both come in 128 x 128 pixels unless another size is asked for, such as 256.

Source: DeBruine & Jones 2017, doi 10.6084/m9.figshare.5047666. The files are those of the public repository
debruine/webmorphR.stim.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tvf_core.data import prepared

from .building import Building, recipe_hash
from .fetch import Remote, fetch, full_disk, only_one
from .originals import ready

COMMIT = "fa8b78fda2d659bb74ce62fcd99c4407551d2a77"
_URL = f"https://raw.githubusercontent.com/debruine/webmorphR.stim/{COMMIT}/"
_HERE = Path(__file__).parent

CITATION = "DeBruine & Jones (2017), Face Research Lab London Set, doi 10.6084/m9.figshare.5047666"
TERMS = "CC BY 4.0"
CREDIT = f"Photographs: Face Research Lab London Set, DeBruine & Jones 2017, {TERMS}; cut, gray"
NOTICE = f"""\
Cite: {CITATION}.
Licence: {TERMS}, https://creativecommons.org/licenses/by/4.0 (its text lies beside the photographs).
Changed here: the photographs are cut, gray and smaller. Name the source under every picture of a face.
All persons gave signed consent that their images are used in studies, "in their original or altered forms
and to illustrate research"."""

EXPRESSIONS = {"neutral": ("neutral_front", "03"), "smiling": ("smiling_front", "08")}
PHOTOGRAPH = 1350  # edge in pixels
LANDMARKS = 189
PUPILS = (0, 1)  # numbers of these landmarks
SIZE = 256
# Left, top and side of the square that is kept, in pixels of the photograph. The side is four times that of
# the result, so that a pixel is the mean of 4 x 4. The square lies in the middle of the width. The highest
# and the lowest landmark of all persons are 54 pixels inside it, and no other is nearer to its border.
CROP = (163, 158, 4 * SIZE)


def splits() -> dict[str, list[int]]:
    """Persons of the three splits, 80, 10 and 12, from ``splits.json``."""
    known = json.loads((_HERE / "splits.json").read_text("utf-8"))["london"]
    return {split: known[split] for split in ("train", "val", "test")}


def draw_splits(persons: list[int], seed: int) -> dict[str, list[int]]:
    """How the splits were drawn: 80/10/12 persons in random order."""
    order = np.random.default_rng(seed).permutation(persons).tolist()
    return {"train": sorted(order[:80]), "val": sorted(order[80:90]), "test": sorted(order[90:])}


def persons() -> list[int]:
    """Numbers of the 102 persons, ascending."""
    return sorted(itertools.chain(*splits().values()))


def name(person: int, expression: str) -> str:
    """Name of an image, such as ``001_neutral``."""
    return f"{person:03d}_{expression}"


def expressions() -> dict[str, list[tuple[str, str]]]:
    """Split -> ordered (moving, fixed) pairs of the two expressions of a person."""
    return {
        split: [
            (name(person, moving), name(person, fixed))
            for person in chosen
            for moving, fixed in itertools.permutations(EXPRESSIONS)
        ]
        for split, chosen in splits().items()
    }


def people() -> dict[str, list[tuple[str, str]]]:
    """Split -> ordered (moving, fixed) pairs of the neutral faces of two persons."""
    return {
        split: [tuple(name(person, "neutral") for person in two) for two in itertools.permutations(chosen, 2)]
        for split, chosen in splits().items()
    }


def remotes() -> list[Remote]:
    """The licence, the photographs and the landmarks, with their published places and their hashes."""
    files = []
    for line in (_HERE / "london.sha256").read_text("utf-8").splitlines():
        digest, size, path = line.split()
        place = path if "/" not in path else f"inst/{path}"
        files.append(Remote(Path(path).name, _URL + place, f"sha256:{digest}", f"london/{path}", int(size)))
    return files


def gray(file: Path) -> np.ndarray:
    """The square of a photograph in gray, ``(256, 256)`` uint8.

    Gray is the luma of Rec. 601, which a JPEG file stores as such. ValueError where the file is no photograph
    of the set.
    """
    left, top, side = CROP
    try:
        with Image.open(file) as image:
            if image.size != (PHOTOGRAPH, PHOTOGRAPH):
                raise ValueError(f"{' x '.join(map(str, image.size))} pixels")
            image.draft("L", image.size)
            luma = np.asarray(image.convert("L"), np.float64)[top : top + side, left : left + side]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file}: not a photograph of the set ({error}); delete it, the same command fetches it"
        ) from None
    width = side // SIZE
    return np.round(luma.reshape(SIZE, width, SIZE, width).mean((1, 3))).astype(np.uint8)


def landmarks(file: Path) -> np.ndarray:
    """Landmarks of a photograph in pixels of the prepared image, ``(189, 2)`` float32: row, then column.

    In a ``.tem`` file the first line has their number; each of the next lines has x, to the right, and y,
    downwards, in pixels of the photograph; other lines say which landmarks are joined. Whole numbers are
    taken for the middles of pixels. ValueError where the file is something else.
    """
    left, top, side = CROP
    try:
        count, *lines = file.read_text("ascii").splitlines()
        points = np.array([[float(number) for number in line.split()] for line in lines[: int(count)]])
        if points.shape != (LANDMARKS, 2):
            raise ValueError(f"{int(count)} landmarks")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}: not the {LANDMARKS} landmarks of a photograph ({error}); "
            "delete it, the same command fetches it"
        ) from None
    inside = (points - (left, top) + 0.5) * SIZE / side - 0.5
    return inside[:, ::-1].astype(np.float32)


def recipe() -> dict:
    """Everything that decides the prepared data."""
    return {
        "photographs": COMMIT,
        "crop": list(CROP),
        "size": SIZE,
        "splits": splits(),
        "code": recipe_hash(sys.modules[__name__]),
    }


def prepare(root: Path, progress: bool = True) -> tuple[Path, str]:
    """Fetch photographs and landmarks (95 MB) and prepare them; give the folder and what was done, in words.

    Parameters
    ----------
    root : of all data sets. The originals lie in ``root/london_originals`` afterwards.
    progress : show bars.
    """
    root = Path(root)
    sources, folder = root / "london_originals", root / "london"
    if ready(folder, recipe()):
        return folder, "already there and verified"
    with only_one(root, ".london.lock"):
        files, new = fetch(remotes(), sources, progress)
        images = [(person, expression) for expression in EXPRESSIONS for person in persons()]
        building = Building(folder, recipe(), [name(*image) for image in images], (SIZE, SIZE))
        jobs = building.missing()
        for k in tqdm(jobs, desc="london", unit="image", disable=not progress):
            person, expression = images[k]
            building.put(k, gray(sources / f"{person:03d}_{EXPRESSIONS[expression][1]}.jpg"))
        points = [landmarks(sources / f"{person:03d}_03.tem") for person in persons()]
        with full_disk(building.part):
            np.save(building.part / prepared.LANDMARKS, np.stack(points))
            prepared.write_pairs(building.part, people(), building.names, "people")
        building.finish(
            "london",
            "london",
            expressions(),
            source=f"github.com/debruine/webmorphR.stim at {COMMIT}",
            cite=CITATION,
            terms=TERMS,
            credit=CREDIT,
            crop=list(CROP),
            landmark_scale=list(PUPILS),
            subjects=[f"{person:03d}" for person, _ in images],
        )
    return (
        folder,
        f"{new} files fetched, {len(files) - new} were there; {len(jobs)} of {len(images)} images prepared",
    )
