"""Trial of the affine registration from known bad starts: ``python -m tvf_core.scans.affine_trial``.

An image of another person is turned, shifted and scaled about its middle and resampled on a grid of other
axes, so that it is cut where it leaves that grid. The error of a matrix is the mean distance between the
places to which it takes points of the fixed image and those where they are in the moving image: the
centroids of the structures of a brain, the landmarks of a face. The measure is the excess over the error of
the affine map that fits these points best, which no registration of the images knows.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import fields
from ..card import code_hash, run_card
from ..data import PairData, load, prepared
from ..paths import RESULTS, data_root, must_be_writable, write_json
from . import affine
from .grids import Grid, map_by

CODE = code_hash("import tvf_core.scans.affine_trial")
GOAL = 3.0  # mm, in 2D pixels: the largest excess of a start that counts as a success
OUT = RESULTS / "scans" / "affine.json"


@dataclasses.dataclass(frozen=True)
class Start:
    """How far a moving image is moved away: turns up to ``turn`` degrees, and so on."""

    turn: float = 30.0
    shift: float = 40.0
    scale: float = 0.1
    shape: tuple[int, ...] = (96, 96, 96)
    spacing: float = 2.5


FACES = Start(turn=20.0, shift=15.0, shape=(160, 160), spacing=1.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A pair with the points (K, D), in mm, that belong together."""

    moving: torch.Tensor
    fixed: torch.Tensor
    moving_grid: Grid
    fixed_grid: Grid
    moving_points: np.ndarray
    fixed_points: np.ndarray
    what: dict


def run(starts: int = 40, inverted: int = 8, faces: int = 12, seed: int = 0, progress: bool = True) -> dict:
    """Register from random starts.

    Parameters
    ----------
    starts : number of starts with the test pairs of the anatomies; 30 degrees, 40 mm, 10 % at most.
    inverted : number of further ones in which dark and bright of the moving brain are exchanged.
    faces : number of starts with pairs of faces (2D); 20 degrees, 15 pixels, 10 % at most.
    seed : of the starts.

    Returns
    -------
    ``rows`` (one per start), ``summary`` (for each kind of case the number of starts, the ``share`` whose
    excess is at most ``GOAL``, median and worst excess, median and longest seconds) and the run's card.
    ``cpu_seconds`` are those of all cores together; they depend less than ``seconds`` on what else the
    machine does.
    """
    begun = time.time()
    settings = {"starts": starts, "inverted": inverted, "faces": faces, "seed": seed}
    jobs = {
        "brains": brains(starts, seed),
        "brains, contrast inverted": brains(inverted, seed + 1, invert=True),
        "faces": face_pairs(faces, seed + 2),
    }
    rows = []
    with tqdm(total=starts + inverted + faces, desc="affine", disable=not progress, leave=False) as bar:
        for kind, cases in jobs.items():
            for case in cases:
                rows.append({"kind": kind, **measure(case)})
                bar.update()
    card = run_card(settings, time.time() - begun, "cpu", CODE)
    return {"goal": GOAL, "summary": summary(rows), "rows": rows, "card": card}


def summary(rows: list[dict]) -> list[dict]:
    """One row for each kind of case."""
    result = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        excess, seconds = ([row[key] for row in of_kind] for key in ("excess", "seconds"))
        result.append(
            {
                "kind": kind,
                "starts": len(of_kind),
                "share": sum(e <= GOAL for e in excess) / len(excess),
                "median_excess": statistics.median(excess),
                "worst_excess": max(excess),
                "median_best": statistics.median(row["best"] for row in of_kind),
                "median_before": statistics.median(row["before"] for row in of_kind),
                "median_seconds": statistics.median(seconds),
                "most_seconds": max(seconds),
                "median_cpu_seconds": statistics.median(row["cpu_seconds"] for row in of_kind),
            }
        )
    return result


def measure(case: Case, **options) -> dict:
    """Register a case: errors before, after and of the best affine map, in mm, and what was reported."""
    begun = time.process_time()
    matrix, report = affine.register(case.moving, case.fixed, case.moving_grid, case.fixed_grid, **options)
    used = time.process_time() - begun
    best = _error(best_affine(case.fixed_points, case.moving_points), case)
    found = _error(matrix, case)
    return {
        **case.what,
        "before": _error(np.eye(len(matrix)), case),
        "best": best,
        "after": found,
        "excess": found - best,
        "similarity": [report.similarity_before, report.similarity_after],
        "overlap": report.overlap,
        "warnings": list(report.warnings),
        "seconds": report.seconds,
        "cpu_seconds": used,
    }


