"""The rows of Tables 1 and 2: a name, a network, its losses. One entry per method, nothing else to edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from . import fields, losses
from .baselines.voxelmorph import VoxelMorphBackbone
from .checks import check_pair, check_points, one_of
from .integrate import INTEGRATORS, check_integration, flow, trajectory, transport
from .swin import SwinConfig
from .transmorph import RELEASED, STANDARD, TransMorph, TransMorphBackbone
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
    """What rebuilds a network: it is stored with the weights.

    Attributes
    ----------
    method : a name of ``METHODS``.
    dim : 2 or 3.
    size : a name of ``SIZES``, or the encoder's embed, depths, heads and window as a dict; the VoxelMorph
        U-Net of ``vm-tvf`` has one size only.
    time_steps : N of the TVF methods.
    integrator : of the TVF methods; default the method's own. ``released`` makes any network follow the
        conventions of the released code, as published weights need.
    head : ``full`` or ``half`` resolution of TM; default as published: full for the faces, half for OASIS.
    """

    method: str
    dim: int
    size: str | dict = "demo"
    time_steps: int = 8
    integrator: str = ""
    head: str = ""

    def __post_init__(self):
        if self.dim not in (2, 3):
            raise ValueError(f"dim: expected 2 or 3, got {self.dim}")
        entry = METHODS[one_of(self.method, METHODS, "method")]
        if isinstance(self.size, str):
            one_of(self.size, SIZES, "network size")
        if self.time_steps < 1:
            raise ValueError(f"time_steps: expected at least 1, got {self.time_steps}")
        object.__setattr__(self, "integrator", one_of(self.integrator or entry.integrator, INTEGRATORS, "integrator"))
        object.__setattr__(self, "head", one_of(self.head or ("full" if self.dim == 2 else "half"), ("full", "half"), "head"))


@dataclass(frozen=True)
class Method:
    """One registration method.

    Attributes
    ----------
    build : network for a :class:`NetworkConfig`; None for methods without one. Called with (moving, fixed) it
        gives (displacement, velocity or None), and it has a ``convention`` (:mod:`tvf_core.transmorph`).
    losses : for 2D and 3D, loss term -> weight. Label terms are skipped on data without labels,
        as the paper does for the faces.
    energy : constants of the LDDMM energy for 2D and 3D, where it is used.
    field, inverse, source : what the network predicts, how its inverse is obtained, where it is from.
    integrator : that the network is trained with, unless its configuration says otherwise.
    """

    title: str
    build: Callable[[NetworkConfig], nn.Module] | None
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    energy: dict[int, dict[str, float]] = field(default_factory=dict)
    field: str = "displacement"
    inverse: str = "approximate (fixed point)"
    integrator: str = "rk4"
    source: str = ""


def swin_config(config: NetworkConfig) -> SwinConfig:
    """Swin encoder of a named or written-out size."""
    if isinstance(config.size, dict):
        return SwinConfig(config.dim, config.size["embed"], *(tuple(config.size[k]) for k in ("depths", "heads", "window")))
    size = dict(SIZES[config.size])
    window = size.pop("window", PUBLISHED_WINDOW)[config.dim]
    return SwinConfig(config.dim, window=window, **size)


def _tm(config: NetworkConfig) -> nn.Module:
    return TransMorph(swin_config(config), config.head, RELEASED if config.integrator == "released" else STANDARD)


def _tm_tvf(config: NetworkConfig) -> nn.Module:
    return TimeVaryingVelocity(TransMorphBackbone(swin_config(config)), config.time_steps, config.integrator)


def _vm_tvf(config: NetworkConfig) -> nn.Module:
    return TimeVaryingVelocity(VoxelMorphBackbone(config.dim), config.time_steps, config.integrator)


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
    "tm-tvf-released": Method(
        "TM-TVF, released rule", _tm_tvf, _NCC, field="time-varying velocity", inverse="sum of -v (none)",
        integrator="released", source="Chen, Frey & Du 2022, as their code integrates",
    ),
    "vm-tvf": Method(
        "VM-TVF", _vm_tvf, _NCC, field="time-varying velocity", inverse="flow of -v, backwards",
        source="our head on the U-Net of Balakrishnan et al. 2019",
    ),
}


def objective(method: str, batch: dict, displacement: torch.Tensor, velocity: torch.Tensor | None,
              classes: int = 0, sampled: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Weighted loss terms of a method for one batch; their sum is what training minimises.

    ``sampled`` is the displacement at which images and labels are read, if it is another one
    (:class:`tvf_core.transmorph.Convention`).
    """
    entry, dim = METHODS[method], displacement.shape[1]
    moving, fixed = batch["moving"], batch["fixed"]
    sampled = displacement if sampled is None else sampled
    labels = [batch["moving_labels"], sampled, batch["fixed_labels"], classes] if classes else None
    warped = fields.warp(moving, sampled)
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
    displacement : (B, D, *S) voxels. phi = Id + u takes points of the fixed image to the moving one, and so
        pulls the moving image back.
    warped : (B, 1, *S) the moving image on the fixed grid, ``moving(x + u(x))``; for networks that follow
        the released code as *that code* warps it, mismatched at the border.
    velocity : (B, T, D, *S') on the half grid or on the image's, or None.
    integrator, substeps : that made the displacement of the velocity.
    """

    displacement: torch.Tensor
    warped: torch.Tensor
    velocity: torch.Tensor | None = None
    integrator: str = "rk4"
    substeps: int = 1

    def inverse(self) -> torch.Tensor:
        """Displacement of phi^-1: ``fixed(x + inverse(x))`` looks like ``moving(x)``.

        From the velocity, run backwards, where there is one; else by fixed point iteration. With the
        ``released`` integrator it is what that code calls the inverse and is none; there
        ``fields.invert(displacement)`` inverts.
        """
        if self.velocity is None:
            return fields.invert(self.displacement)
        return flow(self.velocity, self.integrator, self.substeps, 1, 0, self.displacement.shape[2:])

    def trajectory(self, times=None) -> torch.Tensor:
        """phi_t at rising times, the first of them 0 (default 0, 1/T, ..., 1): displacements ``(B, len(times), D, *S)``."""
        if self.velocity is None:
            raise ValueError("this method predicts a displacement, not a velocity: there is no trajectory")
        return trajectory(self.velocity, times, self.integrator, self.substeps, self.displacement.shape[2:])

    def transport(self, what: torch.Tensor, kind: str = "image", to: str = "fixed") -> torch.Tensor:
        """Carry an image, a label map or points from the moving to the fixed image's space, or back.

        Parameters
        ----------
        what : image (B, C, *S) float, labels (B, 1, *S) integer, or points (B, K, D) in voxels.
        kind : ``image`` (linear interpolation), ``labels`` (nearest) or ``points``.
        to : ``fixed``: what lies on the moving image; ``moving``: what lies on the fixed one.

        Notes
        -----
        Images are pulled back and points pushed forward: to the fixed space images take phi, points
        phi^-1. Points follow the velocity itself where there is one: no map is interpolated. (With the
        ``released`` integrator there is no flow: phi^-1 comes from a fixed point iteration.)
        """
        if not isinstance(what, torch.Tensor):
            raise TypeError(f"what to carry: expected a torch.Tensor, got {type(what).__name__}")
        one_of(kind, ("image", "labels", "points"), "kind")
        to_fixed = one_of(to, ("fixed", "moving"), "target") == "fixed"
        flows = self.velocity is not None and self.integrator != "released"
        if kind == "points" and flows:
            check_points(what, self.displacement)
            moved = transport(self.velocity, what.movedim(1, -1), self.integrator, self.substeps,
                              *((1, 0) if to_fixed else (0, 1)), self.displacement.shape[2:])
            return moved.movedim(-1, 1)
        if (kind == "points") == to_fixed:
            u = self.inverse() if flows else fields.invert(self.displacement)
        else:
            u = self.displacement
        if kind == "image" and not what.is_floating_point():
            raise TypeError(f"image: expected floating-point intensities, got {what.dtype}; for label maps say kind='labels'")
        return {"image": fields.warp, "labels": fields.warp_labels, "points": fields.transform_points}[kind](what, u)


class Model:
    """A method ready to register: ``Model(config).register(moving, fixed)``."""

    def __init__(self, config: NetworkConfig, network: nn.Module | None = None):
        entry = METHODS[config.method]
        self.config, self.title = config, entry.title
        if config.integrator == "released" != entry.integrator:
            self.title += " (released rules)"
        self.network = network if network is not None or entry.build is None else entry.build(config)

    def register(self, moving: torch.Tensor, fixed: torch.Tensor, integrator: str = "", substeps: int = 1) -> Registration:
        """Align ``moving`` to ``fixed``, both ``(B, 1, *S)`` float in [0, 1].

        A method with a velocity gives the flow of it on the image grid; ``integrator`` (default the one of
        training) and ``substeps`` in each of the N intervals may be chosen anew without retraining.
        """
        dim = check_pair(moving, fixed, self.config.dim)
        if METHODS[self.config.method].field != "time-varying velocity":
            if integrator or substeps != 1:
                raise ValueError(f"{self.title} predicts no velocity: it has no integrator and no sub-steps to choose")
        integrator = integrator or self.config.integrator
        check_integration(integrator, substeps)
        if self.network is None:
            return Registration(moving.new_zeros(moving.shape[0], dim, *moving.shape[2:]), moving)
        self.network.eval()
        moving, fixed = (image.to(next(self.network.parameters()).dtype) for image in (moving, fixed))
        with torch.no_grad():
            displacement, velocity = self.network(moving, fixed)
            if velocity is None:
                return Registration(displacement, self.network.convention.warp(moving, displacement))
            displacement = flow(velocity, integrator, substeps, shape=moving.shape[2:])
            convention = RELEASED if integrator == "released" else STANDARD
            return Registration(displacement, convention.warp(moving, displacement), velocity, integrator, substeps)
