"""From velocity to map: the flow of v_t, forward and inverse, and scaling and squaring.

The flow solves ``d phi_t / dt = v_t(phi_t), phi_0 = Id`` (Chen, Frey & Du 2022, eq. 2; Beg et al.
2005). A network gives v as T fields, each constant over its interval ``[k/T, (k+1)/T)``; between
voxels it is interpolated linearly. The inverse is the flow of -v in reversed time, from the same v.
"""

from __future__ import annotations

from typing import Callable

import torch

from .checks import check_field, one_of
from .fields import compose, identity_grid, sample

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


def solve(v: Velocity, points: torch.Tensor, t0: float = 0.0, t1: float = 1.0, steps: int = 8,
          method: str = "rk4") -> torch.Tensor:
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


def advance(velocity: torch.Tensor, displacement: torch.Tensor, duration: float, method: str = "euler",
            substeps: int = 1) -> torch.Tensor:
    """Continue the map ``Id + displacement`` along one constant velocity field.

    Parameters
    ----------
    velocity : (B, D, *S) voxels per unit time, constant during ``duration``; negative duration
        runs it backwards.
    displacement : (B, D, *S) voxels, the map so far.

    Returns
    -------
    (B, D, *S): displacement of the map afterwards. One Euler step is
    ``u(x) + duration * v(x + u(x))``: the velocity is sampled where the map has already carried x.
    """
    check_field(velocity, "velocity")
    grid = identity_grid(displacement.shape[2:], displacement.device, torch.promote_types(displacement.dtype, torch.float32))
    points = solve(lambda _, x: sample(velocity, x, padding="border"), grid + displacement, 0.0, duration, substeps, method)
    return points - grid


def flow(velocity: torch.Tensor, method: str = "rk4", substeps: int = 1, inverse: bool = False,
         trajectory: bool = False) -> torch.Tensor:
    """Map at the end of the flow of a time-varying velocity, as a displacement.

    Parameters
    ----------
    velocity : (B, T, D, *S) voxels per unit time; step k is constant on [k/T, (k+1)/T).
    method : ``euler``, ``heun`` or ``rk4``.
    substeps : solver steps within each of the T intervals; may differ from training.
    inverse : run time backwards, which gives phi_1^-1 of the same velocity.
    trajectory : give every phi_{k/T} instead of the last: ``(B, T + 1, D, *S)``, the first is zero.
        With ``inverse`` entry k is the flow from time 1 back to time 1 - k/T.

    Returns
    -------
    (B, D, *S) displacement in voxels of the velocity's grid.

    Examples
    --------
    >>> import torch
    >>> v = torch.full((1, 4, 2, 8, 8), 0.5)           # the same translation all the time
    >>> flow(v).unique().tolist(), flow(v, inverse=True).unique().tolist()
    ([0.5], [-0.5])
    """
    if velocity.dim() < 3:
        raise ValueError(f"velocity: expected (batch, time, D, *space), got shape {tuple(velocity.shape)}")
    steps = velocity.shape[1]
    duration = (-1.0 if inverse else 1.0) / steps
    order = range(steps - 1, -1, -1) if inverse else range(steps)
    u = torch.zeros_like(velocity[:, 0])
    path = [u]
    for k in order:
        u = advance(velocity[:, k], u, duration, method, substeps)
        path.append(u)
    return torch.stack(path, dim=1) if trajectory else u


def scaling_and_squaring(velocity: torch.Tensor, squarings: int = 7) -> torch.Tensor:
    """Flow of a velocity that does not change in time (Arsigny et al. 2006).

    Halves the field ``squarings`` times, takes the small step ``Id + v / 2^n`` and composes the
    map with itself n times.

    Parameters
    ----------
    velocity : (B, D, *S) voxels per unit time; ``-velocity`` gives the inverse.

    Returns
    -------
    (B, D, *S) displacement in voxels.
    """
    check_field(velocity, "velocity")
    u = velocity / 2**squarings
    for _ in range(squarings):
        u = compose(u, u)
    return u