def best_affine(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Affine matrix that takes points (K, D) to their targets with the least squared distances."""
    solution = np.linalg.lstsq(np.c_[points, np.ones(len(points))], targets, rcond=None)[0]
    return np.vstack([solution.T, np.eye(points.shape[1] + 1)[-1]])


def _error(matrix: np.ndarray, case: Case) -> float:
    return float(np.linalg.norm(map_by(matrix, case.fixed_points) - case.moving_points, axis=1).mean())


def brains(number: int, seed: int, invert: bool = False, start: Start = Start()) -> Iterator[Case]:
    """Cases from the test pairs of the prepared anatomies, one after the other."""
    if not number:
        return
    data = load("anatomies", "test")
    about = prepared.about(data_root() / "anatomies" / "2.5mm")
    grid = Grid(data.shape, np.array(about["affine"]))
    rng = np.random.default_rng(seed)
    for k in range(number):
        moving, fixed = data.pairs[k % len(data)]
        image = _image(data, moving)
        if invert:
            image = torch.where(image > 0, 1 - image, 0)
        points = [_centroids(data, n, grid) for n in (moving, fixed)]
        moved, target, matrix, what = move(image, grid, rng, start)
        what = {"pair": data.pair_name(k % len(data)), **what}
        yield Case(moved, _image(data, fixed), target, grid, map_by(matrix, points[0]), points[1], what)


def face_pairs(number: int, seed: int, start: Start = FACES) -> Iterator[Case]:
    """Cases from pairs of different persons of the London faces; a pixel counts as 1 mm."""
    if not number:
        return
    data = load("london_people", "test")
    grid = Grid(data.shape, np.diag([-1.0, -1.0, 1.0]))
    rng = np.random.default_rng(seed)
    for k in range(number):
        number_of_pair = k * len(data) // number
        moving, fixed = data.pairs[number_of_pair]
        moved, target, matrix, what = move(_image(data, moving), grid, rng, start)
        points = [grid.world(data.landmarks[n]) for n in (moving, fixed)]
        what = {"pair": data.pair_name(number_of_pair), **what}
        yield Case(moved, _image(data, fixed), target, grid, map_by(matrix, points[0]), points[1], what)


def _image(data: PairData, number: int) -> torch.Tensor:
    return torch.from_numpy(np.array(data.images[number], dtype=np.float32) / 255)[None, None]


def _centroids(data: PairData, number: int, grid: Grid) -> np.ndarray:
    """Middles (K, D), in mm, of the structures of an image."""
    labels = np.asarray(data.labels[number])
    return grid.world([np.argwhere(labels == k).mean(0) for k in data.label_names])


def move(
    image: torch.Tensor, grid: Grid, rng: np.random.Generator, start: Start
) -> tuple[torch.Tensor, Grid, np.ndarray, dict]:
    """Turn, shift and scale an image about the middle of its grid, and resample it on a grid of other axes.

    Returns
    -------
    The image, its grid, the matrix by which its points were moved, and turn, shift and scale in words.
    """
    dim, middle = grid.dim, grid.world((np.array(grid.shape) - 1) / 2)
    turn, shift = rng.uniform(0, start.turn), rng.uniform(0, start.shift)
    scale = 1 + rng.uniform(-start.scale, start.scale)
    matrix = np.eye(dim + 1)
    matrix[:-1, :-1] = scale * rotation(rng, dim, turn)
    matrix[:-1, -1] = middle + shift * _direction(rng, dim) - matrix[:-1, :-1] @ middle
    axes = np.eye(dim)[rng.permutation(dim)] * rng.choice([-1, 1], dim)
    target = np.eye(dim + 1)
    target[:-1, :-1] = start.spacing * rotation(rng, dim, 10.0) @ axes
    target[:-1, -1] = middle - target[:-1, :-1] @ ((np.array(start.shape) - 1) / 2)
    places = map_by(np.linalg.inv(matrix @ grid.affine) @ target, np.moveaxis(np.indices(start.shape), 0, -1))
    moved = fields.sample(image, torch.from_numpy(places).to(image.dtype).movedim(-1, 0)[None])
    what = {"turn": turn, "shift": shift, "scale": scale}
    return moved, Grid(start.shape, target), matrix, what


def _direction(rng: np.random.Generator, dim: int) -> np.ndarray:
    vector = rng.normal(size=dim)
    return vector / np.linalg.norm(vector)


def rotation(rng: np.random.Generator, dim: int, degrees: float) -> np.ndarray:
    """Rotation matrix by an angle, about a random axis in 3D and to a random side in 2D."""
    angle = math.radians(degrees)
    if dim == 2:
        angle *= rng.choice([-1, 1])
        return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    x, y, z = _direction(rng, 3)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])  # Rodrigues' formula
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def main(arguments: list[str] | None = None) -> None:
    """Run the trial and write its rows; print the summary."""
    parser = argparse.ArgumentParser(prog="python -m tvf_core.scans.affine_trial", description=run.__doc__)
    for name, default in (("starts", 40), ("inverted", 8), ("faces", 12), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = vars(parser.parse_args(arguments))
    out = options.pop("out")
    must_be_writable(out.parent, "choose another out file")
    result = run(**options)
    write_json(out, result)
    for row in result["summary"]:
        print(
            f"{row['kind']}: {row['share']:.1%} of {row['starts']} starts at most {GOAL:g} mm above the best "
            f"affine map; excess median {row['median_excess']:.2f}, worst {row['worst_excess']:.2f} mm; "
            f"{row['median_cpu_seconds']:.1f} s of a core a pair"
        )


if __name__ == "__main__":
    main()
