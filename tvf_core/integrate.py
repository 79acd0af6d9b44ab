"""From velocity to map: the flow of v_t, forward and inverse, and scaling and squaring.

The flow solves ``d phi_t / dt = v_t(phi_t), phi_0 = Id`` (Beg et al. 2005; Chen, Frey & Du 2022,
section 2). A network gives v as T fields, each constant over its interval ``[k/T, (k+1)/T)``; between
voxels it is interpolated linearly. The inverse is the flow of -v in reversed time, from the same v.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from . import released
from .checks import check_field, check_number, one_of
from .fields import at_least_float32, double, identity_grid, sample, warp

Velocity = Callable[[float, torch.Tensor], torch.Tensor]  # (time, points) -> velocity at the points


def euler_step(v: Velocity, t: float, x: torch.Tensor, h: float) -> torch.Tensor:
    """One explicit Euler step (order 1): the update of the paper, ``phi + h v_t(phi)``."""
    return x + h * v(t, x)


def heun_step(v: Velocity, t: float, x: torch.Tensor, h: float) -> torch.Tensor:
    """One step of Heun's method (order 2): the mean of the slopes at both ends of an Euler step."""
    k1 = v(t, x)
    k2 = v(t + h, x + h * k1)
    return x + h * (k1 + k2) / 2


def rk4_step(v: Velocity, t: float, x: torch.Tensor, h: float) -> torch.Tensor:
    """One step of the classical Runge-Kutta method (order 4)."""
    k1 = v(t, x)
    k2 = v(t + h / 2, x + h / 2 * k1)
    k3 = v(t + h / 2, x + h / 2 * k2)
    k4 = v(t + h, x + h * k3)
    return x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6


STEPS = {"euler": euler_step, "heun": heun_step, "rk4": rk4_step}
INTEGRATORS = (*STEPS, "squaring", "released")


def solve(
    v: Velocity,
    points: torch.Tensor,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int = 8,
    method: str = "rk4",
) -> torch.Tensor:
    """Carry points along any velocity from time ``t0`` to ``t1`` (backwards if ``t1 < t0``).

    Parameters
    ----------
    v : function ``(t, points) -> velocity``, points and result ``(B, D, *P)``.
    points : (B, D, *P) start positions.
    steps : number of equal steps.
    method : ``euler``, ``heun`` or ``rk4``.
    """
    step = STEPS[one_of(method, STEPS, "integrator")]
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    h = (t1 - t0) / steps
    for k in range(steps):
        points = step(v, t0 + k * h, points, h)
    return points


def advance(
    velocity: torch.Tensor, points: torch.Tensor, duration: float, method: str = "euler"
) -> torch.Tensor:
    """Carry points on by one step along a velocity field.

    Parameters
    ----------
    velocity : (B, D, *S) voxels per unit time, constant during ``duration``; negative duration
        runs it backwards.
    points : (B, D, *P) voxel coordinates: where the map so far has carried the voxels.
    method : ``euler``, ``heun`` or ``rk4``.

    Returns
    -------
    (B, D, *P). One Euler step is ``phi + duration * v(phi)``: the velocity is sampled where the map has
    already carried the voxel.
    """
    check_field(velocity, "velocity")
    return solve(_field(velocity), points, 0.0, duration, 1, method)


