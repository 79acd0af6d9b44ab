"""The scores of a registered pair: what is measured, where it is defined, and which images are too small."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from .. import fields, metrics
from ..data import PairData
from ..metrics.feature_similarity import picture
from ..metrics.folding import inner_voxels
from ..metrics.structural_similarity import window_axes
from ..model import Model

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
        if name == "inverse_error":
            names.append("inverse_error_p999")
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
    if of_images := [name for name in chosen if name in ALIKE]:
        images = fields.warp(pair["moving"].cpu(), u), pair["fixed"].cpu()  # one warp for all methods
        row |= {name: ALIKE[name](*images) for name in of_images}
    row |= {name: OF_THE_MAP[name](u) for name in chosen if name in OF_THE_MAP}
    if "inverse_error" in chosen:
        error = metrics.inverse_consistency_error(u, result.inverse().cpu()).numpy()
        row |= {"inverse_error": float(error.mean()), "inverse_error_p999": float(np.quantile(error, 0.999))}
    if "negation_error" in chosen:
        row["negation_error"] = float(metrics.inverse_consistency_error(u, -u).mean())
    return row


def mean_of_known(values) -> float:
    """Mean without the values that are NaN; NaN if all are."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan
