"""Two scans to try ``tvf register`` with: the MNI152 template, and one made from it by a known map."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..data.shapes import random_velocity
from ..integrate import flow
from ..paths import must_be_writable
from .applying import apply_image
from .grids import Grid
from .images import Scan
from .maps import Linear, Warp, map_points
from .points import write_points
from .writing import write_image

TISSUES = {1: "grey matter", 2: "white matter", 3: "fluid"}
SPACING = 2.0  # of the fixed scan, mm
SLICES = (1.2, 1.2, 3.0)  # voxels of the moving scan, mm
TURNS = (12.0, -9.0, 17.0)  # of its position, degrees about the axes
SHIFT = (14.0, -22.0, 9.0)  # mm
TILT = (-8.0, 5.0, 3.0)  # of its voxel axes, degrees
SCALE = 1.06
POINTS = 24


def write(out: Path) -> list[str]:
    """Write the two scans, their label maps and points into a new folder.

    The fixed scan is the T1 template of nilearn at 2 mm, without the skull. The moving one shows
    ``template(psi(y))`` at each place y of its world. The map psi takes y to the fixed world by an affine map
    and then the flow of a random velocity. The moving axes are oblique and run to other sides, the slices
    are 3 mm thick, and the intensities are bent, scaled to the range of a scanner and noisy. The points are
    exactly the same places in both scans, because the map is known.

    Parameters
    ----------
    out : a folder that is not there yet, or an empty one.

    Returns
    -------
    Lines that name the files and the command to try.

    Raises
    ------
    ValueError, OSError : the folder holds something, or cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; name a new folder")
    must_be_writable(out.absolute().parent, "name another folder")
    fixed, labels = _fixed()
    psi = _psi(fixed.grid)
    moving, moving_labels = _moving(fixed, labels, psi)
    there, here = _points(labels, psi)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.absolute().parent))
    try:
        write_image(part / "fixed.nii.gz", fixed.values, fixed.grid)
        write_image(part / "fixed_labels.nii.gz", labels.values, labels.grid, labels=True)
        write_image(part / "moving.nii.gz", moving.values, moving.grid)
        write_image(part / "moving_labels.nii.gz", moving_labels.values, moving.grid, labels=True)
        write_points(part / "moving_points.csv", there)
        write_points(part / "fixed_points.csv", here)
        part.chmod(0o755)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sizes = [" x ".join(map(str, scan.grid.shape)) for scan in (fixed, moving)]
    return [
        f"{out}/fixed.nii.gz: MNI152 template, {sizes[0]} voxels of {SPACING:g} mm",
        f"{out}/moving.nii.gz: made from it, {sizes[1]} voxels of {' x '.join(map(str, SLICES))} mm, oblique",
        f"labels of both: {', '.join(f'{k} {name}' for k, name in TISSUES.items())}; {POINTS} points in both",
        f"try: tvf register {out}/moving.nii.gz {out}/fixed.nii.gz -o {out}/result",
    ]


def _fixed() -> tuple[Scan, Scan]:
    """Template and tissues on a grid of 2 mm."""
    from nilearn import datasets  # imported here because the import is slow

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    image, grey, white, brain = (load(resolution=1) for load in loaders)
    t1, grey, white, brain = (
        ndimage.gaussian_filter(np.asarray(one.dataobj, np.float32), 0.7)[::2, ::2, ::2]
        for one in (image, grey, white, brain)
    )
    affine = image.affine @ np.diag([SPACING] * 3 + [1])
    grid = Grid(t1.shape, affine)
    tissues = np.stack([grey, white, 1 - grey - white]).argmax(0) + 1
    labels = np.where(brain > 0.5, tissues, 0).astype(np.int64)
    path = Path("template")
    return Scan(np.where(brain > 0.5, t1, 0).astype(np.float32), grid, path), Scan(labels, grid, path)


def _psi(grid: Grid) -> list[Linear | Warp]:
    """Map from the moving world to the fixed one: the affine map back, and a smooth random flow."""
    coarse = grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    shape = tuple(-(-s // 2) for s in grid.shape)
    velocity = random_velocity(shape, strength=4.0, smoothness=5.0, seed=20220711)
    warp = Warp.from_voxels(flow(velocity), Grid(shape, coarse))
    return [Linear(np.linalg.inv(_position(grid))), warp]


def _position(grid: Grid) -> np.ndarray:
    """Affine map from the fixed world to the moving one: turn and scale about the middle, and shift."""
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    matrix = np.eye(4)
    matrix[:3, :3] = SCALE * _rotation(TURNS)
    matrix[:3, 3] = middle + SHIFT - matrix[:3, :3] @ middle
    return matrix


def _rotation(degrees) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def _moving(fixed: Scan, labels: Scan, psi) -> tuple[Scan, Scan]:
    """The second scan and its labels, on oblique slices whose axes run to the left, the back and the top."""
    middle = _position(fixed.grid) @ [*fixed.grid.world((np.array(fixed.grid.shape) - 1) / 2), 1]
    shape = tuple(int(round(n * SPACING * SCALE / s)) for n, s in zip(fixed.grid.shape, SLICES))
    affine = np.eye(4)
    affine[:3, :3] = _rotation(np.add(TURNS, TILT)) @ np.diag([-1.0, -1.0, 1.0]) * SLICES
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid, rng = Grid(shape, affine), np.random.default_rng(1)
    values = apply_image(fixed, grid, psi)
    noise = 0.02 * rng.standard_normal((2, *shape))
    values = np.hypot(values.clip(0) ** 0.8 + noise[0], noise[1])  # Rician, as in magnitude images
    values = np.round(1200 * values).astype(np.float32)
    kept = apply_image(labels, grid, psi, "nearest")
    return Scan(values, grid, Path("moving")), Scan(kept, grid, Path("moving"))


def _points(labels: Scan, psi) -> tuple[np.ndarray, np.ndarray]:
    """The same places in the moving and in the fixed world, ``(K, 3)`` RAS mm each."""
    rng = np.random.default_rng(2)
    inside = np.argwhere(ndimage.binary_erosion(labels.values > 0, iterations=3))
    here = labels.grid.world(rng.choice(inside, POINTS, replace=False))
    there = map_points([Linear(np.linalg.inv(psi[0].matrix))], here)  # where the affine map alone takes them
    return there, map_points(psi, there)
