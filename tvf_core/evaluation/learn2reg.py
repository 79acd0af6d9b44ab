"""Write and read the submission folder of Learn2Reg's OASIS task of 2021, which the paper's Table 2 is about.

| | |
|---|---|
| file | ``task_03/disp_{fixed:04d}_{moving:04d}.npz``, its one array called ``arr_0`` |
| shape | (3, X/2, Y/2, Z/2), the component first, axes as in the images (160 x 192 x 224) |
| type and unit | float16; voxels of the **full** grid, though sampled at half resolution |

Writing and reading resample by quadratic splines whose ends lie on the ends of the grid, as the task's
programs do. That smooths a field a little, so that the scores of the written field differ slightly from those
of the field itself. The paper's scores are those of the written fields.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from .. import checkpoints, fields, metrics
from ..card import code_hash
from ..checks import check_field
from ..data import load_pairs
from ..methods import METHODS
from ..paths import must_be_writable, sha256, write_json, write_then_rename
from .evaluate import check_choices, load_model
from .scores import mean_of_known, too_small

TASK = "task_03"
CODE = code_hash(f"import {__name__}")


def halve(displacement: torch.Tensor) -> np.ndarray:
    """A displacement ``(1, 3, *S)`` as the task stores it: ``(3, *S/2)`` float16, both in voxels of S."""
    if check_field(displacement) != 3 or displacement.shape[0] != 1:
        raise ValueError(f"Learn2Reg's format holds one 3D field, got {tuple(displacement.shape)}")
    if any(s % 2 for s in displacement.shape[2:]):
        raise ValueError(
            f"Learn2Reg's format halves the grid: it needs even sizes, got {tuple(displacement.shape[2:])}"
        )
    return np.stack([_zoom(c, 0.5) for c in displacement[0].cpu().float().numpy()]).astype(np.float16)


def double(stored: np.ndarray) -> torch.Tensor:
    """What :func:`halve` stores as the task's evaluation reads it: ``(1, 3, *S)`` in voxels of S."""
    return torch.from_numpy(np.stack([_zoom(c.astype(np.float32), 2) for c in stored]))[None]


def _zoom(component: np.ndarray, factor: float) -> np.ndarray:
    # Where rounding puts the last plane 1e-16 beyond the grid, SciPy's default mode takes it for outside and
    # fills it with zeros. That happens at sizes of 28, 30 or 56, not at those of OASIS. With the mode
    # "mirror" it does not, and everything else is the same, bit for bit.
    return ndimage.zoom(component, factor, order=2, mode="mirror")


def file_name(pair: str) -> str:
    """Name of a pair's file from the numbers at the end of its images' names, moving->fixed."""
    numbers = [re.search(r"(\d+)$", name) for name in pair.split("->")]
    if None in numbers:
        raise ValueError(
            f"Learn2Reg numbers its images; the pair {pair} has a name without a number at its end"
        )
    moving, fixed = (int(n[1]) for n in numbers)
    return f"disp_{fixed:04d}_{moving:04d}.npz"


