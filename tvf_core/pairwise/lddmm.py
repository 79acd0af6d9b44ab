"""LDDMM for one pair (Beg et al. 2005): the optimisation behind the paper's eq. 1, without a network.

Minimises over v the energy ``integral |L v_t|^2 dt`` plus the mismatch of the images. The unknown
is ``w = L v``, so that every ``v = L^-1 w`` is smooth and the energy is the plain norm of w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .. import fields, losses
from ..checks import check_number, check_pair, one_of
from ..integrate import STEPS, flow
from ..registration import Registration
from ..sources import LDDMM, LDDMM_WEIGHT

# By dimension. alpha, gamma and beta are the paper's (section 3), and steps is its number N of velocity
# fields. The paper optimises no single pair and prints no weight: the weight here is the number that
# TM-TVF_LDDMM has (tvf_core/methods.py). The rest is tuned to no data: the integrator is the package's usual
# one, and the three grids are usual for coarse-to-fine registration; the last has half the image's
# resolution, as the velocity of TM-TVF has. Values that suit a data set better stand in its profile
# (notebooks/profiles).
_COMMON = dict(similarity="mse", steps=8, integrator="rk4", scales=(8, 4, 2), iterations=40)
DEFAULTS = {
    dim: {name: number.value for name, number in LDDMM[dim].items()} | {"weight": LDDMM_WEIGHT[dim]} | _COMMON
    for dim in (2, 3)
}
# What may measure the mismatch of the images: name -> function of (B, 1, *S) pairs that is minimised.
SIMILARITIES = {"mse": losses.mse, "lncc": losses.lncc}


def solve(moving: torch.Tensor, fixed: torch.Tensor, **settings) -> Registration:
    """LDDMM as a method: :func:`register` with ``DEFAULTS``, but for the values in ``settings``."""
    dim = check_pair(moving, fixed)
    check(settings, dim)
    return register(moving, fixed, **DEFAULTS[dim] | settings)[0]


def check(settings: dict, dim: int) -> None:
    """Raise a ValueError for an unknown name among ``settings``, or a value that it cannot have."""
    for name, value in settings.items():
        one_of(name, DEFAULTS[dim], "setting of LDDMM")
        if name in ("beta", "steps"):
            check_number(value, f"LDDMM: {name}", 1, whole=True)
        elif name in ("alpha", "gamma", "weight"):
            check_number(value, f"LDDMM: {name}", 0, above=True)
        elif name == "integrator":
            one_of(value, STEPS, "integrator of LDDMM")
        elif name == "similarity":
            one_of(value, SIMILARITIES, "similarity of LDDMM")
    settings = DEFAULTS[dim] | settings
    pyramid(settings["scales"], settings["iterations"])


def pyramid(scales: Sequence[int], iterations: int | Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(level, scale, iterations) of every grid, from coarse to fine; the image is halved ``level`` times.

    ValueError for scales or iterations that :func:`register` cannot take.
    """
    whole = isinstance(scales, Sequence) and all(isinstance(s, int) for s in scales)
    levels = [s.bit_length() - 1 for s in scales] if whole else []
    powers = all(s == 2**k for s, k in zip(scales, levels))
    if not levels or not powers or levels != sorted(set(levels), reverse=True) or levels[-1] > 1:
        raise ValueError(f"scales: expected falling powers of two that end in 1 or 2, got {scales}")
    counts = [iterations] * len(scales) if isinstance(iterations, int) else iterations
    if not isinstance(counts, Sequence) or len(counts) != len(scales):
        raise ValueError(
            f"iterations: expected one number or one for each scale of {scales}, got {iterations}"
        )
    for count in counts:
        check_number(count, "iterations", 1, whole=True)
    return tuple(zip(levels, scales, counts))


def register(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    *,
    steps: int = 8,
    alpha: float = 0.01,
    gamma: float = 0.001,
    beta: int = 2,
    weight: float = 100.0,
    iterations: int | Sequence[int] = 40,
    scales: Sequence[int] = (1,),
    integrator: str = "rk4",
    similarity: str = "mse",
) -> tuple[Registration, list[dict]]:
    """Align pairs, each by itself, by LBFGS over time-varying velocities, from coarse grids to fine ones.

    Minimises the paper's eq. 1 (Beg et al. 2005): ``weight`` times :func:`energy`, plus the mismatch of the
    images, by default their mean squared difference.

    Parameters
    ----------
    moving, fixed : (B, 1, *S) float in [0, 1], any size. A batch gives what its pairs give alone.
    steps : T, the number of velocity fields.
    alpha, gamma, beta : ``L = (-alpha Laplacian + gamma)^beta``, see :func:`tvf_core.losses.lddmm_energy`;
        alpha in squared voxels of the image, at every scale.
    weight : of the energy against the mismatch, in units of the mismatch: what suits ``mse`` is far too light
        for ``lncc``, by a factor of about 50 on real faces.
    iterations : of LBFGS, one or two evaluations each; one number for every scale, or one per scale.
    scales : spacing of the velocity's grid in voxels of the image, one after the other: falling powers of
        two that end in 1 or 2. Velocities on a grid coarser than the image are fitted to images halved
        until they are one level finer than that grid, their map doubled.
    integrator : see :func:`tvf_core.integrate.flow`.
    similarity : the mismatch. ``mse`` is the mean squared difference of the images, ``lncc`` is
        :func:`tvf_core.losses.lncc` with its window of 9 voxels, which is blind to brightness and contrast.
        The window has as many voxels at every scale, so it covers more of the image on coarse grids. It also
        covers zeros around the image: where a coarse image has but a few voxels along an axis, each window
        reaches outside, and the step to these zeros outweighs what is in the image.

    Returns
    -------
    registration : Registration, its velocity on the grid of the last scale.
    history : per evaluation a dict: pair, scale, the mismatch (as mse or lncc), and the weighted energy.

    Raises
    ------
    ValueError : for scales that are no such powers, iterations that are not one per scale, or an unknown
        similarity.
    """
    check_pair(moving, fixed)
    one_of(similarity, SIMILARITIES, "similarity of LDDMM")
    grids, results, history = pyramid(scales, iterations), [], []
    # Whatever mode the caller is in: gradients, single precision at least, and none for the caller's images.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(moving.device.type, enabled=False):
        images = (image.detach().clone().to(fields.at_least_float32(image)) for image in (moving, fixed))
        for number, pair in enumerate(zip(*(image.split(1) for image in images))):
            result, evaluations = _register(
                *pair, steps, alpha, gamma, beta, weight, grids, integrator, similarity
            )
            results.append(result)
            history += [{"pair": number, **row} for row in evaluations]
        displacement, warped, velocity = (torch.cat(parts) for parts in zip(*results))
    return Registration(displacement, warped, velocity, integrator), history


