"""LDDMM for one pair (Beg et al. 2005): the optimisation behind the paper's eq. 1, without a network.

Minimises over v the energy ``integral |L v_t|^2 dt`` plus the mismatch of the images. The unknown
is ``w = L v``, so that every ``v = L^-1 w`` is smooth and the energy is the plain norm of w.
"""

from __future__ import annotations

import math

import torch

from .. import fields, losses
from ..checks import check_pair
from ..integrate import flow
from ..methods import Registration


def register(moving: torch.Tensor, fixed: torch.Tensor, *, steps: int = 8, alpha: float = 0.01, gamma: float = 0.001,
             beta: int = 2, weight: float = 100.0, iterations: int = 40, integrator: str = "rk4",
             recompute: bool = False):
    """Align one pair by LBFGS over time-varying velocities.

    Parameters
    ----------
    moving, fixed : (B, 1, *S) float in [0, 1].
    steps : T, the number of velocity fields.
    alpha, gamma, beta : ``L = (-alpha Laplacian + gamma)^beta``, see :func:`tvf_core.losses.lddmm_energy`.
    weight : of the energy against the mean squared difference of the images.
    iterations : of LBFGS, a few evaluations each.
    recompute : less memory for more time, see :func:`tvf_core.integrate.flow`.

    Returns
    -------
    registration : Registration, its velocity on the image grid.
    history : list of {"mse", "energy"} per evaluation, line searches included; energy is weighted.
    """
    dim = check_pair(moving, fixed)
    shape = moving.shape[2:]
    w = torch.zeros(moving.shape[0], steps, dim, *shape, dtype=moving.dtype, device=moving.device, requires_grad=True)
    scale = gamma**beta  # w in units of gamma^beta |v|: a well-scaled unknown whatever the constants
    optimizer = torch.optim.LBFGS([w], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")
    history = []

    def terms():
        velocity = smooth(w * scale, dim, alpha, gamma, beta)
        displacement = flow(velocity, integrator, recompute=recompute)
        energy = weight * (w * scale).square().sum(2).mean()
        return losses.mse(fields.warp(moving, displacement), fixed), energy, velocity, displacement

    def closure():
        optimizer.zero_grad()
        mse, energy, _, _ = terms()
        total = (mse + energy) * moving.numel()  # sums, not means: LBFGS stops on absolute tolerances
        total.backward()
        history.append({"mse": mse.item(), "energy": energy.item()})
        return total

    optimizer.step(closure)
    with torch.no_grad():
        _, _, velocity, displacement = terms()
        return Registration(displacement, fields.warp(moving, displacement), velocity, integrator), history


def smooth(w: torch.Tensor, dim: int, alpha: float, gamma: float, beta: int) -> torch.Tensor:
    """``L^-1 w`` over the last ``dim`` axes of a tensor.

    Exact inverse of the operator in :func:`tvf_core.losses.lddmm_energy`: mirrored borders are an even
    extension to twice the size, where the Fourier transform diagonalises the stencil.
    """
    axes = tuple(range(-dim, 0))
    mirrored = w
    for axis in axes:
        mirrored = torch.cat([mirrored, mirrored.flip(axis)], dim=axis)
    minus_laplacian = w.new_zeros(())
    for axis in axes:
        n = mirrored.shape[axis]
        eigenvalues = 2 - 2 * torch.cos(2 * math.pi * torch.arange(n, device=w.device, dtype=w.dtype) / n)
        minus_laplacian = minus_laplacian + eigenvalues.view(-1, *[1] * (-axis - 1))
    spectrum = torch.fft.fftn(mirrored, dim=axes) / (alpha * minus_laplacian + gamma) ** beta
    out = torch.fft.ifftn(spectrum, dim=axes).real
    return out[(..., *[slice(0, s) for s in w.shape[-dim:]])]