def read(file: Path, shape) -> torch.Tensor:
    """A submitted displacement on the full grid, ``(1, 3, *shape)`` in voxels.

    ValueError if the file is not in the task's format, or has values that are not finite.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            stored = content["arr_0"]
    except (KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{file}: not a displacement of Learn2Reg's OASIS task ({error})") from None
    half = (3, *(s // 2 for s in shape))
    if stored.dtype != np.float16 or stored.shape != half:
        raise ValueError(f"{file}: expected float16 {half}, got {stored.dtype} {stored.shape}")
    if not np.isfinite(stored).all():
        raise ValueError(f"{file}: the displacement has NaN or infinite values, so it cannot be scored")
    return double(stored)


def export(
    method: str,
    data: str,
    out: Path,
    *,
    weights: Path | None = None,
    constants: dict | None = None,
    split: str = "val",
    progress: bool = True,
) -> list[Path]:
    """Register every pair of a split and write the submission folder ``<out>/task_03``.

    Parameters
    ----------
    method, data, weights, constants : as in :func:`tvf_core.evaluation.evaluate.evaluate`. The data are 3D,
        and the names of their images end in numbers.
    out : folder. ``submission.json`` in it tells what the submission was made from. If the folder was begun
        with the same method, weights, constants, data and code, the missing files are added; with others it
        is an error.

    Returns
    -------
    The files, in the order of the pairs.
    """
    check_choices(method, weights, constants)
    pairs = load_pairs(data, split, None, progress)
    if pairs.dim != 3 or any(s % 2 for s in pairs.shape):
        raise ValueError(
            f"{data}: Learn2Reg's format is for volumes of even sizes, "
            f"these are {' x '.join(map(str, pairs.shape))}"
        )
    if reason := too_small(pairs.shape).get("sdlogj"):
        raise ValueError(f"{data}: {reason}, so the challenge could not score a submission")
    names = [file_name(pairs.pair_name(k)) for k in range(len(pairs))]
    if len(set(names)) < len(names):
        raise ValueError(f"{data}: two pairs have the same numbers; Learn2Reg could not tell them apart")
    model = load_model(method, pairs, weights, constants)
    weights = Path(weights) if weights else checkpoints.shipped(method, pairs.name)
    about = {
        "method": method,
        "data": pairs.name,
        "split": split,
        "origin": pairs.fingerprint(),
        "code": CODE,
        "weights": sha256(weights)[:16] if METHODS[method].build else None,
        "constants": model.constants or None,
    }
    card, folder = Path(out) / "submission.json", Path(out) / TASK
    if card.is_file() and json.loads(card.read_text("utf-8")) != about:
        raise ValueError(f"{out} holds a submission of other settings; choose another folder or delete it")
    if not card.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files of unknown origin; choose another folder or delete it")
    must_be_writable(Path(out), "choose another out folder")
    write_json(card, about)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if model.network is not None:
        model.network.to(device)
    for k, name in enumerate(tqdm(names, desc=f"{method} on {data}", disable=not progress, mininterval=1.0)):
        if (folder / name).is_file():
            continue
        pair = {role: image[None].to(device) for role, image in pairs[k].items()}
        stored = halve(model.register(pair["moving"], pair["fixed"]).displacement)
        with write_then_rename(folder / name) as temporary, open(temporary, "wb") as file:
            np.savez(file, stored)
    return [folder / name for name in names]


def scores(folder: Path, data: str, split: str = "val", progress: bool = True) -> dict:
    """Dice, HD95 and SDlogJ of ``<folder>/task_03``, computed as the challenge does.

    Returns
    -------
    As of an evaluation: ``summary`` with the mean over pairs of each, ``n_pairs``, and ``not_scored`` with
    the pairs that the means leave out, which have no label in common.

    Raises
    ------
    FileNotFoundError : the file of a pair is missing; the message names it.
    ValueError : a file is in another format, or the data have no labels.
    """
    pairs = load_pairs(data, split, None, progress)
    if not pairs.label_numbers:
        raise ValueError(f"{data}: the {split} split has no labels, so there is nothing to score")
    files = [Path(folder) / TASK / file_name(pairs.pair_name(k)) for k in range(len(pairs))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: a submission has one file per pair")
    rows, labels = [], list(pairs.label_names)
    for k, file in enumerate(tqdm(files, desc=f"scores on {data}", disable=not progress, mininterval=1.0)):
        u, pair = read(file, pairs.shape), pairs.batch([k])
        maps = fields.warp_labels(pair["moving_labels"], u), pair["fixed_labels"], pair["moving_labels"]
        rows.append(
            {
                "dice": mean_of_known(metrics.dice(*maps, labels)),
                "hd95": mean_of_known(metrics.hd95(*maps, labels)),
                "sdlogj": metrics.sdlogj(u),
            }
        )
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    unknown = {
        name: [pairs.pair_name(k) for k, value in enumerate(values) if np.isnan(value)]
        for name, values in columns.items()
    }
    return {
        "summary": {name: {"mean": mean_of_known(values)} for name, values in columns.items()},
        "n_pairs": len(rows),
        "not_scored": {name: names for name, names in unknown.items() if names},
    }