def transport(
    velocity: torch.Tensor,
    points: torch.Tensor,
    method: str = "rk4",
    substeps: int = 1,
    t0: float = 0.0,
    t1: float = 1.0,
    shape=None,
) -> torch.Tensor:
    """Carry any points along a time-varying velocity, without a displacement field in between.

    Parameters
    ----------
    velocity : (B, T, D, *S) voxels per unit time; step k is constant on [k/T, (k+1)/T).
    points : (B, D, *P) voxel coordinates on the grid ``shape``; ``P`` is any shape, a batch of 1 serves all.
    method : ``euler``, ``heun`` or ``rk4``.
    substeps : solver steps within each of the T intervals (or the part of one that t0 and t1 leave).
    t0, t1 : from when to when, within [0, 1]; ``t0=1, t1=0`` carries the points back.
    shape : image grid of the points: the velocity's own (default) or the one that it halves.

    Returns
    -------
    (B, D, *P) where the points are at time t1.
    """
    steps, (factor, _) = _time_steps(velocity), _refinement(velocity, shape)
    check_number(substeps, "substeps", 1, whole=True)
    if points.shape[1] != velocity.shape[2] or points.shape[0] not in (1, velocity.shape[0]):
        raise ValueError(
            f"points: expected ({velocity.shape[0]}, {velocity.shape[2]}, ...), got {tuple(points.shape)}"
        )
    places = points.to(at_least_float32(points)).expand(velocity.shape[0], *points.shape[1:])
    if points.dim() != velocity.dim() - 1:  # the sampler wants D axes
        places = places.reshape(*places.shape[:2], -1, *[1] * (velocity.shape[2] - 1))
    places = (places + 0.5) / factor - 0.5  # centres of the image's voxels, on the velocity's grid
    for k, begin, end in _intervals(steps, t0, t1):
        places = solve(_field(velocity[:, k]), places, begin, end, substeps, method)
    return (factor * (places + 0.5) - 0.5).reshape(-1, *points.shape[1:])


def flow(
    velocity: torch.Tensor,
    method: str = "rk4",
    substeps: int = 1,
    t0: float = 0.0,
    t1: float = 1.0,
    shape=None,
) -> torch.Tensor:
    """Map from time t0 to t1 of the flow of a time-varying velocity, as a displacement.

    Parameters
    ----------
    velocity, substeps, t0, t1 : as for :func:`transport`. ``t0=1, t1=0`` is the inverse map:
        from the same velocity, time running backwards.
    method : ``euler``, ``heun``, ``rk4``; ``squaring`` for a velocity that does not change in time (T = 1),
        see :func:`scaling_and_squaring`; or ``released`` for the rule of the released code
        (:mod:`tvf_core.released`), whose "inverse" is the sum of the negated fields.
    shape : image grid on which the map is wanted: the velocity's own (default) or the one that it
        halves. There every voxel is carried through the velocity from where it lies; only ``squaring`` and
        ``released`` upsample the map of the half grid.

    Returns
    -------
    (B, D, *S) displacement in voxels of that grid.

    Examples
    --------
    >>> import torch
    >>> v = torch.full((1, 4, 2, 8, 8), 0.5)           # the same translation all the time
    >>> flow(v).unique().tolist(), flow(v, t0=1, t1=0).unique().tolist()
    ([0.5], [-0.5])
    >>> flow(v, shape=(16, 15)).unique().tolist()       # voxels half as large: twice as many of them
    [1.0]
    """
    for displacement in _maps(velocity, [t0, t1], method, substeps, shape):  # noqa: B007
        pass  # the last one is wanted
    return displacement


def trajectory(
    velocity: torch.Tensor,
    times: Sequence[float] | None = None,
    method: str = "rk4",
    substeps: int = 1,
    shape=None,
) -> torch.Tensor:
    """The map phi_t at several times, each continued from the one before.

    Parameters
    ----------
    times : at least two within [0, 1], rising or falling. **The flow begins at the first**: for phi_t as in
        the paper it is 0. Default 0, 1/T, ..., 1.
    velocity, method, substeps, shape : as for :func:`flow`. ``released`` knows the ends of
        intervals only.

    Returns
    -------
    (B, len(times), D, *S) displacements from times[0] to each time; the first is zero.
    """
    steps = _time_steps(velocity)
    times = [k / steps for k in range(steps + 1)] if times is None else [float(t) for t in times]
    if len(times) < 2:
        raise ValueError(f"times: expected at least two, the first is where the flow begins; got {times}")
    if times not in (sorted(times), sorted(times, reverse=True)):
        raise ValueError(f"times: expected rising or falling ones, got {times}")
    return torch.stack(list(_maps(velocity, times, method, substeps, shape)), dim=1)


def check_integration(method: str, substeps: int) -> None:
    """Refuse an unknown integrator, or a number of sub-steps that it cannot take."""
    if one_of(method, INTEGRATORS, "integrator") not in STEPS and substeps != 1:
        raise ValueError(f"the integrator {method!r} has no sub-steps, got {substeps}")
    check_number(substeps, "substeps", 1, whole=True)


