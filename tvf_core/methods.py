"""The methods, which are the rows of Tables 1 and 2: name, network, losses, and the source of each number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from .checks import one_of
from .fields import at_least_float32
from .integrate import STEPS
from .losses.objectives import LABEL_TERMS, CycleObjective, DistributionObjective, Objective, PyramidObjective
from .networks.cyclemorph import CycleMorph
from .networks.lapirn import START_CHANNELS, LapIRN
from .networks.layers import RELEASED, STANDARD
from .networks.swin import SwinConfig
from .networks.time_varying import TimeVaryingVelocity
from .networks.transmorph import TransMorph, TransMorphBackbone
from .networks.voxelmorph import VoxelMorph, VoxelMorphBackbone, VoxelMorphDiff
from .pairwise import convexadam, lddmm
from .registration import Registration
from .sources import (
    ALONE,
    EQ2,
    EQ3,
    FLOW_BACK,
    FROZEN,
    LDDMM,
    LDDMM_WEIGHT,
    NCC,
    NEUTRAL,
    NO_FACES,
    SUM_BESIDE_MEAN,
    Sourced,
    everywhere,
    pyramid,
)

# Sizes of the networks with a transformer. "demo" is ours, small enough to train on two CPU cores; the others
# are the published ones.
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

    An option that the method does not have is refused if it is given, and stays empty otherwise. An option
    that the method has takes the method's own value if none is given. :meth:`fitting` leaves out the options
    that do not fit.

    Attributes
    ----------
    method : a name of ``METHODS``.
    dim : 2 or 3.
    size : a name of ``SIZES``; or a dict with the transformer's embed, depths, heads and window, or with
        LapIRN's start. Default ``demo``. The VoxelMorph networks and CycleMorph have one size only.
    time_steps : N of the TVF methods; default 8.
    integrator : of methods that predict a velocity; default the method's own. ``released`` makes TM, TM-TVF,
        VM-TVF and VM-diff follow the conventions of the released code, as published weights need.
    head : ``full`` or ``half`` resolution of TM; default as published: full for the faces, half for OASIS.
    """

    method: str
    dim: int
    size: str | dict = ""
    time_steps: int | None = None
    integrator: str = ""
    head: str = ""

    def __post_init__(self):
        if self.dim not in (2, 3):
            raise ValueError(f"dim: expected 2 or 3, got {self.dim}")
        entry = METHODS[one_of(self.method, METHODS, "method")]
        if self.dim not in entry.dims:
            raise ValueError(f"{self.method} works in {entry.dims[0]}D only, not in {self.dim}D")
        own = entry.options(self.dim)
        for option in ("size", "time_steps", "integrator", "head"):
            value = getattr(self, option)
            if value in ("", None):
                object.__setattr__(self, option, own.get(option, value))
            elif option not in own:
                raise ValueError(f"{self.method} {_WITHOUT[option]}: {option} {value!r} would have no effect")
        if isinstance(self.size, str) and self.size:
            one_of(self.size, SIZES, "network size")
        if self.time_steps is not None and self.time_steps < 1:
            raise ValueError(f"time_steps: expected at least 1, got {self.time_steps}")
        if self.integrator:
            one_of(self.integrator, entry.integrators, f"integrator of {self.method}")
        if self.head:
            one_of(self.head, ("full", "half"), "head")

    @classmethod
    def fitting(cls, method: str, dim: int, **options) -> tuple[NetworkConfig, dict]:
        """The configuration with those of the options that the method has, and a dict of the others.

        It serves profiles, which name options for many methods at once, and weights files, which once stored
        every option whether the method has it or not.
        """
        entry = METHODS[one_of(method, METHODS, "method")]
        own, left = entry.options(dim), {}
        for option, value in list(options.items()):
            fits = option != "integrator" or value in entry.integrators
            if value not in ("", None) and not (option in own and fits):
                left[option] = options.pop(option)
        return cls(method, dim, **options), left

    def stored(self) -> dict:
        """Method, dimension and the options that the method has, as they stand in files."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


_WITHOUT = {
    "size": "has a network of one size",
    "time_steps": "has no velocity that changes in time",
    "integrator": "has no integrator to choose",
    "head": "has no choice of resolution",
}


@dataclass(frozen=True)
class Method:
    """One registration method, by a network or pair by pair.

    Attributes
    ----------
    build : network for a :class:`NetworkConfig`. Called with (moving, fixed), the network returns
        (displacement, velocity or None); its ``convention`` is one of :mod:`tvf_core.networks.layers`.
    solve : ``(moving, fixed, **constants) -> Registration`` for methods without a network.
    check : of such a method: raises ValueError for a value of a constant that it cannot take.
    losses : for 2D and 3D, loss term -> weight and its source. Label terms are skipped on data without
        labels, as the paper does for the faces.
    constants : for 2D and 3D, other numbers of the loss, or what a method without a network can be told.
    objective : how the terms come about (:mod:`tvf_core.losses.objectives`).
    field, inverse : what is predicted; how good its inverse is, and how it is obtained.
    sizes, heads : whether its network comes in several sizes; whether its resolution can be chosen.
    integrator : that the network is trained with, unless its configuration says otherwise.
    released : whether its network can also follow the rules of released code (integrator ``released``).
    dims : 2, 3 or both.
    source, code : where the method is from; whose implementation this is.
    """

    title: str
    build: Callable[[NetworkConfig], nn.Module] | None = None
    solve: Callable[..., Registration] | None = None
    check: Callable[[dict, int], None] | None = None
    losses: dict[int, dict[str, Sourced]] = field(default_factory=dict)
    constants: dict[int, dict[str, Sourced]] = field(default_factory=dict)
    objective: type[Objective] = field(
        default_factory=lambda: Objective
    )  # a plain default would be documented as a class of its own
    field: str = "displacement"
    inverse: str = "approximate: fixed point"
    sizes: bool = False
    heads: bool = False
    integrator: str = "rk4"
    released: bool = False
    dims: tuple[int, ...] = (2, 3)
    source: str = ""
    code: str = "here"

    @property
    def has_velocity(self) -> bool:
        return self.field.endswith("velocity")

    @property
    def integrators(self) -> tuple[str, ...]:
        """What a configuration of its network may name as integrator; nothing where it has none."""
        if self.build is None:
            return ()
        own = (
            () if not self.has_velocity else tuple(STEPS) if self.integrator in STEPS else (self.integrator,)
        )
        return tuple(dict.fromkeys((*own, *["released"] * self.released)))

    def options(self, dim: int) -> dict:
        """The options of :class:`NetworkConfig` that this method's network has, with their default values."""
        found = {"size": "demo"} if self.sizes else {}
        if self.build and self.field == "time-varying velocity":
            found["time_steps"] = 8
        if self.integrators:
            found["integrator"] = self.integrator if self.has_velocity else ""
        if self.heads:
            found["head"] = "full" if dim == 2 else "half"
        return found

    @property
    def per_pair(self) -> bool:
        """Whether every pair is optimised anew, which takes seconds."""
        return self.solve is not None and self.field != "none"

    @property
    def uses_labels(self) -> bool:
        """Whether training in 3D learns from label maps."""
        return any(term in LABEL_TERMS for term in self.losses.get(3, ()))

    def weights(self, dim: int) -> dict[str, float]:
        return {term: number.value for term, number in self.losses[dim].items()}


