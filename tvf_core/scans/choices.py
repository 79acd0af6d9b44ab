"""What a user chooses for the registration of two scans, checked before any work."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import torch

from .. import checkpoints
from ..checks import check_number, one_of
from ..methods import METHODS
from ..model import Model
from .inputs import Inputs
from .transforms import read_affine
from .voxels import memory_at_hand

PAIRWISE = "tvf-pairwise"  # the method where none is named and no weights are given
# Spacing in mm of the images that the shipped networks were trained with, by the data set in their card.
TRAINED_AT = {"anatomies": 2.5, "demo_brains": 3.0}
AFFINE = ("auto", "rigid", "none")
LEAST = 8  # voxels that the working grid has along each axis
# Peak memory per voxel of the working grid, as measured with tvf-pairwise; taken for the other methods too.
BYTES_PER_VOXEL = 700


def model(method: str, weights: Path | None, refine: int) -> tuple[Model | None, str, str]:
    """(model, or None for the pairwise method; name; title) of what is to register."""
    check_number(refine, "refine", 0, whole=True)
    if weights is not None:
        if method:
            raise ValueError(f"method {method}: the weights know their method; give one of the two")
        network = checkpoints.load(weights)
        name, title = network.config.method, network.title
        if refine and METHODS[name].field != "time-varying velocity":
            raise ValueError(f"refine: {title} predicts no time-varying velocity that could be refined")
        if refine and network.config.integrator == "released":
            raise ValueError(
                "refine: the rules of the released code are no flow, so there is nothing to refine"
            )
        if refine:
            name, title = f"{name}-refined", f"{title}, refined in {refine} iterations"
        return network, name, title
    if refine:
        raise ValueError("refine: it starts from a network's velocity; give its --weights")
    known = [name for name, entry in METHODS.items() if entry.per_pair]
    one_of(
        method or PAIRWISE, [PAIRWISE, *known], "method without a network (for a network, give its weights)"
    )
    method = method or PAIRWISE
    return None, method, METHODS[method].title if method in METHODS else "TVF, pair by pair"


def given_affine(affine: str) -> np.ndarray:
    """Matrix of an affine file."""
    path = Path(affine)
    if not path.is_file():
        raise FileNotFoundError(
            f"affine: expected one of {', '.join(AFFINE)} or a file, and there is no {affine}"
        )
    chain = read_affine(path)
    matrix = np.eye(len(chain[0].matrix))
    for one in chain:  # the first acts on a point first
        matrix = one.matrix @ matrix
    return matrix


def working_spacing(spacing: float | None, weights: Path | None) -> tuple[float | None, list[str]]:
    """Spacing of the working grid, and a note where the training of the weights decides or disagrees."""
    if spacing is not None:
        check_number(spacing, "spacing", 0, above=True)
    trained = None
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # there may be another file there
        card = json.loads(Path(weights or "").with_suffix(".json").read_text("utf-8"))
        trained = TRAINED_AT.get(card["settings"]["data"])
    if trained is None:
        return spacing, []
    if spacing is None:
        return trained, [
            f"{Path(weights).name} was trained on images of {trained:g} mm, and so has the working grid"
        ]
    note = (
        f"{Path(weights).name} was trained on images of {trained:g} mm; the working grid has {spacing:g} mm"
    )
    return spacing, [note] * (spacing != trained)


def device(name: str) -> torch.device:
    """The device of this name; ValueError if it is none, or not here."""
    try:
        found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"device {name!r}: PyTorch has none of this name here; leave it out, or take cpu"
        ) from None
    return found


def check_size(scans: Inputs, spacing: float | None, title: str, device: torch.device) -> None:
    """Refuse a working grid of which nothing is left, or that does not fit into the memory, before any work.

    The affine map is not known yet; the fixed image's field of view is the largest that the grid can have.
    """
    grid = scans.fixed.grid
    corners = grid.corners()
    extent = corners.max(0) - corners.min(0)
    means = [abs(np.linalg.det(g.affine[:-1, :-1])) ** (1 / g.dim) for g in (grid, scans.moving.grid)]
    spacing = spacing or max(means)
    if spacing > extent.min() / LEAST:
        raise ValueError(
            f"spacing {spacing:g}: the fixed image would have fewer than {LEAST} voxels along an axis of "
            f"{extent.min():.0f}; take --spacing {extent.min() / LEAST:.2g} or less"
        )
    voxels = float(np.prod(np.ceil(extent / spacing)))
    needed, free = voxels * BYTES_PER_VOXEL, memory_at_hand()
    if needed > free and device.type == "cpu":
        fits = spacing * (needed / free) ** (1 / grid.dim)
        raise ValueError(
            f"{title} needs about {needed / 2**30:.0f} GB for a working grid of {voxels / 1e6:.1f} "
            f"million voxels, and {free / 2**30:.0f} GB are free; take --spacing {fits + 0.05:.1f}"
        )
