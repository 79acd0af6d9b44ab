"""A registration in one file, ``velocity.safetensors``: v_t, its grid, and the affine map after it.

From the velocity come the map and, with time running backwards, its inverse
(:func:`tvf_core.integrate.flow`), on any grid.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..fields import invert
from ..integrate import check_integration, flow
from ..paths import write_then_rename
from .grids import Grid, check_matrix
from .maps import Linear, Warp

FORMAT = 1  # number of the form of the file


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """A velocity on a working grid and an affine map: ``phi(x) = matrix (flow of v)(x)``, RAS, mm.

    Parameters
    ----------
    velocity : (1, T, D, *S') voxels per unit time, on ``grid`` or on the grid that halves it.
    grid : the working grid, in the fixed image's world.
    matrix : (D+1, D+1) affine map, fixed world to moving world.
    integrator, substeps : as for :func:`tvf_core.integrate.flow`. With ``released``, which has no
        inverse, the inverse comes from a fixed-point iteration.
    versions : what made it, for the reader; such as ``{"tvf_core": "0.1.0", "method": "tm-tvf"}``.
    """

    velocity: torch.Tensor
    grid: Grid
    matrix: np.ndarray
    integrator: str = "rk4"
    substeps: int = 1
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        dim, v = self.grid.dim, self.velocity
        half = tuple(-(-s // 2) for s in self.grid.shape)
        if v.dim() != dim + 3 or v.shape[0] != 1 or v.shape[1] < 1 or v.shape[2] != dim:
            raise ValueError(f"velocity: expected (1, T, {dim}, *space), got shape {tuple(v.shape)}")
        if tuple(v.shape[3:]) not in (self.grid.shape, half):
            raise ValueError(
                f"velocity: its space {tuple(v.shape[3:])} is neither that of its grid, {self.grid.shape}, "
                "nor half of it"
            )
        if not v.is_floating_point() or not v.isfinite().all():
            raise ValueError("velocity: expected finite floating-point numbers")
        check_matrix(self.matrix, dim, "affine")
        check_integration(self.integrator, self.substeps)

    def warp(self, inverse: bool = False) -> Warp:
        """The map of the velocity without the affine, or its inverse, on the working grid.

        Outside that grid it keeps the displacement of the nearest border. ``warp().on(fixed_grid)`` is
        ``1Warp``, and ``warp(inverse=True).on(fixed_grid)`` is ``1InverseWarp``.
        """
        with torch.no_grad():
            if inverse and self.integrator == "released":
                field = invert(flow(self.velocity, self.integrator, self.substeps, shape=self.grid.shape))
            else:
                times = (1, 0) if inverse else (0, 1)
                field = flow(self.velocity, self.integrator, self.substeps, *times, self.grid.shape)
        return Warp.from_voxels(field, self.grid)

    def forward(self) -> list[Linear | Warp]:
        """Chain that pulls the moving image onto the fixed grid (fixed points to the moving image)."""
        return [self.warp(), Linear(self.matrix)]

    def backward(self) -> list[Linear | Warp]:
        """Chain that pulls the fixed image onto the moving grid (moving points to the fixed image)."""
        return [Linear(self.matrix).inverse(), self.warp(inverse=True)]


def write_flow(path: Path, result: Flow) -> None:
    """Write a registration to ``velocity.safetensors``, atomically; OSError if it cannot be written."""
    tensors = {
        "velocity": result.velocity.detach().float().cpu().contiguous(),
        "grid_shape": torch.tensor(result.grid.shape),
        "grid_affine": torch.tensor(result.grid.affine.tolist(), dtype=torch.float64),
        "affine": torch.tensor(np.asarray(result.matrix).tolist(), dtype=torch.float64),
    }
    facts = {
        "format": FORMAT,
        "world": "RAS mm; affine: fixed world to moving world, after the flow of the velocity",
        "integrator": result.integrator,
        "substeps": result.substeps,
        "versions": result.versions,
    }
    with write_then_rename(Path(path)) as temporary:
        try:
            save_file(tensors, temporary, metadata={"flow": json.dumps(facts)})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {' '.join(str(error).split())}") from None
        temporary.chmod(0o644)  # safetensors makes files that only the owner can read


def read_flow(path: Path) -> Flow:
    """Read a file of :func:`write_flow`; FileNotFoundError, or ValueError in one line if it is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            facts = (file.metadata() or {}).get("flow")
            if facts is None:
                raise ValueError("it has no velocity of this package (files of weights have none)")
            facts = json.loads(facts)
            if facts["format"] != FORMAT:
                raise ValueError(f"its form has number {facts['format']}, this version reads {FORMAT}")
            shape, affine = file.get_tensor("grid_shape"), file.get_tensor("grid_affine")
            return Flow(
                file.get_tensor("velocity"),
                Grid(tuple(shape.tolist()), affine.numpy()),
                file.get_tensor("affine").numpy(),
                facts["integrator"],
                facts["substeps"],
                dict(facts["versions"]),
            )
    except Exception as error:  # a file can be wrong in many ways
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a velocity that can be used: {reason}") from None
