"""Register two scans: from two files to the maps between them. ``tvf register`` also writes them out."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import checkpoints
from ..checks import check_number, one_of
from ..methods import METHODS, NetworkConfig
from ..model import Model
from ..pairwise import refinement
from ..registration import Registration
from . import affine as linear
from . import images, inputs, points
from .grids import Grid, resample, working_grid
from .inputs import Inputs
from .maps import Linear, Warp
from .transforms import read_affine
from .voxels import memory_at_hand

SHARE = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
MULTIPLE = 8  # voxels along each axis of the working grid: it halves evenly three times
# Axes of the working grid of pictures in the world: rows, then columns, as networks for pictures see them.
PICTURE_AXES = np.array([[0.0, -1.0], [-1.0, 0.0]])
PAIRWISE = "tvf-pairwise"  # the method where none is named and no weights are given
LEAST = 8  # voxels that the working grid has along each axis
# Memory of the methods beside the images and maps of the files, as measured.
BYTES_PER_VOXEL = {PAIRWISE: 700, "lddmm": 700, "convexadam": 700, "network": 700}
AFFINE = ("auto", "rigid", "none")
# Spacing in mm of the images that the shipped networks were trained with, by the data set in their card.
TRAINED_AT = {"anatomies": 2.5, "demo_brains": 3.0}


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the registration of two scans gives. All maps take points of the fixed world to the moving one.

    Attributes
    ----------
    inputs : what was read.
    matrix : (D+1, D+1) the affine map, RAS mm; the identity without one.
    grid : the working grid, on which the method saw the images.
    fixed, before : (1, 1, *S) both images on the working grid, in [0, 1], the moving one after the affine.
    registration : of the method, on the working grid, in its voxels.
    inverse : (1, D, *S) displacement of the inverse on the working grid, in its voxels.
    affine : report of the affine registration; None where none was looked for.
    method, title : name of the method, and how the book calls it.
    seconds : duration of each stage.
    notes : what was decided on the way, a line each.
    """

    inputs: Inputs
    matrix: np.ndarray
    grid: Grid
    fixed: torch.Tensor
    before: torch.Tensor
    registration: Registration
    inverse: torch.Tensor
    affine: linear.AffineReport | None
    method: str
    title: str
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def warp(self, inverse: bool = False) -> Warp:
        """The map without its affine part, on the grid of the fixed image, in mm; or its inverse."""
        u = self.inverse if inverse else self.registration.displacement
        return Warp.from_voxels(u, self.grid).on(self.inputs.fixed.grid)

    def forward(self) -> list[Linear | Warp]:
        """Chain, in the order of ANTs, that brings images to the fixed one, and points from it."""
        return [self.warp(), Linear(self.matrix)]

    def backward(self) -> list[Linear | Warp]:
        """Chain, in the order of ANTs, that brings images to the moving one, and points from it."""
        return [Linear(self.matrix).inverse(), self.warp(inverse=True)]


