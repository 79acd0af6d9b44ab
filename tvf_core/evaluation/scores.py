"""The scores of a registered pair: what is measured, where it is defined, and which images are too small."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from .. import fields, metrics
from ..data import PairData
from ..metrics.feature_similarity import picture
from ..metrics.folding import inner_voxels
from ..metrics.structural_similarity import window_axes
from ..model import Model

# What is measured on every pair, where it is defined: dice and hd95 need labels, fsim is for 2D, errors of
# landmarks need landmarks.
METRICS = {
    "dice": "Dice as Learn2Reg, mean over labels",
    "hd95": "95th percentile of the surface distance as Learn2Reg, voxels, mean over labels",
    "landmark_error": "mean distance of landmarks, pixels or voxels; 90th percentile: landmark_error_p90",
    "landmark_error_percent": "the same in per cent of a distance in the fixed image (faces: of the pupils)",
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
QUANTILES = {  # metric -> a column beside its mean, and which quantile over landmarks or voxels it holds
    "landmark_error": ("landmark_error_p90", 0.9),
    "landmark_error_percent": ("landmark_error_percent_p90", 0.9),
    "inverse_error": ("inverse_error_p999", 0.999),
}
PER_LABEL = {"dice": metrics.dice, "hd95": metrics.hd95}
ALIKE = {"ssim": metrics.ssim, "fsim": metrics.fsim}
OF_THE_MAP = {
    "sdlogj": metrics.sdlogj,
    "sdlogj_textbook": partial(metrics.sdlogj, kind="textbook"),
    "folding_percent": metrics.folding_percent,
    "folding_inner_percent": partial(metrics.folding_percent, convention="inner"),
    "ndv_percent": metrics.ndv_percent,
}


def measurable(data: PairData, wanted=METRICS) -> list[str]:
    """Those of the ``wanted`` metrics that are defined for pairs of ``data``, in the order of ``METRICS``."""
    undefined = {*too_small(data.shape), *(() if data.label_names else PER_LABEL)}
    undefined |= {"fsim"} if data.dim == 3 else set()
    undefined |= {"landmark_error"} if data.landmarks is None else set()
    undefined |= set() if data.landmark_scale else {"landmark_error_percent"}
    return [name for name in METRICS if name in wanted and name not in undefined]


def too_small(shape: tuple[int, ...]) -> dict[str, str]:
    """Why images ``(*S)`` are too small for a metric, by its name."""
    asked = {"ssim": window_axes, "sdlogj": inner_voxels}
    asked |= {"sdlogj_textbook": inner_voxels, "folding_inner_percent": inner_voxels}
    asked |= {"fsim": picture} if len(shape) == 2 else {}
    reasons = {}
    for name in [name for name in METRICS if name in asked]:
        try:
            asked[name](shape)
        except ValueError as error:
            reasons[name] = str(error)
    return reasons


def columns(data: PairData) -> list[str]:
    """Names of the values that :func:`score` gives for a pair of ``data``, which follow its ``seconds``."""
    names = []
    for name in measurable(data):
        names.append(name)
        if name in PER_LABEL:
            names += [f"{name}/{label}" for label in data.label_names.values()]
        if name in QUANTILES:
            names.append(QUANTILES[name][0])
    return names


def score(model: Model, data: PairData, k: int, device="cpu", wanted=METRICS) -> dict[str, float]:
    """Register pair ``k`` and compute metrics (names of ``METRICS``); ``dice``, ``hd95`` also per label.

    Metrics that the images are too small for (:func:`too_small`) are left out. FloatingPointError where the
    method gives no finite map.
    """
    pair = {name: value[None].to(device) for name, value in data[k].items()}
    start = time.perf_counter()
    result = model.register(pair["moving"], pair["fixed"])
    u = result.displacement.cpu()  # waits for a GPU to finish
    row, chosen = {"seconds": time.perf_counter() - start}, measurable(data, wanted)
    if of_labels := [name for name in chosen if name in PER_LABEL]:
        labels = [pair[f"{role}_labels"].cpu() for role in ("moving", "fixed")]
        maps = fields.warp_labels(labels[0], u), labels[1], labels[0]
        for name in of_labels:
            per_label = PER_LABEL[name](*maps, list(data.label_names))
            row[name] = mean_of_known(per_label)
            row |= {
                f"{name}/{label}": float(value) for label, value in zip(data.label_names.values(), per_label)
            }
    row |= _landmark_errors(data, k, u, [name for name in chosen if name.startswith("landmark")])
    if of_images := [name for name in chosen if name in ALIKE]:
        images = fields.warp(pair["moving"].cpu(), u), pair["fixed"].cpu()  # one warp for all methods
        row |= {name: ALIKE[name](*images) for name in of_images}
    row |= {name: OF_THE_MAP[name](u) for name in chosen if name in OF_THE_MAP}
    if "inverse_error" in chosen:
        error = metrics.inverse_consistency_error(u, result.inverse().cpu())
        row |= _mean_and_quantile("inverse_error", error.numpy())
    if "negation_error" in chosen:
        row["negation_error"] = float(metrics.inverse_consistency_error(u, -u).mean())
    return row


def _landmark_errors(data: PairData, k: int, u: torch.Tensor, wanted: list[str]) -> dict[str, float]:
    """The ``wanted`` errors of the landmarks of pair ``k`` under the displacement ``u``."""
    if not wanted:
        return {}
    moving, fixed = data.landmarks_of(k)
    row, error = {}, metrics.landmark_error(u, fixed[None], moving[None]).numpy()
    for name in wanted:
        unit = 1.0
        if name == "landmark_error_percent":
            one, two = data.landmark_scale
            unit = float((fixed[one] - fixed[two]).norm()) / 100
        row |= _mean_and_quantile(name, error / unit)
    return row


def _mean_and_quantile(metric: str, values: np.ndarray) -> dict[str, float]:
    name, quantile = QUANTILES[metric]
    return {metric: float(values.mean()), name: float(np.quantile(values, quantile))}


def mean_of_known(values) -> float:
    """Mean without the values that are NaN; NaN if all are."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
