"""The rows of Tables 1 and 2: a name, a network, its losses. One entry per method, nothing else to edit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable

import torch
from torch import nn

from . import fields, losses
from .checks import check_pair, one_of
from .integrate import flow
from .swin import SwinConfig
from .transmorph import TransMorph, TransMorphBackbone
from .tvf import TimeVaryingVelocity

# Network sizes: the published ones, and "demo", small enough to train on two CPU cores.
SIZES = {
    "demo": dict(embed=16, depths=(2, 2, 2, 2), heads=(2, 2, 4, 4), window={2: (4, 4), 3: (4, 4, 4)}),
    "tiny": dict(embed=6, depths=(2, 2, 4, 2), heads=(2, 2, 4, 4)),
    "small": dict(embed=48, depths=(2, 2, 4, 2), heads=(4, 4, 4, 4)),
    "base": dict(embed=96, depths=(2, 2, 4, 2), heads=(4, 4, 8, 8)),
    "large": dict(embed=128, depths=(2, 2, 12, 2), heads=(4, 4, 8, 16)),
    "huge": dict(embed=192, depths=(2, 2, 12, 2), heads=(4, 8, 8, 16)),
}
PUBLISHED_WINDOW = {2: (8, 8), 3: (5, 6, 7)}


@dataclass(frozen=True)
class NetworkConfig:
    """What rebuilds a network: it is stored with the weights."""

    method: str
    dim: int
    size: str = "demo"
    time_steps: int = 8
    integrator: str = "rk4"


@dataclass(frozen=True)
class Method:
    """One registration method.

    Attributes
    ----------
    build : network for a :class:`NetworkConfig`; None for methods without one.
    losses : for 2D and 3D, loss term -> weight. Label terms are skipped on data without labels,
        as the paper does for the faces.
    energy : constants of the LDDMM energy for 2D and 3D, where it is used.
    field, inverse, source : what the network predicts, how its inverse is obtained, where it is from.
    """

    title: str
    build: Callable[[NetworkConfig], nn.Module] | None
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    energy: dict[int, dict[str, float]] = field(default_factory=dict)
    field: str = "displacement"
    inverse: str = "approximate (fixed point)"
    source: str = ""


def swin_config(config: NetworkConfig) -> SwinConfig:
    """Swin encoder of a named size."""
    size = dict(SIZES[one_of(config.size, SIZES, "network size")])
    window = size.pop("window", PUBLISHED_WINDOW)[config.dim]
    return SwinConfig(config.dim, window=window, **size)


def _tm(config: NetworkConfig) -> nn.Module:
    # As published: full-resolution head for the faces (2D), half-resolution head for OASIS (3D).
    return TransMorph(swin_config(config), head="full" if config.dim == 2 else "half")


def _tm_tvf(config: NetworkConfig) -> nn.Module:
    return TimeVaryingVelocity(TransMorphBackbone(swin_config(config)), config.time_steps, config.integrator)


# The penalty is on the final displacement, as in the released code; the paper's eq. 3 writes it for v_1.
_NCC = {2: {"lncc": 1.0, "diffusion": 1.0}, 3: {"lncc": 1.0, "dice": 1.0, "diffusion": 1.0}}

METHODS = {
    "identity": Method("Before registration", None, field="none", inverse="exact"),
    "tm": Method("TM", _tm, _NCC, source="Chen et al. 2022 (Medical Image Analysis 82)"),
    "tm-tvf-lddmm": Method(
        "TM-TVF_LDDMM", _tm_tvf,
        # The paper prints no weight. Its sum over half-grid voxels of |L v/N|^2, beside a mean image term, is
        # our mean times (half-grid voxels / N): about 2e3 for faces of 256^2, 1e5 for OASIS. We keep these
        # two numbers at every size. (The released code's own term is a sum of fourth powers.)
        losses={2: {"mse": 1.0, "lddmm": 2e3}, 3: {"mse": 1.0, "label_mse": 1.0, "lddmm": 1e5}},
        energy={2: dict(alpha=0.01, gamma=0.01, beta=2), 3: dict(alpha=0.01, gamma=0.001, beta=2)},
        field="time-varying velocity", inverse="flow of -v, backwards",
        source="Chen, Frey & Du 2022, eq. 1",
    ),
    "tm-tvf": Method(
        "TM-TVF", _tm_tvf, _NCC, field="time-varying velocity", inverse="flow of -v, backwards",
        source="Chen, Frey & Du 2022, eq. 3",
    ),
}


def objective(method: str, batch: dict, displacement: torch.Tensor, velocity: torch.Tensor | None,
              classes: int = 0) -> dict[str, torch.Tensor]:
    """Weighted loss terms of a method for one batch; their sum is what training minimises."""
    entry, dim = METHODS[method], displacement.shape[1]
    moving, fixed = batch["moving"], batch["fixed"]
    labels = [batch["moving_labels"], displacement, batch["fixed_labels"], classes] if classes else None
    warped = fields.warp(moving, displacement)
    terms = {
        "lncc": lambda: losses.lncc(warped, fixed),
        "mse": lambda: losses.mse(warped, fixed),
        "dice": lambda: losses.soft_dice(*labels),
        "label_mse": lambda: losses.label_mse(*labels),
        "diffusion": lambda: losses.diffusion(displacement),
        "lddmm": lambda: losses.lddmm_energy(velocity, **entry.energy[dim]),
    }
    wanted = {t: w for t, w in entry.losses[dim].items() if labels or t not in ("dice", "label_mse")}
    return {term: weight * terms[term]() for term, weight in wanted.items()}


@dataclass(frozen=True)
class Registration:
    """The outcome of registering one batch of pairs.

    Attributes
    ----------
    displacement : (B, D, *S) voxels; ``warped(x) = moving(x + u(x))``.
    warped : (B, 1, *S) the moving image on the fixed grid.
    velocity : (B, T, D, *S') on the half grid or on the image's, or None.
    """

    displacement: torch.Tensor
    warped: torch.Tensor
    velocity: torch.Tensor | None = None
    integrator: str = "rk4"

    def inverse(self) -> torch.Tensor:
        """Displacement of phi^-1: ``fixed(x + inverse(x))`` looks like ``moving(x)``.

        From the velocity, run backwards, where there is one; else by fixed point iteration.
        """
        if self.velocity is None:
            return fields.invert(self.displacement)
        u = flow(self.velocity, self.integrator, inverse=True)
        return u if u.shape == self.displacement.shape else fields.double(u, self.displacement.shape[2:])


class Model:
    """A method ready to register: ``Model(config).register(moving, fixed)``."""

    def __init__(self, config: NetworkConfig, network: nn.Module | None = None):
        entry = METHODS[one_of(config.method, METHODS, "method")]
        if config.dim not in (2, 3):
            raise ValueError(f"dim: expected 2 or 3, got {config.dim}")
        self.config, self.title = config, entry.title
        self.network = network if network is not None or entry.build is None else entry.build(config)

    def register(self, moving: torch.Tensor, fixed: torch.Tensor) -> Registration:
        """Align ``moving`` to ``fixed``, both ``(B, 1, *S)`` float in [0, 1]."""
        dim = check_pair(moving, fixed, self.config.dim)
        if self.network is None:
            return Registration(moving.new_zeros(moving.shape[0], dim, *moving.shape[2:]), moving)
        self.network.eval()
        with torch.no_grad():
            displacement, velocity = self.network(moving, fixed)
            return Registration(displacement, fields.warp(moving, displacement), velocity, self.config.integrator)