def _identity(moving: torch.Tensor, fixed: torch.Tensor) -> Registration:
    shape = moving.shape[0], moving.dim() - 2, *moving.shape[2:]
    return Registration(moving.new_zeros(shape, dtype=at_least_float32(moving)), moving)


def swin_config(config: NetworkConfig) -> SwinConfig:
    """Swin encoder of a named or written-out size."""
    if isinstance(config.size, dict):
        return SwinConfig(
            config.dim, config.size["embed"], *(tuple(config.size[k]) for k in ("depths", "heads", "window"))
        )
    size = dict(SIZES[config.size])
    window = size.pop("window", PUBLISHED_WINDOW)[config.dim]
    return SwinConfig(config.dim, window=window, **size)


def _tm(config: NetworkConfig) -> nn.Module:
    return TransMorph(
        swin_config(config), config.head, RELEASED if config.integrator == "released" else STANDARD
    )


def _tm_tvf(config: NetworkConfig) -> nn.Module:
    return TimeVaryingVelocity(TransMorphBackbone(swin_config(config)), config.time_steps, config.integrator)


def _lapirn(config: NetworkConfig) -> nn.Module:
    if isinstance(config.size, dict) and config.size.keys() != {"start"}:
        raise ValueError(
            f"network size of LapIRN: expected a name or {{'start': channels}}, got {config.size}"
        )
    start = config.size["start"] if isinstance(config.size, dict) else START_CHANNELS[config.size]
    return LapIRN(
        config.dim,
        start,
        diffeomorphic=config.method == "lapirn-diff",
        conditional=config.method == "clapirn",
    )