def register(
    moving: Path,
    fixed: Path,
    *,
    method: str = "",
    weights: Path | None = None,
    affine: str = "auto",
    spacing: float | None = None,
    refine: int = 0,
    device: str = "",
    progress: bool = True,
    **files,
) -> Outcome:
    """Register two scans, whatever their spacing, orientation, position and range of intensities.

    The intensities are scaled to [0, 1] (:func:`tvf_core.scans.images.normalise`). An affine registration
    comes first (:mod:`tvf_core.scans.affine`). Then both images are brought to one working grid: the box in
    the world that both show, with one spacing along all axes. There the method registers them.

    Parameters
    ----------
    moving, fixed : NIfTI files in 3D or 2D, or PNG or JPEG files.
    method : name of a method that needs no training: ``tvf-pairwise`` (the default;
        :mod:`tvf_core.pairwise.refinement`), ``lddmm`` or, in 3D, ``convexadam``. Not with ``weights``.
    weights : file of a network, of this package or a released checkpoint. The network has to know such
        images: the same kind of scan at about the same spacing.
    affine : ``auto`` finds an affine map, ``rigid`` only turns and shifts, ``none`` trusts the positions in
        the files; or the path of an affine file of ITK or ANTs, which takes fixed points to moving ones.
    spacing : of the working grid in mm (of pictures: in pixels); default the coarser of the two images', with
        shipped weights that of their training.
    refine : iterations on the finest grid by which the velocity of a network is refined for this pair; 0 is
        none.
    device : of PyTorch; default the GPU if there is one, else the processor.
    progress : whether bars on stderr show the progress.
    files : label maps, points and a mask: see :func:`tvf_core.scans.inputs.read`.

    Returns
    -------
    Outcome : the maps and what they were computed from. :func:`tvf_core.scans.outputs.write` writes it.

    Raises
    ------
    ValueError, OSError : in one line; all input is checked before the work starts.
    """
    clock, device = _Clock(), _device(device)
    model, method, title = _model(method, weights, refine)
    if spacing is not None:
        check_number(spacing, "spacing", 0, above=True)
    given = None if affine in AFFINE else _given(affine)
    scans = inputs.read(moving, fixed, **files)
    if model is None and method != PAIRWISE:
        model = Model(NetworkConfig(method, scans.dim))
    dims = {title: model and model.config.dim, affine: None if given is None else len(given) - 1}
    for what, dim in dims.items():
        if dim not in (None, scans.dim):
            raise ValueError(f"{what} is for {dim}D, and these images are {scans.dim}D")
    spacing, trained = _spacing(spacing, weights)
    notes, pair = [*scans.notes, *_outside(scans), *trained], []
    for scan in (scans.moving, scans.fixed):
        values, note = images.normalise(scan.values)
        pair.append(torch.from_numpy(values)[None, None].to(device))
        notes.append(f"{scan.path.name}: {note}")
    mask = scans.fixed_mask
    mask = None if mask is None else torch.from_numpy(mask)[None, None].float().to(device)
    if mask is not None and model is not None and not refine:
        notes.append(f"{title} has no use for the mask; it serves the affine registration, if there is one")
    _check_size(scans, spacing, method, title, device)
    clock("reading")

    matrix, report = given, None
    if affine in ("auto", "rigid"):
        matrix, report = _affine(affine, pair, scans, mask, progress)
    matrix = np.eye(scans.dim + 1) if matrix is None else matrix
    clock("affine registration")

    axes = PICTURE_AXES if scans.fixed.picture else None
    grid = working_grid(scans.fixed.grid, scans.moving.grid, matrix, spacing, MULTIPLE, axes)
    before = resample(pair[0], scans.moving.grid, grid, matrix).clamp(0, 1)
    target = resample(pair[1], scans.fixed.grid, grid).clamp(0, 1)
    mask = None if mask is None else resample(mask, scans.fixed.grid, grid) > 0.01  # thin parts stay
    for role, image in (("moving", before), ("fixed", target)):
        if image.min() == image.max():
            raise ValueError(f"{role}: the part that both images show has one value everywhere")
    clock("resampling")

    result = _solve(model, before, target, mask, refine, title, progress)
    with torch.no_grad():
        inverse = result.inverse()
    clock("registration")
    found = (scans, matrix, grid, target, before, result, inverse, report, method, title)
    return Outcome(*found, clock.seconds, tuple(notes))


def _affine(kind: str, pair, scans: Inputs, mask, progress: bool) -> tuple[np.ndarray, linear.AffineReport]:
    """Matrix and report of the affine registration of ``pair`` (moving, fixed)."""
    grids = scans.moving.grid, scans.fixed.grid
    with _Bar(desc="affine", total=1.0, bar_format=SHARE, disable=not progress) as bar:
        return linear.register(
            *(*pair, *grids), kind="rigid" if kind == "rigid" else "affine", mask=mask, progress=bar.reach
        )