def _maps(velocity, times, method, substeps, shape) -> Iterator[torch.Tensor]:
    """Displacements from times[0] to each of the times, one after the other."""
    check_integration(method, substeps)
    steps, (factor, shape) = _time_steps(velocity), _refinement(velocity, shape)
    if method == "released":
        u = torch.zeros_like(velocity[:, 0])
        for begin, end in itertools.pairwise([times[0], *times]):
            for k, a, b in _intervals(steps, begin, end):
                if abs(abs(b - a) * steps - 1) > 1e-6:
                    raise ValueError(
                        f"the released rule knows whole intervals only: times must be multiples of 1/{steps}"
                    )
                u = released.advance(velocity[:, k] * (b - a), u)
            yield released.double(u, shape) if factor == 2 else u
        return
    if method == "squaring":
        if steps != 1:
            raise ValueError(
                f"squaring is for a velocity that does not change in time, got one with {steps} time steps"
            )
        for end in times:
            u = scaling_and_squaring((end - times[0]) * velocity[:, 0])
            yield double(u, shape) if factor == 2 else u
        return
    start = identity_grid(shape, velocity.device, at_least_float32(velocity))
    points = start.expand(velocity.shape[0], *start.shape[1:])
    for begin, end in itertools.pairwise([times[0], *times]):
        points = transport(velocity, points, method, substeps, begin, end, shape)
        yield points - start


def scaling_and_squaring(velocity: torch.Tensor, squarings: int = 7, padding: str = "border") -> torch.Tensor:
    """Flow of a velocity that does not change in time (Arsigny et al. 2006).

    Halves the field ``squarings`` times, takes the small step ``Id + v / 2^n`` and composes the
    map with itself n times.

    Parameters
    ----------
    velocity : (B, D, *S) voxels per unit time; ``-velocity`` gives the inverse.
    padding : what the field is outside its grid, see :func:`tvf_core.fields.sample`.

    Returns
    -------
    (B, D, *S) displacement in voxels.
    """
    check_field(velocity, "velocity")
    check_number(squarings, "squarings", 0, whole=True)
    u = velocity / 2**squarings
    for _ in range(squarings):
        u = u + warp(u, u, padding=padding)
    return u


def _field(velocity: torch.Tensor) -> Velocity:
    return lambda _, points: sample(velocity, points, padding="border")


def _time_steps(velocity: torch.Tensor) -> int:
    """T of a ``(B, T, D, *S)`` velocity, after checking its shape."""
    if velocity.dim() < 3 or velocity.shape[1] < 1:
        raise ValueError(f"velocity: expected (batch, time, D, *space), got shape {tuple(velocity.shape)}")
    check_field(velocity[:, 0], "velocity at one time")
    return velocity.shape[1]


def _intervals(steps: int, t0: float, t1: float) -> Iterator[tuple[int, float, float]]:
    """(number of the interval, begin, end) of every piece of the way from t0 to t1, in its order."""
    if not (-1e-6 <= t0 <= 1 + 1e-6 and -1e-6 <= t1 <= 1 + 1e-6):  # NaN fails too
        raise ValueError(f"times: expected within [0, 1], got {t0} and {t1}")
    ends = [t * steps for t in (t0, t1)]
    ends = [round(e) if abs(e - round(e)) < 1e-5 else e for e in ends]  # float32 times, 0.1 + 0.2, ...
    low, high = sorted(ends)
    cuts = [low, *[k for k in range(steps + 1) if low < k < high], high]
    pieces = [(int((a + b) / 2), a / steps, b / steps) for a, b in itertools.pairwise(cuts) if b > a]
    return iter(pieces if t0 < t1 else [(k, b, a) for k, a, b in reversed(pieces)])


def _refinement(velocity: torch.Tensor, shape) -> tuple[int, tuple[int, ...]]:
    """How many times finer the grid ``shape`` is than the velocity's (1 or 2), and that shape."""
    own = tuple(velocity.shape[3:])
    shape = own if shape is None else tuple(int(s) for s in shape)
    if shape == own:
        return 1, shape
    if tuple(-(-s // 2) for s in shape) == own:
        return 2, shape
    raise ValueError(f"shape {shape}: a velocity on {own} gives maps on {own} or on the grid that it halves")