def _vm_diff(config: NetworkConfig) -> nn.Module:
    return VoxelMorphDiff(config.dim, RELEASED if config.integrator == "released" else STANDARD)


def _vm_tvf(config: NetworkConfig) -> nn.Module:
    return TimeVaryingVelocity(VoxelMorphBackbone(config.dim), config.time_steps, config.integrator)


METHODS = {
    "identity": Method("Before registration", solve=_identity, field="none", inverse="exact: itself"),
    "vm-2": Method(
        "VM-2",
        lambda config: VoxelMorph(config.dim),
        losses={
            2: {"lncc": Sourced(1.0, NO_FACES), "diffusion": Sourced(1.0, NO_FACES)},
            3: {
                "lncc": Sourced(1.0, "TransMorph repository, IXI"),
                "diffusion": Sourced(1.0, "TransMorph repository, IXI"),
            },
        },
        source="Balakrishnan et al. 2019 (IEEE TMI 38)",
    ),
    "vm-diff": Method(
        "VM-diff",
        _vm_diff,
        released=True,
        losses=everywhere(
            mse=Sourced(
                1e4, "1 / sigma^2 with sigma = 0.01, as in the authors' code (faces: nothing is published)"
            ),
            kl=Sourced(
                1.0,
                "as in the authors' code: this term and mse are both means over voxels "
                "(in the formula both are sums)",
            ),
        ),
        constants=everywhere(
            prior=Sourced(
                25.0,
                "the authors' advice for sigma = 0.01. Here it stands in the published formula, which counts "
                "the smoothness of the mean 4 times (2D) or 6 times (3D) as much as their code does",
            )
        ),
        objective=DistributionObjective,
        field="stationary velocity",
        inverse=FLOW_BACK,
        integrator="squaring",
        source="Dalca et al. 2019 (Medical Image Analysis 57)",
    ),
    "cyclemorph": Method(
        "CycleMorph",
        lambda config: CycleMorph(config.dim),
        losses={
            dim: dict(
                lncc=Sourced(1.0, source),
                diffusion=Sourced(1.0, source),
                cycle=Sourced(0.1, source),
                identity=Sourced(0.5, source),
            )
            for dim, source in ((2, NO_FACES), (3, "Kim et al. 2021, their 3D script"))
        },
        objective=CycleObjective,
        source="Kim et al. 2021 (Medical Image Analysis 71)",
    ),
    "convexadam": Method(
        "ConvexAdam, MIND",
        solve=convexadam.register,
        check=convexadam.check,
        dims=(3,),
        source="Siebert et al. 2021 (Learn2Reg)",
        constants={
            3: {
                name: Sourced(value, "default of convexAdam 0.2.0")
                for name, value in convexadam.DEFAULTS.items()
            }
        },
        code="authors' package convexAdam 0.2.0",
    ),
    "lapirn": Method(
        "LapIRN",
        _lapirn,
        sizes=True,
        losses=pyramid(
            Sourced(
                4.0,
                "Mok & Chung 2020, displacement code: 1, for a penalty on twice the displacement; "
                "squared, that is 4 for the displacement itself",
            )
        ),
        constants=everywhere(frozen=Sourced(1 / 60, FROZEN.format("Mok & Chung 2020", "2,000"))),
        objective=PyramidObjective,
        source="Mok & Chung 2020 (MICCAI)",
    ),
    "lapirn-diff": Method(
        "LapIRN, diffeomorphic",
        _lapirn,
        sizes=True,
        losses=pyramid(
            Sourced(
                14.0,
                "Mok & Chung 2020, diffeomorphic code: 3.5, for a penalty on twice the velocity; "
                "squared, that is 14 for the velocity itself",
            )
        ),
        constants=everywhere(frozen=Sourced(1 / 60, FROZEN.format("Mok & Chung 2020", "2,000"))),
        objective=PyramidObjective,
        field="stationary velocity",
        inverse=FLOW_BACK,
        integrator="squaring",
        source="Mok & Chung 2020 (MICCAI)",
    ),
    "clapirn": Method(
        "Conditional LapIRN",
        _lapirn,
        sizes=True,
        losses=pyramid(
            Sourced(
                40.0,
                "Mok & Chung 2021: 10, for a penalty on twice the displacement; squared, that is 40 for the "
                "displacement itself. The smoothness code multiplies it: drawn from [0, 1] in training, "
                "0.1 to register",
            )
        ),
        constants=everywhere(frozen=Sourced(1 / 40, FROZEN.format("Mok & Chung 2021", "3,000"))),
        objective=PyramidObjective,
        source="Mok & Chung 2021 (MICCAI), the paper's reference 16",
    ),
    "lddmm": Method(
        "LDDMM, pair by pair",
        solve=lddmm.solve,
        check=lddmm.check,
        field="time-varying velocity",
        inverse=FLOW_BACK,
        constants={
            dim: {
                name: Sourced(value, ALONE.get(name, NEUTRAL)) for name, value in lddmm.DEFAULTS[dim].items()
            }
            | LDDMM[dim]
            for dim in (2, 3)
        },
        source="Beg et al. 2005 (IJCV 61); the paper's eq. 1",
    ),
    "tm": Method(
        "TM",
        _tm,
        sizes=True,
        heads=True,
        released=True,
        losses=NCC,
        source="Chen et al. 2022 (Medical Image Analysis 82)",
    ),
    "tm-tvf-lddmm": Method(
        "TM-TVF_LDDMM",
        _tm_tvf,
        sizes=True,
        released=True,
        losses={
            2: {
                "mse": Sourced(1.0, EQ2),
                "lddmm": Sourced(LDDMM_WEIGHT[2], SUM_BESIDE_MEAN.format("128 x 128 / 8 = 2,048", "1/32")),
            },
            3: {
                "mse": Sourced(1.0, EQ2),
                "label_mse": Sourced(1.0, EQ2),
                "lddmm": Sourced(
                    LDDMM_WEIGHT[3], SUM_BESIDE_MEAN.format("80 x 96 x 112 / 8 = 107,520", "1/64")
                ),
            },
        },
        constants=LDDMM,
        field="time-varying velocity",
        inverse=FLOW_BACK,
        source=EQ2,
    ),
    "tm-tvf": Method(
        "TM-TVF",
        _tm_tvf,
        sizes=True,
        released=True,
        losses=NCC,
        field="time-varying velocity",
        inverse=FLOW_BACK,
        source=EQ3,
    ),
    "tm-tvf-released": Method(
        "TM-TVF, released rule",
        _tm_tvf,
        sizes=True,
        released=True,
        losses=NCC,
        field="time-varying velocity",
        inverse="none: a sum of -v is called so",
        integrator="released",
        source="Chen, Frey & Du 2022, as their code integrates",
    ),
    "vm-tvf": Method(
        "VM-TVF",
        _vm_tvf,
        released=True,
        losses=NCC,
        field="time-varying velocity",
        inverse=FLOW_BACK,
        source="our head on the U-Net of Balakrishnan et al. 2019",
    ),
}


def available(dim: int) -> list[str]:
    """Names of the methods for 2D or 3D, in the order of the tables."""
    return [name for name, entry in METHODS.items() if dim in entry.dims]
