"""The Radboud Faces Database: its photographs become 536 gray images of 256 x 256 pixels, and pairs of them.

The paper names neither the crop nor the subjects of its split. Both are ours: the crop is a square of 640/681
of the width, its middle at 0.46 of the height; the split is drawn once and kept in ``splits.json``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tvf_core.data import prepared
from tvf_core.data.face_parameters import EXPRESSIONS

from . import originals
from .building import Building, recipe_hash
from .fetch import full_disk, only_one

ACCESS = """\
RaFD, the Radboud Faces Database: free, on request, at https://rafd.socsci.ru.nl (formerly rafd.nl).

Who may ask: researchers of an accredited university or research institute, with proof of affiliation (a page
of the institution, or a publication). Students apply through their supervisor. The account is personal.

Terms: scientific use only. The images may not be passed on, nor may processed copies: what is prepared
here stays with you, preview.png included. Some images may be shown as examples in scientific publications.

Cite: Langner et al. (2010), Presentation and validation of the Radboud Faces Database, Cognition & Emotion
24(8), 1377-1388.

Needed here: the images of camera 090 with frontal gaze, Rafd090_*_frontal.jpg (67 models x 8 expressions).
Others may lie in the folder too; they are not used.
"""

CAMERA, GAZE = "090", "frontal"
FILE = re.compile(
    r"Rafd(?P<camera>000|045|090|135|180)_(?P<model>\d\d)_(Caucasian|Kid|Moroccan)_(male|female)_"
    rf"(?P<expression>{'|'.join(EXPRESSIONS)})_(?P<gaze>left|frontal|right)\.jpe?g",
    re.IGNORECASE,
)
MODELS = [m for m in range(1, 74) if m not in (6, 13, 17, 34, 62, 66)]  # numbers without a model
SIZE = 256
SPLITS = Path(__file__).with_name("splits.json")
LOOKED_FOR = f"Rafd{CAMERA}_<model>_<ethnicity>_<gender>_<expression>_{GAZE}.jpg"


def prepare(
    source: Path, root: Path, crop: tuple[int, int, int] | None = None, progress: bool = True
) -> Path:
    """Prepare RaFD in ``root/rafd``; what is there already in the same way is only verified.

    Parameters
    ----------
    source : folder with the original images, anywhere below it; or an archive, unpacked into
        ``root/rafd_originals``.
    root : folder of the prepared data sets.
    crop : (left, top, side) of the square to keep, in pixels of the originals; without it as :func:`crop_box`
        has it.
    progress : show a bar.

    Returns
    -------
    The folder. Look at its ``preview.png``: it shows whether the crop fits the faces.
    """
    root = Path(root)
    folder = root / "rafd"
    with only_one(root, ".rafd.lock"):
        files, unused = select(originals.below(source, root / "rafd_originals", progress), source)
        paths = list(files.values())
        box = crop_box(crop, *common_size(paths))
        recipe = {
            "data set": "rafd",
            "crop": box,
            "size": SIZE,
            "files": originals.digest(paths, progress),
            "split": split(),
            "code": recipe_hash(sys.modules[__name__]),
        }
        if originals.ready(folder, recipe):
            return folder
        building = Building(
            folder, recipe, [f"{model:02d}_{expression}" for model, expression in files], (SIZE, SIZE)
        )
        for k in tqdm(building.missing(), desc="rafd", unit="image", disable=not progress):
            building.put(k, gray(paths[k], box))
        with full_disk(building.part):
            preview(np.load(building.part / prepared.IMAGES, mmap_mode="r")).save(
                building.part / "preview.png"
            )
        building.finish(
            "rafd",
            "rafd --source FOLDER",
            pairs(),
            source="https://rafd.socsci.ru.nl",
            cite="Langner et al. 2010",
            terms="scientific use only, no redistribution",
            crop=box,
            unused_images=unused,
            subjects=[f"{model:02d}" for model, _ in files],
            subjects_of_splits={part: [f"{m:02d}" for m in models] for part, models in split().items()},
        )
    return folder


def select(files: list[Path], source: Path) -> tuple[dict[tuple[int, str], Path], int]:
    """The 536 images that are used, and how many others of RaFD lie there.

    The images are given as (model, expression) -> file, in the order of the models.
    """
    matches = [(file, match) for file in files if (match := FILE.fullmatch(file.name))]
    if not matches:
        raise ValueError(
            f"{source}: no image named {LOOKED_FOR} in it or below; {originals.looks_like(files, 'rafd')}"
        )
    given: dict[tuple[int, str], list[Path]] = {}
    for file, match in matches:
        if (match["camera"], match["gaze"].lower()) == (CAMERA, GAZE):
            given.setdefault((int(match["model"]), match["expression"].lower()), []).append(file)
    if not given:
        views = ", ".join(sorted({f"camera {m['camera']} gaze {m['gaze']}" for _, m in matches})[:6])
        raise ValueError(
            f"{source}: only {views}; needed are the images of camera {CAMERA} with gaze {GAZE}, {LOOKED_FOR}"
        )
    wanted = list(itertools.product(MODELS, EXPRESSIONS))
    missing = [
        f"model {model:02d} {expression}" for model, expression in wanted if (model, expression) not in given
    ]
    if missing:
        more = ", ..." if len(missing) > 5 else ""
        raise ValueError(
            f"missing {len(missing)} of {len(wanted)} images: {', '.join(missing[:5])}{more}; "
            "get the complete database, check that it was unpacked completely, and that no name was changed"
        )
    for key in wanted:
        first, *others = given[key]
        for other in others:
            if other.read_bytes() != first.read_bytes():
                raise ValueError(
                    f"{source}: two different images of one expression, {'/'.join(first.parts[-2:])} and "
                    f"{'/'.join(other.parts[-2:])}; leave only the original"
                )
    return {key: given[key][0] for key in wanted}, len(matches) - len(wanted)


def common_size(paths: list[Path]) -> tuple[int, int]:
    """Least width and height, which must be nearly the same, and upright, for all."""
    sizes = {}
    for path in paths:
        with _readable(path), Image.open(path) as image:
            sizes[path] = image.size
    (width, height), _ = Counter(sizes.values()).most_common(1)[0]
    for path, (w, h) in sizes.items():
        if max(abs(w - width), abs(h - height)) > 2:  # a pixel more or less moves nothing
            raise ValueError(
                f"{path.name}: {w} x {h} pixels, most others {width} x {height}; take all images from one "
                "original release"
            )
    if width >= height:
        raise ValueError(
            f"{paths[0].name} and the others: {width} x {height} pixels, but RaFD's are upright; "
            "take the originals, not rotated or cropped ones"
        )
    return min(w for w, _ in sizes.values()), min(h for _, h in sizes.values())


def crop_box(crop: tuple[int, int, int] | None, width: int, height: int) -> list[int]:
    """Left, top and side of the square to keep, checked."""
    side = round(width * 640 / 681)
    left, top, side = crop or (
        (width - side) // 2,
        min(max(round(0.46 * height - side / 2), 0), height - side),
        side,
    )
    if side < SIZE:
        remedy = "give a larger one" if crop else "take the originals, not reduced copies"
        raise ValueError(
            f"crop: a side of {side} pixels is less than the {SIZE} of the result; {remedy} "
            f"(the images have {width} x {height})"
        )
    if left < 0 or top < 0 or left + side > width or top + side > height:
        raise ValueError(
            f"crop: left {left}, top {top}, side {side} reaches beyond the images of {width} x {height} "
            "pixels; give a square that lies inside"
        )
    return [left, top, side]


def gray(path: Path, box: list[int]) -> np.ndarray:
    """Cropped image in gray (Rec. 601 luma), resized with low-pass filtering, uint8."""
    left, top, side = box
    with _readable(path), Image.open(path) as image:
        square = image.convert("L").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


@contextlib.contextmanager
def _readable(path: Path):
    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # PIL raises SyntaxError on broken files of some formats.
        raise ValueError(
            f"{path}: cannot be read as an image ({type(error).__name__}); unpack or get it again"
        ) from None


def pairs() -> dict[str, list[tuple[str, str]]]:
    """Split -> all ordered (moving, fixed) pairs of different expressions of one model."""
    return {
        part: [
            (f"{m:02d}_{a}", f"{m:02d}_{b}")
            for m in models
            for a, b in itertools.permutations(EXPRESSIONS, 2)
        ]
        for part, models in split().items()
    }


def split() -> dict[str, list[int]]:
    """Models of the three splits, from ``splits.json``."""
    known = json.loads(SPLITS.read_text(encoding="utf-8"))["rafd"]
    return {part: known[part] for part in ("train", "val", "test")}


def draw_split(seed: int) -> dict[str, list[int]]:
    """How the split was drawn: 53/7/7 models in random order."""
    order = np.random.default_rng(seed).permutation(MODELS).tolist()
    return {"train": sorted(order[:53]), "val": sorted(order[53:60]), "test": sorted(order[60:])}


def preview(images: np.ndarray) -> Image.Image:
    """All expressions of four models, one model a row."""
    count = len(EXPRESSIONS)
    models = np.linspace(0, len(MODELS) - 1, 4).round().astype(int)
    rows = [np.hstack(images[count * k : count * (k + 1), ::2, ::2]) for k in models]
    return Image.fromarray(np.vstack(rows))
