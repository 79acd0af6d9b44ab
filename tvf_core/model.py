"""A method made ready: :class:`Model` to register with it, :func:`objective` to train it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .checks import check_number, check_pair, one_of
from .fields import at_least_float32
from .integrate import check_integration, flow
from .losses.objectives import CONSTANTS, TERMS, VELOCITY_TERMS, Objective
from .methods import METHODS, NetworkConfig
from .networks.layers import RELEASED, STANDARD
from .registration import Registration
from .sources import Sourced


class Model:
    """A method ready to register: ``Model(config).register(moving, fixed)``.

    Parameters
    ----------
    config : the method, the dimension, and what its network is like.
    network : with its weights; default a new one.
    constants : name -> value, of a method without a network, which then registers with these; constants that
        are not named stay as in ``METHODS``. ValueError for a method that registers with none, an unknown
        name, or a value that the constant cannot have.
    """

    def __init__(
        self, config: NetworkConfig, network: nn.Module | None = None, constants: dict | None = None
    ):
        entry = METHODS[config.method]
        self.config, self.title = config, entry.title
        check_to_register(config.method, constants)
        own = {} if entry.build else entry.constants.get(config.dim, {})
        values = {name: number.value for name, number in own.items()} | (constants or {})
        self.constants = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        if config.integrator == "released" != entry.integrator:
            self.title += " (released rules)"
        self.network = network if network is not None or entry.build is None else entry.build(config)

    def register(
        self, moving: torch.Tensor, fixed: torch.Tensor, integrator: str = "", substeps: int = 1
    ) -> Registration:
        """Align ``moving`` to ``fixed``, both ``(B, 1, *S)`` float in [0, 1].

        A network with a velocity gives the flow of it on the image grid; ``integrator`` (default the one of
        training) and ``substeps`` in each of the N intervals may be chosen anew without retraining.

        Raises
        ------
        ValueError, TypeError : the images or the choices cannot be.
        FloatingPointError : the displacement or the velocity has NaN or infinite values.
        """
        check_pair(moving, fixed, self.config.dim)
        result = self._register(moving, fixed, integrator, substeps)
        for name in ("displacement", "velocity"):
            field = getattr(result, name)
            if field is not None and not torch.isfinite(field).all():
                cause = "; weights are not finite, or numbers are too large for half precision"
                raise FloatingPointError(
                    f"{self.title}: the {name} has NaN or infinite values"
                    + cause * (self.network is not None)
                )
        return result

    def _register(self, moving, fixed, integrator, substeps) -> Registration:
        """:meth:`register` before its result is looked at."""
        entry = METHODS[self.config.method]
        if (integrator or substeps != 1) and not (entry.has_velocity and entry.build):
            raise ValueError(
                f"{self.title} predicts no velocity: it has no integrator and no sub-steps to choose"
            )
        if self.network is None:
            return entry.solve(moving, fixed, **self.constants)
        integrator = integrator or self.config.integrator
        if integrator:
            check_integration(integrator, substeps)
        if integrator == "squaring" and entry.field != "stationary velocity":
            raise ValueError(
                f"squaring is for a velocity that does not change in time; that of {self.title} does"
            )
        self.network.eval()
        weights = next(self.network.parameters())
        inputs = [image.to(weights.dtype) for image in (moving, fixed)]
        moving = moving.to(at_least_float32(weights))  # what is warped keeps its digits
        with torch.no_grad():
            displacement, velocity = self.network(*inputs)
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


def check_to_register(method: str, constants: dict | None) -> None:
    """Refuse constants that a method cannot register with: those of a loss, unknown ones, wrong values."""
    if METHODS[one_of(method, METHODS, "method")].build and constants:
        raise ValueError(
            f"constants: {method} registers with its network, whose training alone has constants"
        )
    check_constants(method, constants)


def check_losses(method: str, weights: dict[str, float] | None) -> None:
    """Refuse loss terms that a method cannot be trained with; None are its own."""
    if weights is None:
        return
    entry = METHODS[method]
    if entry.build is None:
        raise ValueError(f"losses: {method} has no network, so there is nothing to train with a loss")
    if entry.objective is not Objective:
        raise ValueError(f"losses: {method} has a loss of its own kind, whose terms cannot be exchanged")
    if not weights:
        raise ValueError("losses: expected at least one term with its weight")
    for term, weight in weights.items():
        one_of(term, TERMS, "loss term")
        check_number(weight, f"losses: the weight of {term}", 0, above=True)
        if not entry.has_velocity and term in VELOCITY_TERMS:
            raise ValueError(f"losses: {term} needs a velocity, and {method} predicts none")


def known_constants(method: str, dim: int, weights: dict[str, float] | None = None) -> dict[str, Sourced]:
    """The constants that have an effect on a method, and their values unless others are given.

    These are the constants of ``METHODS``. Where the loss terms can be exchanged, they are those that the
    terms use, with the paper's values, for a term may be tried that the method does not have. ``weights``:
    terms instead of the method's own.
    """
    entry = METHODS[method]
    if entry.build is None or entry.objective is not Objective:
        return entry.constants.get(dim, {})
    used = {name for term in weights or own_terms(method) for name in CONSTANTS.get(term, ())}
    return {k: number for k, number in METHODS["tm-tvf-lddmm"].constants[dim].items() if k in used}


def own_terms(method: str) -> dict[str, float]:
    """Loss terms and weights of a method itself, in 2D and 3D together; none where there is no network."""
    return {term: n.value for terms in METHODS[method].losses.values() for term, n in terms.items()}


def check_constants(method: str, constants: dict | None, weights: dict[str, float] | None = None) -> None:
    """Refuse constants that have no effect on a method, and wrong values.

    ``weights``: the loss terms with which the method is trained, instead of its own.
    """
    entry, dim = METHODS[method], METHODS[method].dims[0]  # the same names in 2D and 3D
    known = known_constants(method, dim, weights)
    for name, value in (constants or {}).items():
        if name not in known:
            raise ValueError(
                f"constants: {name!r} would have no effect on {method}, which has "
                f"{'the constants ' + ', '.join(sorted(known)) if known else 'no constants'}"
            )
        if entry.build:
            check_number(value, f"constants: {name}", int(name == "beta"), whole=name == "beta")
    if entry.check and constants:
        entry.check(constants, dim)


def objective(
    config: NetworkConfig,
    network: nn.Module,
    labels: Sequence[int] = (),
    weights: dict[str, float] | None = None,
    constants: dict[str, float] | None = None,
) -> Objective:
    """What trains a network: its method's loss, or the standard terms in ``weights``
    (:func:`tvf_core.losses.objectives.standard_terms`).

    Parameters
    ----------
    config, network : the network and what it is.
    labels : the label numbers that count, background (0) among them; none for data without labels.
    weights : term -> weight instead of the method's own; for methods whose terms are the standard ones.
    constants : name -> value instead of the method's own; those not named stay.
    """
    entry = METHODS[config.method]
    check_losses(config.method, weights)
    check_constants(config.method, constants, weights)
    known = known_constants(config.method, config.dim, weights)
    numbers = {name: number.value for name, number in known.items()} | (constants or {})
    return entry.objective(network, weights or entry.weights(config.dim), numbers, labels)
