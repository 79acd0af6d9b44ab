"""Evaluate a method on a data set: one row per pair, then a summary with its run card."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import checkpoints, fields, metrics
from ..card import code_hash, peak_mb, reset_peak, run_card
from ..checks import one_of
from ..data import DATASETS, PairData, load_pairs
from ..methods import METHODS, NetworkConfig
from ..model import Model, check_to_register
from ..paths import runs, sha256
from .kept_rows import kept_rows
from .results import (
    TEXTS,
    check_data,
    check_name,
    check_owner,
    delete,
    file_of,
    made_otherwise,
    read_json,
    read_summary,
    write_result,
)

CODE = code_hash(f"import {__name__}")

# What is measured on every pair, where it is defined: dice and hd95 need labels, fsim is for 2D.
METRICS = {
    "dice": "Dice as Learn2Reg, mean over labels",
    "hd95": "95th percentile of the surface distance as Learn2Reg, voxels, mean over labels",
    "ssim": "SSIM (Wang 2004)",
    "fsim": "FSIM (Zhang 2011)",
    "sdlogj": "SDlogJ as Learn2Reg: standard deviation of log(det J + 3)",
    "sdlogj_textbook": "standard deviation of log det J, folded voxels left out",
    "folding_percent": "voxels with det J <= 0, per cent of all; at the border by one-sided differences",
    "folding_inner_percent": "the same of the voxels inside Learn2Reg's margin of two voxels on each side",
    "ndv_percent": "non-diffeomorphic volume (2D: area; Liu 2024), per cent",
    "inverse_error": "mean |phi^-1(phi(x)) - x|, voxels; its 99.9th percentile is inverse_error_p999",
    "negation_error": "the same where Id - u is taken for phi^-1, as the paper does for displacements",
}
# Values of a row that differ from run to run: they stand in the summary only.
APART = ("seconds", "measuring", "peak_mb")
PER_PAIR = 14  # pairs that are enough for a method that takes seconds for each


def enough(method: str, limit: int = 0) -> int:
    """How many pairs the book scores a method on: ``limit`` (0 is all).

    A method that optimises every pair anew is scored on at most ``PER_PAIR``.
    """
    return min(limit or PER_PAIR, PER_PAIR) if METHODS[method].per_pair else limit


def score(model: Model, data: PairData, k: int, device="cpu", wanted=METRICS) -> dict[str, float]:
    """Register pair ``k`` and compute metrics (names of ``METRICS``); ``dice``, ``hd95`` also per label."""
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
    of_the_map = {
        "sdlogj": metrics.sdlogj,
        "sdlogj_textbook": partial(metrics.sdlogj, kind="textbook"),
        "folding_percent": metrics.folding_percent,
        "folding_inner_percent": partial(metrics.folding_percent, convention="inner"),
        "ndv_percent": metrics.ndv_percent,
    }
    row |= {name: measure(u) for name, measure in of_the_map.items() if name in wanted}
    if "inverse_error" in wanted:
        error = metrics.inverse_consistency_error(u, result.inverse().cpu()).numpy()
        row |= {"inverse_error": float(error.mean()), "inverse_error_p999": float(np.quantile(error, 0.999))}
    if "negation_error" in wanted:
        row["negation_error"] = float(metrics.inverse_consistency_error(u, -u).mean())
    return row


def load_model(
    method: str, data: PairData, weights: Path | None = None, constants: dict | None = None
) -> Model:
    """A method that is ready to register the pairs of ``data``.

    The default weights are the shipped ones; the default constants of a method without a network are its own.
    """
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
    """Refuse an unknown method, weights for one without a network, and constants that it does not have."""
    if weights is not None and not METHODS[one_of(method, METHODS, "method")].build:
        raise ValueError(f"{method} has no network: it takes no weights")
    check_to_register(method, constants)


def evaluate(
    method: str,
    data: str,
    *,
    name: str = "",
    weights: Path | None = None,
    constants: dict | None = None,
    split: str = "test",
    limit: int = 0,
    image_size: int = 0,
    out: Path | None = None,
    replace: bool = False,
    progress: bool = True,
) -> dict:
    """Score a method on a split; write rows (``<out>/<data>/<name>.csv``) and a summary (``.json``).

    The file names tell a split other than ``test`` and a part of the pairs, as in ``tm.val.json`` and
    ``tm.2-pairs.json`` (:mod:`tvf_core.evaluation.results`), so that neither overwrites the result on all
    test pairs. Every row is kept as soon as it is there. An evaluation that was stopped, however that
    happened, continues with the next pair and ends with the same files as one that was not stopped. (Times
    and memory stand in the summary only.)

    Parameters
    ----------
    method, data : names; ``data`` may be the path of a folder (:mod:`tvf_core.data.prepared`).
    name : of the result, default the method's; with names, several trainings of one method can be compared.
    weights : default the shipped ones for this method and data set.
    constants : name -> value, of a method without a network, in place of its own; for a profile's see
        :meth:`tvf_core.training.profiles.Profile.to_register`.
    limit : evaluate only this many pairs, evenly spread over the split; 0 is all.
    image_size : edge of the images where the data set has several; 0 is its own.
    out : default ``runs/results``. A summary there is returned as it is if it was made by the same
        code, weights and settings.
    replace : replace a result of the same name that was made with other weights, shape or constants. Its
        files of other splits and parts are deleted once the new result is there.

    Returns
    -------
    The summary: ``name``, ``method``, ``split``, the number of pairs ``n_pairs`` and of how many
    (``of_pairs``), mean and standard deviation over pairs (ddof 0) of every metric (``METRICS``), the numbers
    of the labels, a hash of the list of pairs, the median time per pair of registering and of measuring, the
    run card, and of shipped weights what their own card says of the training.

    Raises
    ------
    ValueError : the name cannot be one, or belongs to a result of another method, or to one with other
        weights, shape or constants that is not to be replaced; a file there is damaged, or the result's own
        is something else; another process is evaluating under this name; the split has no pairs; or ``data``
        is a folder, and results on other data of the same name lie there.
    """
    check_choices(method, weights, constants)
    name = check_name(name or method, method)
    pairs = load_pairs(data, split, image_size or None, progress)
    folder = (Path(out) if out else runs() / "results") / pairs.name
    check_owner(name, method, folder)
    if str(data) not in DATASETS:
        check_data(folder, pairs.name, pairs.fingerprint())
    model = load_model(method, pairs, weights, constants)
    weights = Path(weights) if weights else checkpoints.shipped(method, pairs.name)
    chosen = pairs.spread(limit)
    settings = _settings(model, pairs, chosen, weights)
    others = made_otherwise(name, folder, settings, replace)
    about = _about(name, model, pairs, chosen) | _training(weights, METHODS[method])
    if known := _stored(file := folder / file_of(about), settings):
        delete(others)
        return known
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept = folder / f".{file.stem}.rows.jsonl"
    names = [pairs.pair_name(k) for k in chosen]
    with kept_rows(kept, {"settings": settings, "code": CODE}, names) as (rows, keep):
        _measure(model, pairs, chosen, rows, keep, device, progress)
        summary = _summary(rows, about, settings, device)
        write_result(summary, [{key: row[key] for key in row if key not in APART} for row in rows], folder)
    delete([other for other in others if other != file])
    return summary


def _about(name: str, model: Model, pairs: PairData, chosen: list[int]) -> dict:
    """What a result is of: the first keys of its summary."""
    return {
        "dataset": pairs.name,
        "name": name,
        "method": model.config.method,
        "title": model.title,
        "split": pairs.split,
        "n_pairs": len(chosen),
        "of_pairs": len(pairs),
        "labels": list(pairs.label_names),
    }


def _stored(file: Path, settings: dict) -> dict | None:
    """The summary in a file if this code made it with these settings; ValueError if it is not a result."""
    if not file.exists():
        return None
    if not (known := read_summary(file)):
        raise ValueError(f"{file} is not a result of tvf evaluate: move it, or choose another name")
    card = known["card"]
    return known if card["settings"] == settings and card.get("code") == CODE else None


def _settings(model: Model, pairs: PairData, chosen: list[int], weights: Path) -> dict:
    """Everything that decides the numbers: a stored result with the same settings is as good as a new one."""
    entry = METHODS[model.config.method]
    return {
        "method": model.config.method,
        "data": pairs.name,
        "split": pairs.split,
        "shape": list(pairs.shape),
        "limit": len(chosen) if len(chosen) < len(pairs) else 0,
        "origin": pairs.fingerprint(),
        "pairs": _hash("\n".join(f"{pairs.pair_name(k)} {pairs.person(k)}" for k in chosen)),
        "labels": list(pairs.label_names),
        "weights": sha256(weights)[:16] if entry.build else None,
        "integrator": model.config.integrator or None,  # empty where the method has no such option
        "constants": model.constants or None,
    }


def _measure(
    model: Model,
    pairs: PairData,
    chosen: list[int],
    rows: list[dict],
    keep: Callable,
    device: str,
    progress: bool,
) -> None:
    """Score the chosen pairs that have no row yet, and keep each row."""
    if model.network is not None:
        model.network.to(device)
    reset_peak(device)
    title = f"{METHODS[model.config.method].title} on {pairs.name}"
    with tqdm(chosen, desc=title, initial=len(rows), disable=not progress, mininterval=1.0) as bar:
        for k in chosen[len(rows) :]:
            start = time.perf_counter()
            # Nine digits: sums over a volume differ in the last ones from run to run, as their order does.
            scores = {m: float(f"{v:.9g}") for m, v in score(model, pairs, k, device).items()}
            measuring = time.perf_counter() - start - scores["seconds"]
            row = {"pair": pairs.pair_name(k), "person": pairs.person(k), **scores}
            keep(row | {"measuring": measuring, "peak_mb": peak_mb(device)})
            bar.update()


def _summary(rows: list[dict], about: dict, settings: dict, device: str) -> dict:
    """Means and deviations of the rows, with what the result is of and its run card."""
    apart = {key: [row[key] for row in rows] for key in APART}
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in (*TEXTS, *APART)}
    return {
        **about,
        "summary": {
            m: {"mean": float(np.nanmean(v)), "std": float(np.nanstd(v))} for m, v in columns.items()
        },
        "seconds_per_pair": round(float(np.median(apart["seconds"])), 4),
        "measuring_seconds_per_pair": round(float(np.median(apart["measuring"])), 4),
        "card": run_card(settings, sum(apart["seconds"] + apart["measuring"]), device, CODE)
        | {"peak_mb": round(max(apart["peak_mb"]))},
    }


def _training(weights: Path, entry) -> dict:
    """What the card beside a weights file says of the training, under ``training``; empty without a card."""
    card = weights.with_suffix(".json")
    if not entry.build or not card.is_file():
        return {}
    card = read_json(card)
    return {
        "training": {key: card[key] for key in ("seconds", "pairs_seen", "device", "code") if key in card}
        | {
            key: card["settings"][key]
            for key in ("seed", "steps", "batch")
            if key in card.get("settings", ())
        }
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
