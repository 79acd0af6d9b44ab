"""Evaluate a method on a data set: one row per pair, then a summary with its run card."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import checkpoints
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
from .scores import columns, mean_of_known, score, too_small

CODE = code_hash(f"import {__name__}")

# Values of a row that differ from run to run: they stand in the summary only.
APART = ("seconds", "measuring", "peak_mb")
PER_PAIR = 14  # pairs that are enough for a method that takes seconds for each


def enough(method: str, limit: int = 0) -> int:
    """How many pairs the book scores a method on: ``limit`` (0 is all).

    A method that optimises every pair anew is scored on at most ``PER_PAIR``.
    """
    return min(limit or PER_PAIR, PER_PAIR) if METHODS[method].per_pair else limit


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
    (``of_pairs``), mean and standard deviation over pairs (ddof 0) of every metric
    (:mod:`tvf_core.evaluation.scores`), the numbers of the labels, a hash of the list of pairs, the median
    time per pair of registering and of measuring, the run card, and of shipped weights what their own card
    says of the training. Where there are any: ``left_out``, the metrics that the images are too small
    for, with the reasons; and ``not_scored``, for a metric the names of the pairs that have no value of it,
    such as those for which the method gave no finite map. Means and deviations are those of the other pairs.

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
    if small := too_small(pairs.shape):
        tqdm.write(f"{pairs.name}: not measured: {_by_reason(small)}", file=sys.stderr)
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
        summary = _summary(rows, about, too_small(pairs.shape), settings, device)
        write_result(summary, [{key: row[key] for key in row if key not in APART} for row in rows], folder)
    delete([other for other in others if other != file])
    return summary


def _by_reason(left_out: dict[str, str]) -> str:
    """Metrics with the reasons why they are left out, those with the same reason together."""
    reasons = dict.fromkeys(left_out.values())
    return "; ".join(f"{', '.join(m for m, r in left_out.items() if r == why)} ({why})" for why in reasons)


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
        **({"landmark_scale": list(pairs.landmark_scale)} if pairs.landmark_scale else {}),
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
            try:
                scores = {m: float(f"{v:.9g}") for m, v in score(model, pairs, k, device).items()}
            except FloatingPointError as error:  # the other pairs can still be scored
                tqdm.write(f"{pairs.pair_name(k)} is not scored: {error}", file=sys.stderr)
                scores = {"seconds": time.perf_counter() - start} | dict.fromkeys(columns(pairs), math.nan)
            measuring = time.perf_counter() - start - scores["seconds"]
            row = {"pair": pairs.pair_name(k), "person": pairs.person(k), **scores}
            keep(row | {"measuring": measuring, "peak_mb": peak_mb(device)})
            bar.update()


def _summary(rows: list[dict], about: dict, left_out: dict, settings: dict, device: str) -> dict:
    """Means and deviations of the rows, with what the result is of and its run card."""
    apart = {key: [row[key] for row in rows] for key in APART}
    names = [key for key in rows[0] if key not in (*TEXTS, *APART)]
    # A label that is missing in an image has no value by right; a metric of the whole pair should have one.
    unknown = {m: [row["pair"] for row in rows if math.isnan(row[m])] for m in names if "/" not in m}
    not_scored = {m: pairs for m, pairs in unknown.items() if pairs}
    return {
        **about,
        **({"left_out": left_out} if left_out else {}),
        **({"not_scored": not_scored} if not_scored else {}),
        "summary": {m: _over_pairs([row[m] for row in rows]) for m in names},
        "seconds_per_pair": round(float(np.median(apart["seconds"])), 4),
        "measuring_seconds_per_pair": round(float(np.median(apart["measuring"])), 4),
        "card": run_card(settings, sum(apart["seconds"] + apart["measuring"]), device, CODE)
        | {"peak_mb": round(max(apart["peak_mb"]))},
    }


def _over_pairs(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation of the values that are known; both are NaN where none is."""
    with np.errstate(invalid="ignore"):  # the deviation of an infinite HD95 is NaN
        std = float(np.nanstd(values)) if not np.isnan(values).all() else math.nan
    return {"mean": mean_of_known(values), "std": std}


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
