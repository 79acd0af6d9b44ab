"""Numbers of a registration of two scans: folding, error of the inverse, similarity, Dice, points."""

from __future__ import annotations

import numpy as np
import torch

from .. import metrics
from ..losses import lncc
from . import report
from .applying import apply_image
from .maps import Linear, map_points
from .mutual_information import bin_places, joint_histogram, normalised
from .register import Outcome


def _mutual_information(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    weights = torch.ones_like(moving.view(1, -1))
    return normalised(joint_histogram(bin_places(fixed.flatten()), moving.view(1, -1), weights))


# Name -> of two images (1, 1, *S) in [0, 1]; higher is more alike.
SIMILARITIES = {
    "Local NCC": lambda moving, fixed: -lncc(moving, fixed),
    "Normalised mutual information": _mutual_information,
}


def measure(outcome: Outcome, forward, backward) -> dict:
    """Numbers of a registration: folding, error of the inverse, similarity, Dice and errors of points.

    Parameters
    ----------
    outcome : the registration.
    forward, backward : its chains.

    Returns
    -------
    ``folding`` by convention; ``inverse_error`` (mean, largest); ``similarity``, ``dice`` (per label) and
    ``landmark_error`` (per point) as rows of name, before, after; lengths in mm, of pictures in pixels.
    *Before* is as the files place the images, but for the similarity, which is measured on the working grid
    after the affine map.
    """
    result = outcome.registration
    u = result.displacement.cpu()
    spacing = outcome.grid.spacing[0]
    error = metrics.inverse_consistency_error(u, outcome.inverse.cpu()) * spacing
    numbers = {
        "folding": report.folding_numbers(u),
        "inverse_error": (float(error.mean()), float(error.max())),
        "similarity": [
            (name, float(of(outcome.before, outcome.fixed)), float(of(result.warped, outcome.fixed)))
            for name, of in SIMILARITIES.items()
        ],
    }
    scans = outcome.inputs
    if scans.moving_labels and scans.fixed_labels:
        numbers["dice"] = _dice(scans, forward)
    if scans.moving_points and scans.fixed_points:
        there, here = scans.moving_points.positions, scans.fixed_points.positions
        errors = [np.linalg.norm(there - at, axis=1) for at in (here, map_points(forward, here))]
        numbers["landmark_error"] = [(str(k + 1), *map(float, row)) for k, row in enumerate(zip(*errors))]
    return numbers


def _dice(scans, forward) -> list[tuple[str, float, float]]:
    """Dice of each label on the fixed grid, as the files place the images and after the registration."""
    moving, fixed = scans.moving_labels, scans.fixed_labels
    of_moving, of_fixed = (set(np.unique(labels.values).tolist()) for labels in (moving, fixed))
    names = sorted((of_moving | of_fixed) - {0})
    whole, scores = torch.from_numpy(fixed.values)[None, None], []
    for chain in ([Linear(np.eye(scans.dim + 1))], forward):
        carried = torch.from_numpy(apply_image(moving, fixed.grid, chain, "nearest"))[None, None]
        scores.append(metrics.dice(carried, whole, whole, names))
    in_both = of_moving & of_fixed  # only these have a score
    return [
        (str(name), *(float(s[k]) if name in in_both else float("nan") for s in scores))
        for k, name in enumerate(names)
    ]
