"""Register two scans: from two files to the maps between them. ``tvf register`` also writes them out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..methods import NetworkConfig
from ..model import Model
from ..pairwise import refinement
from ..registration import Registration
from . import affine as linear
from . import choices, images, inputs, points
from .grids import Grid, resample, working_grid
from .inputs import Inputs
from .maps import Linear, Warp

SHARE = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
MULTIPLE = 8  # voxels along each axis of the working grid: it halves evenly three times
# Axes of the working grid of pictures in the world: rows, then columns, as networks for pictures see them.
PICTURE_AXES = np.array([[0.0, -1.0], [-1.0, 0.0]])


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
    clock, device = _Clock(), choices.device(device)
    model, method, title = choices.model(method, weights, refine)
    given = None if affine in choices.AFFINE else choices.given_affine(affine)
    scans = inputs.read(moving, fixed, **files)
    if model is None and method != choices.PAIRWISE:
        model = Model(NetworkConfig(method, scans.dim))
    dims = {title: model and model.config.dim, affine: None if given is None else len(given) - 1}
    for what, dim in dims.items():
        if dim not in (None, scans.dim):
            raise ValueError(f"{what} is for {dim}D, and these images are {scans.dim}D")
    spacing, trained = choices.working_spacing(spacing, weights)
    choices.check_size(scans, spacing, title, device)
    pair, mask, notes = _tensors(scans, device)
    notes = [*scans.notes, *_outside(scans), *trained, *notes]
    if mask is not None and model is not None and not refine:
        notes.append(f"{title} has no use for the mask; it serves an affine registration only")
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


def _tensors(scans: Inputs, device):
    """Both images with intensities in [0, 1], the mask or None, and notes on the intensities."""
    pair, mask, notes = [], scans.fixed_mask, []
    for scan in (scans.moving, scans.fixed):
        values, note = images.normalise(scan.values)
        pair.append(torch.from_numpy(values)[None, None].to(device))
        notes.append(f"{scan.path.name}: {note}")
    return pair, None if mask is None else torch.from_numpy(mask)[None, None].float().to(device), notes


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


def _outside(scans: Inputs) -> list[str]:
    """A line for points that lie outside their image; ValueError where all do."""
    pairs = (("moving", scans.moving_points, scans.moving), ("fixed", scans.fixed_points, scans.fixed))
    lines = [points.outside(of, scan.grid, f"the {role} image") for role, of, scan in pairs if of is not None]
    return [line for line in lines if line]


def _planned(dim: int, settings: dict) -> int:
    """About how many evaluations the refinement takes at most."""
    settings = refinement.DEFAULTS[dim] | settings
    counts = settings["iterations"]
    counts = [counts] * len(settings["scales"]) if isinstance(counts, int) else counts
    return round(1.25 * (sum(counts) + settings["finish"]))  # a line search takes more than one at times


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
