"""Evaluate a method on a data set: one row per pair, then a summary with its run card."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from .. import checkpoints, fields, metrics
from ..card import code_hash, peak_mb, reset_peak, run_card
from ..checks import one_of
from ..data import PairData, load
from ..methods import METHODS, NetworkConfig
from ..model import Model, check_to_register
from ..paths import runs, sha256, write_json, write_then_rename

CODE = code_hash(f"import {__name__}")

# What is measured on every pair, where it is defined: dice and hd95 need labels, fsim is for 2D.
METRICS = {
    "dice": "Dice as Learn2Reg, mean over labels",
    "hd95": "95th percentile of the surface distance as Learn2Reg, voxels, mean over labels",
    "ssim": "SSIM (Wang 2004)",
    "fsim": "FSIM (Zhang 2011)",
    "sdlogj": "SDlogJ as Learn2Reg: standard deviation of log(det J + 3)",
    "sdlogj_textbook": "standard deviation of log det J, folded voxels left out",
    "folding_percent": "voxels with det J <= 0, per cent",
    "ndv_percent": "non-diffeomorphic volume (2D: area; Liu 2024), per cent",
    "inverse_error": "mean |phi^-1(phi(x)) - x|, voxels; its 99.9th percentile is inverse_error_p999",
    "negation_error": "the same where Id - u is taken for phi^-1, as the paper does for displacements",
}
PER_PAIR = 14  # pairs that are enough for a method that takes seconds for each


def enough(method: str, limit: int = 0) -> int:
    """How many pairs the book scores a method on: ``limit`` (0 is all), but at most ``PER_PAIR`` where each is optimised anew."""
    return min(limit or PER_PAIR, PER_PAIR) if METHODS[method].per_pair else limit


def score(model: Model, data: PairData, k: int, device="cpu", wanted=METRICS) -> dict[str, float]:
    """Register pair ``k`` and compute metrics (names of ``METRICS``); ``dice`` and ``hd95`` come with one entry per label."""
    pair = {name: value[None].to(device) for name, value in data[k].items()}
    start = time.perf_counter()
    result = model.register(pair["moving"], pair["fixed"])
    u = result.displacement.cpu()  # waits for a GPU to finish
    row = {"seconds": time.perf_counter() - start}
    if data.classes:
        labels = [pair[f"{role}_labels"].cpu() for role in ("moving", "fixed")]
        maps = fields.warp_labels(labels[0], u), labels[1], labels[0]
        for name in [name for name in ("dice", "hd95") if name in wanted]:
            per_label = getattr(metrics, name)(*maps, list(data.label_names))
            row[name] = float(np.nanmean(per_label))
            row |= {
                f"{name}/{label}": float(value) for label, value in zip(data.label_names.values(), per_label)
            }
    alike = {"ssim": metrics.ssim} | ({"fsim": metrics.fsim} if data.dim == 2 else {})
    if chosen := alike.keys() & set(wanted):
        images = fields.warp(pair["moving"].cpu(), u), pair["fixed"].cpu()  # one warp for all methods
        row |= {name: alike[name](*images) for name in alike if name in chosen}
    for name in [name for name in ("sdlogj", "folding_percent", "ndv_percent") if name in wanted]:
        row[name] = getattr(metrics, name)(u)
    if "sdlogj_textbook" in wanted:
        row["sdlogj_textbook"] = metrics.sdlogj(u, "textbook")
    if "inverse_error" in wanted:
        error = metrics.inverse_consistency_error(u, result.inverse().cpu()).numpy()
        row |= {"inverse_error": float(error.mean()), "inverse_error_p999": float(np.quantile(error, 0.999))}
    if "negation_error" in wanted:
        row["negation_error"] = float(metrics.inverse_consistency_error(u, -u).mean())
    return row


def load_model(
    method: str, data: PairData, weights: Path | None = None, constants: dict | None = None
) -> Model:
    """A method ready to register the pairs of ``data``: one with a network has the shipped weights unless others are
    given, one without has its own constants unless others are given (:class:`tvf_core.model.Model`)."""
    check_choices(method, weights, constants)
    if METHODS[method].build is None:
        return Model(NetworkConfig(method, data.dim), constants=constants)
    weights = Path(weights) if weights else checkpoints.shipped(method, data.name)
    model = checkpoints.load(weights, method="" if weights.suffix == ".safetensors" else method)
    if (model.config.method, model.config.dim) != (method, data.dim):
        raise ValueError(
            f"{weights.name} holds {model.config.method} in {model.config.dim}D; "
            f"{data.name} with this method needs {method} in {data.dim}D"
        )
    return model


def check_choices(method: str, weights: Path | None = None, constants: dict | None = None) -> None:
    """Refuse an unknown method, weights without a network for them, and constants that it does not register with."""
    if weights is not None and not METHODS[one_of(method, METHODS, "method")].build:
        raise ValueError(f"{method} has no network: it takes no weights")
    check_to_register(method, constants)


def evaluate(
    method: str,
    data: str,
    *,
    weights: Path | None = None,
    constants: dict | None = None,
    split: str = "test",
    limit: int = 0,
    image_size: int = 0,
    out: Path | None = None,
    progress: bool = True,
) -> dict:
    """Score a method on a split and write ``<out>/<data>/<method>.csv`` (rows, nine digits) and ``.json`` (summary).

    A split other than ``test`` stands in the names, as in ``tm.val.json``. Every row is kept as soon as it is there: an
    evaluation that was stopped, however, continues with the next pair, and ends with the same files as one that was not
    (times and memory apart, which stand in the summary only).

    Parameters
    ----------
    method, data : names.
    weights : default the shipped ones for this method and data set.
    constants : name -> value, of a method without a network, in place of its own; for a profile's see
        :meth:`tvf_core.training.profiles.Profile.to_register`.
    limit : evaluate only this many pairs, evenly spread; 0 is all.
    image_size : edge of the images where the data set has several; 0 is its own.
    out : default ``runs/results``. A summary there is returned as it is if it was made by the same
        code, weights and settings.

    Returns
    -------
    The summary: mean and standard deviation over pairs (ddof 0) of every metric (``METRICS``), the numbers of the labels, a
    hash of the list of pairs, the median time per pair of registering and of measuring, the run card, and of shipped weights
    what their own card says of the training.

    Raises
    ------
    ValueError : another process is evaluating this method on this data set into the same folder.
    """
    check_choices(method, weights, constants)
    entry, pairs = METHODS[method], load(data, split, image_size or None, progress)
    model = load_model(method, pairs, weights, constants)
    weights = Path(weights) if weights else checkpoints.shipped(method, data)
    chosen = pairs.spread(limit)
    settings = {
        "method": method,
        "data": data,
        "split": split,
        "shape": list(pairs.shape),
        "limit": limit,
        "origin": pairs.fingerprint(),
        "pairs": _hash("\n".join(map(pairs.pair_name, chosen))),
        "weights": sha256(weights)[:16] if entry.build else None,
        "integrator": model.config.integrator if entry.has_velocity and entry.build else None,
        "constants": model.constants or None,
    }
    folder = (Path(out) if out else runs() / "results") / data
    summary_file, rows_file = (folder / result_name(method, split, kind) for kind in ("json", "csv"))
    if summary_file.exists():
        known = json.loads(summary_file.read_text())
        if known["card"]["settings"] == settings and known["card"]["code"] == CODE:
            return known

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if model.network is not None:
        model.network.to(device)
    bar = tqdm(chosen, desc=f"{entry.title} on {data}", disable=not progress, mininterval=1.0)
    with _kept_rows(
        folder / f".{result_name(method, split, 'rows')}.jsonl", {"settings": settings, "code": CODE}
    ) as (rows, keep):
        reset_peak(device)
        bar.update(len(rows))
        for k in chosen[len(rows) :]:
            start = time.perf_counter()
            # Nine digits: sums over a volume differ in the last ones from run to run, with the order of their parts.
            row = {"pair": pairs.pair_name(k)} | {
                m: float(f"{v:.9g}") for m, v in score(model, pairs, k, device).items()
            }
            keep(
                row | {"measuring": time.perf_counter() - start - row["seconds"], "peak_mb": peak_mb(device)}
            )
            bar.update()
        bar.close()
        summary = _finish(
            rows,
            summary_file,
            rows_file,
            {
                "dataset": data,
                "method": method,
                "title": model.title,
                "split": split,
                "n_pairs": len(rows),
                "labels": list(pairs.label_names),
            }
            | _training(weights, entry),
            settings,
            device,
        )
    return summary


def _finish(
    rows: list[dict], summary_file: Path, rows_file: Path, about: dict, settings: dict, device: str
) -> dict:
    """Write the rows and their summary; give the summary."""
    apart = {name: [row.pop(name) for row in rows] for name in ("seconds", "measuring", "peak_mb")}
    numbers = [key for key in rows[0] if key != "pair"]
    summary = {
        **about,
        "summary": {
            m: {
                "mean": float(np.nanmean([r[m] for r in rows])),
                "std": float(np.nanstd([r[m] for r in rows])),
            }
            for m in numbers
        },
        "seconds_per_pair": round(float(np.median(apart["seconds"])), 4),
        "measuring_seconds_per_pair": round(float(np.median(apart["measuring"])), 4),
        "card": run_card(settings, sum(apart["seconds"] + apart["measuring"]), device, CODE)
        | {"peak_mb": round(max(apart["peak_mb"]))},
    }
    with write_then_rename(rows_file) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    write_json(summary_file, summary)
    return summary


def _training(weights: Path, entry) -> dict:
    """What the card beside a weights file says of the training, under ``training``; nothing where there is no card."""
    card = weights.with_suffix(".json")
    if not entry.build or not card.is_file():
        return {}
    card = json.loads(card.read_text())
    return {
        "training": {key: card[key] for key in ("seconds", "pairs_seen", "device", "code") if key in card}
        | {
            key: card["settings"][key]
            for key in ("seed", "steps", "batch")
            if key in card.get("settings", ())
        }
    }


@contextlib.contextmanager
def _kept_rows(file: Path, about: dict):
    """Rows of an evaluation that was stopped, if it is the one that ``about`` tells of, and a function that keeps one more.

    The file is a line for ``about``, then a line per row, each written at once; it is gone when all is done. A last line
    that was cut off in the middle is dropped.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{file.parent}: another process is evaluating this method here; wait for it or choose another folder"
        ) from None
    try:
        lines = (
            file.read_text().split("\n")[:-1] if file.is_file() else []
        )  # what has no line end was not finished
        rows = [json.loads(line) for line in lines[1:]] if lines and lines[0] == json.dumps(about) else []
        with write_then_rename(file) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in (about, *rows)))
        with open(file, "a") as stream:

            def keep(row: dict) -> None:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
                rows.append(row)

            yield rows, keep
        file.unlink()
    finally:
        lock.release()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def result_name(method: str, split: str, kind: str) -> str:
    """Name of a results file: ``tm.json``, or ``tm.val.json`` for a split other than ``test``."""
    return f"{method}.{kind}" if split == "test" else f"{method}.{split}.{kind}"


def read_rows(
    method: str, data: str, folder: Path | None = None, split: str = "test"
) -> dict[str, np.ndarray]:
    """Columns of a rows file that :func:`evaluate` wrote; ``pair`` is text, the rest are numbers."""
    path = (Path(folder) if folder else runs() / "results") / data / result_name(method, split, "csv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        key: np.array([row[key] if key == "pair" else float(row[key]) for row in rows]) for key in rows[0]
    }


def read_results(folder: Path, data: str, split: str = "test") -> dict[str, dict]:
    """Summaries of a data set that lie in a results folder, method -> summary, in the order of the table."""
    files = {m: Path(folder) / data / result_name(m, split, "json") for m in METHODS}
    found = {m: json.loads(path.read_text()) for m, path in files.items() if path.is_file()}
    return {
        m: summary for m, summary in found.items() if summary["split"] == split
    }  # other splits once had the same names