def _solve(model: Model | None, moving, fixed, mask, refine: int, title: str, progress: bool) -> Registration:
    """What the model, or without one the pairwise method, makes of the images on the working grid."""
    result, settings = None, {}
    if model is not None:
        if model.network is not None:
            model.network.to(fixed.device)
        with _Bar(desc=title, total=1, bar_format=SHARE, disable=not progress) as bar:
            result, settings = model.register(moving, fixed), {"scales": (2,), "iterations": refine}
            bar.update(1)
        if model.network is not None and model.config.integrator == "released":
            # What the released code calls the inverse is none, and its warp reads elsewhere than u says.
            where = model.network.convention.sampled(result.displacement)
            result = Registration(where, result.warped)
    if model is None or refine:
        start = result.velocity if result else None
        steps = _planned(fixed.dim() - 2, settings)
        with _Bar(desc=title, total=steps, unit="step", disable=not progress) as bar:
            result, _ = refinement.refine(moving, fixed, start, mask=mask, progress=bar.count, **settings)
            bar.total = bar.n
    return result


def _model(method: str, weights: Path | None, refine: int) -> tuple[Model | None, str, str]:
    """(model, or None for the pairwise method; name; title) of what is to register."""
    check_number(refine, "refine", 0, whole=True)
    if weights is not None:
        if method:
            raise ValueError(f"method {method}: the weights know their method; give one of the two")
        model = checkpoints.load(weights)
        name, title = model.config.method, model.title
        if refine and METHODS[name].field != "time-varying velocity":
            raise ValueError(f"refine: {title} predicts no time-varying velocity that could be refined")
        if refine and model.config.integrator == "released":
            raise ValueError(
                "refine: the rules of the released code are no flow, so there is nothing to refine"
            )
        if refine:
            name, title = f"{name}-refined", f"{title}, refined in {refine} iterations"
        return model, name, title
    if refine:
        raise ValueError("refine: it starts from a network's velocity; give its --weights")
    known = [name for name, entry in METHODS.items() if entry.per_pair]
    one_of(
        method or PAIRWISE, [PAIRWISE, *known], "method without a network (for a network, give its weights)"
    )
    method = method or PAIRWISE
    return None, method, METHODS[method].title if method in METHODS else "TVF, pair by pair"


def _spacing(spacing: float | None, weights: Path | None) -> tuple[float | None, list[str]]:
    """Spacing of the working grid, and a note where the training of the weights decides or disagrees."""
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


def _outside(scans: Inputs) -> list[str]:
    """A line for points that lie outside their image; ValueError where all do."""
    pairs = (("moving", scans.moving_points, scans.moving), ("fixed", scans.fixed_points, scans.fixed))
    lines = [points.outside(of, scan.grid, f"the {role} image") for role, of, scan in pairs if of is not None]
    return [line for line in lines if line]


def _device(name: str) -> torch.device:
    """The device of this name; ValueError if it is none, or not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"device {name!r}: PyTorch has none of this name here; leave it out, or take cpu"
        ) from None
    return device


def _check_size(scans: Inputs, spacing: float | None, method: str, title: str, device) -> None:
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
    needed, free = voxels * BYTES_PER_VOXEL.get(method, BYTES_PER_VOXEL["network"]), memory_at_hand()
    if needed > free and device.type == "cpu":
        fits = spacing * (needed / free) ** (1 / grid.dim)
        raise ValueError(
            f"{title} needs about {needed / 2**30:.0f} GB for a working grid of {voxels / 1e6:.1f} "
            f"million voxels, and {free / 2**30:.0f} GB are free; take --spacing {fits + 0.05:.1f}"
        )


def _given(affine: str) -> np.ndarray:
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


def _planned(dim: int, settings: dict) -> int:
    """About how many evaluations the refinement takes at most."""
    settings = refinement.DEFAULTS[dim] | settings
    counts = settings["iterations"]
    counts = [counts] * len(settings["scales"]) if isinstance(counts, int) else counts
    return round(1.25 * sum(counts))  # a line search takes more than one evaluation at times


class _Clock:
    """Seconds of each stage, by its name."""

    def __init__(self):
        self.seconds, self._before = {}, time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._before = now - self._before, now


class _Bar(tqdm):
    """Progress bar of one stage."""

    def reach(self, stage: str, share: float) -> None:
        """Show a share of the whole."""
        self.set_postfix_str(stage, refresh=False)
        self.update(share - self.n)

    def count(self, row: dict) -> None:
        """Count one evaluation and show its numbers."""
        self.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k != "pair"}, refresh=False)
        self.total = max(self.total, self.n + 1)
        self.update(1)