def _register(moving, fixed, steps, alpha, gamma, beta, weight, grids, integrator, similarity):
    """(displacement, warped image, velocity) of one pair and its history, with gradients on.

    ``grids`` is what :func:`pyramid` gives.
    """
    dim, history = moving.dim() - 2, []
    levels, scales, counts = zip(*grids)
    images = [(moving, fixed)]
    for _ in range(levels[0]):
        images.append(tuple(map(fields.halve, images[-1])))
    unit = gamma**beta  # w in units of gamma^beta |v|: a well-scaled unknown whatever the constants
    w = moving.new_zeros(1, steps, dim, *images[levels[0]][0].shape[2:])

    def velocity(w, scale):
        return smooth(w * unit, dim, alpha / scale**2, gamma, beta)

    def loss(w, scale, source, target):
        """Mismatch and weighted energy, by name; the map on a coarser grid is doubled."""
        displacement = flow(velocity(w, scale), integrator)
        if scale > 1:
            displacement = fields.double(displacement, source.shape[2:])
        mismatch = SIMILARITIES[similarity](fields.warp(source, displacement), target)
        return {similarity: mismatch, "energy": weight * energy(w * unit, scale)}

    for before, level, scale, count in zip([levels[0], *levels], levels, scales, counts):
        for finer in range(before - 1, level - 1, -1):
            # w rather than v, whose kinks between the coarse voxels L would turn into energy
            w = fields.double(w.flatten(0, 1), images[finer][0].shape[2:]).unflatten(0, (1, steps))
        w = _minimise(w, scale, count, images[max(level - 1, 0)], loss, moving.numel(), history)
    with torch.no_grad():
        v = velocity(w, scale)
        displacement = flow(v, integrator, shape=moving.shape[2:])
        return (displacement, fields.warp(moving, displacement), v), history


def _minimise(w, scale, iterations, images, loss, size, history):
    """The unknown of one scale after ``iterations`` of LBFGS that start from ``w``; adds to the history.

    ``loss(w, scale, *images)`` gives its terms by name, as means. LBFGS stops on absolute tolerances, so it
    minimises their sum times ``size``, the number of voxels.
    """
    w = w.detach().requires_grad_(True)
    optimizer = torch.optim.LBFGS([w], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        terms = loss(w, scale, *images)
        total = sum(terms.values()) * size
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"LDDMM: not finite at scale {scale}, evaluation {len(history)}; try a larger weight"
            )
        total.backward()
        history.append({"scale": scale} | {name: term.item() for name, term in terms.items()})
        return total

    optimizer.step(closure)
    return w


def energy(w: torch.Tensor, scale: int) -> torch.Tensor:
    """Integral over t of the voxel mean of ``|w_t|^2`` in squared voxels of the image, alike at every scale.

    ``w = L v`` is (B, T, D, *S) in voxels of its own grid, whose points lie ``scale`` voxels of the image
    apart; there the stencil of L has ``alpha / scale^2``. On the image's grid this is
    :func:`tvf_core.losses.lddmm_energy` of v.
    """
    return scale**2 * w.square().sum(2).mean()


def smooth(w: torch.Tensor, dim: int, alpha: float, gamma: float, beta: int) -> torch.Tensor:
    """``L^-1 w`` over the last ``dim`` axes of a tensor.

    This is the exact inverse of :func:`tvf_core.losses.lddmm_operator`: with mirrored borders the cosine
    transform (DCT-II) diagonalises its stencil. One small matrix per axis is much faster here than an FFT of
    the mirrored field.
    """
    axes, shape = range(-dim, 0), w.shape
    minus_laplacian, bases = w.new_zeros(()), []
    for axis in axes:
        n = shape[axis]
        k = torch.arange(n, device=w.device)
        turns = k[:, None] * (2 * k + 1) % (4 * n)  # whole numbers: the cosines stay exact in float32
        basis = (math.pi / (2 * n) * turns.to(w.dtype)).cos() * (2 / n) ** 0.5
        basis[0] *= 0.5**0.5
        bases.append(basis)
        eigenvalues = 2 - 2 * (math.pi / n * k.to(w.dtype)).cos()
        minus_laplacian = minus_laplacian + eigenvalues.view(-1, *[1] * (-axis - 1))

    def along(axis, matrix, field):
        return (matrix @ field.reshape(*shape[:axis], shape[axis], -1)).reshape(shape)

    for axis, basis in zip(axes, bases):
        w = along(axis, basis, w)
    w = w / (alpha * minus_laplacian + gamma) ** beta
    for axis, basis in zip(axes, bases):
        w = along(axis, basis.T, w)
    return w
