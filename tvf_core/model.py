"""A method made ready: :class:`Model` to register with it, :func:`objective` to train it."""

from __future__ import annotations

import math

import torch
from torch import nn

from .checks import check_pair, one_of
from .integrate import check_integration, flow
from .losses.objectives import TERMS, VELOCITY_TERMS, Objective
from .methods import METHODS, NetworkConfig
from .networks.layers import RELEASED, STANDARD
from .registration import Registration


class Model:
    """A method ready to register: ``Model(config).register(moving, fixed)``."""

    def __init__(self, config: NetworkConfig, network: nn.Module | None = None):
        entry = METHODS[config.method]
        self.config, self.title = config, entry.title
        if config.integrator == "released" != entry.integrator:
            self.title += " (released rules)"
        self.network = network if network is not None or entry.build is None else entry.build(config)

    def register(
        self, moving: torch.Tensor, fixed: torch.Tensor, integrator: str = "", substeps: int = 1
    ) -> Registration:
        """Align ``moving`` to ``fixed``, both ``(B, 1, *S)`` float in [0, 1].

        A network with a velocity gives the flow of it on the image grid; ``integrator`` (default the one of
        training) and ``substeps`` in each of the N intervals may be chosen anew without retraining.
        """
        check_pair(moving, fixed, self.config.dim)
        entry = METHODS[self.config.method]
        if (integrator or substeps != 1) and not (entry.has_velocity and entry.build):
            raise ValueError(
                f"{self.title} predicts no velocity: it has no integrator and no sub-steps to choose"
            )
        integrator = integrator or self.config.integrator
        check_integration(integrator, substeps)
        if entry.build and integrator == "squaring" and entry.field != "stationary velocity":
            raise ValueError(
                f"squaring is for a velocity that does not change in time; that of {self.title} does"
            )
        if self.network is None:
            return entry.solve(moving, fixed)
        self.network.eval()
        moving, fixed = (image.to(next(self.network.parameters()).dtype) for image in (moving, fixed))
        with torch.no_grad():
            displacement, velocity = self.network(moving, fixed)
            convention = self.network.convention
            if velocity is None:
                if integrator != self.config.integrator or substeps != 1:
                    raise ValueError(
                        f"{self.title} gives no velocity: it has no integrator and no sub-steps to choose"
                    )
                return Registration(displacement, convention.warp(moving, displacement))
            displacement = flow(velocity, integrator, substeps, shape=moving.shape[2:])
            if integrator != self.config.integrator and "released" in (integrator, self.config.integrator):
                convention = RELEASED if integrator == "released" else STANDARD
            return Registration(
                displacement, convention.warp(moving, displacement), velocity, integrator, substeps
            )


def check_losses(method: str, weights: dict[str, float] | None) -> None:
    """Refuse loss terms that a method cannot be trained with; None are its own."""
    if weights is None:
        return
    entry = METHODS[method]
    if entry.objective is not Objective:
        raise ValueError(f"losses: {method} has a loss of its own kind, whose terms cannot be exchanged")
    if not weights:
        raise ValueError("losses: expected at least one term with its weight")
    for term, weight in weights.items():
        one_of(term, TERMS, "loss term")
        if not 0 < weight < math.inf:
            raise ValueError(f"losses: the weight of {term} must be positive, got {weight}")
        if not entry.has_velocity and term in VELOCITY_TERMS:
            raise ValueError(f"losses: {term} needs a velocity, and {method} predicts none")


def objective(
    config: NetworkConfig,
    network: nn.Module,
    classes: int = 0,
    weights: dict[str, float] | None = None,
    constants: dict[str, float] | None = None,
) -> Objective:
    """What trains a network: its method's loss, or the :func:`tvf_core.losses.objectives.standard_terms` in ``weights``.

    Parameters
    ----------
    config, network : the network and what it is.
    classes : labels including background; 0 for none.
    weights : term -> weight instead of the method's own; for methods whose terms are the standard ones.
    constants : name -> value instead of the method's own; those not named stay.
    """
    entry = METHODS[config.method]
    check_losses(config.method, weights)
    # those of the paper too: a loss may be tried that the method does not have
    known = METHODS["tm-tvf-lddmm"].constants[config.dim] | entry.constants.get(config.dim, {})
    for name, value in (constants or {}).items():
        one_of(name, known, f"constant of {config.method}")
        if not 0 <= value < math.inf:
            raise ValueError(f"constants: {name} must not be negative, got {value}")
    numbers = {name: number.value for name, number in known.items()} | (constants or {})
    return entry.objective(network, weights or entry.weights(config.dim), numbers, classes)
