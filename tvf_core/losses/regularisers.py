"""Losses that keep a map smooth: diffusion, the LDDMM energy, and the prior of VM-diff."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..checks import check_field, check_number
from ..fields import at_least_float32


def diffusion(field: torch.Tensor) -> torch.Tensor:
    """Mean squared forward difference of a field ``(B, D, *S)``, averaged over the axes.

    An axis of one voxel contributes 0, because nothing changes along it.
    The methods apply it to the final displacement, as the released code does; the paper's eq. 3
    writes it for the velocity at the end point.
    """
    rank = check_field(field, "field")
    return sum(_differences(field, axis).square().mean() for axis in range(rank)) / rank


def _differences(field: torch.Tensor, axis: int) -> torch.Tensor:
    """Forward differences of a field along a spatial axis; zeros where the axis has one voxel."""
    return torch.diff(field, dim=2 + axis) if field.shape[2 + axis] > 1 else field - field


def lddmm_energy(
    velocity: torch.Tensor, alpha: float = 0.01, gamma: float = 0.01, beta: int = 2
) -> torch.Tensor:
    """Energy of a path of velocities: integral over t of the voxel mean of ``|L v_t|^2``.

    It is the first term of the paper's eq. 1 and eq. 2 (Chen, Frey & Du 2022; Beg et al. 2005).

    Parameters
    ----------
    velocity : (B, T, D, *S) voxels per unit time, in voxels of its own grid.
    alpha, gamma, beta : ``L = (-alpha Laplacian + gamma)^beta``; beta is how often the operator is
        applied. The Laplacian is the 2D + 1 point stencil with unit spacing and mirrored borders
        (zero normal derivative), so a constant field is penalised by gamma alone.

    Notes
    -----
    For B paths of T fields on H voxels each::

        E = 1 / (B T H) * sum over paths, fields, voxels and components of (L v_t)^2

    TM-TVF_LDDMM minimises ``mse + label_mse + w E``. The paper's eq. 2 has no weight. It is the sum of
    ``||L v_t||^2`` over N = T steps, plus ``||I_0 o phi_1 - I_1||^2`` and the mean of the same over the
    labels. Its v_t is the motion of one interval, which is v_t / T here. With sums over voxels as norms,
    the first term is therefore ``H / T * E`` and the second, for images of V voxels, ``V * mse``. (The
    integral in eq. 1 is over a velocity per unit time and gives ``H * E``.) Which w is that of eq. 2
    depends on how its norms are read. H is ``V / 2^D`` on the half grid of an even size, and the numbers
    are for N = 8:

    - both as sums over voxels: ``w = H / (T V) = 1 / (2^D T)``, that is 1/32 in 2D and 1/64 in 3D;
    - both as means over voxels: ``w = 1 / T``, that is 1/8;
    - that of the velocities as a sum, that of the images as a mean: ``w = H / T``, that is 2,048 on the
      half grid of a face of 256 x 256 pixels and 107,520 on that of an OASIS scan of 160 x 192 x 224
      voxels.

    The released script adds a sum to a mean in this way, though of another power
    (:func:`tvf_core.released.lddmm_energy`). From this third reading come the weights in
    :mod:`tvf_core.methods`, rounded: 2e3 in 2D and 1e5 in 3D.
    """
    v = velocity.flatten(0, 1)
    check_field(v, "velocity at one time")
    return lddmm_operator(v, alpha, gamma, beta).square().sum(1).mean()


def lddmm_operator(
    field: torch.Tensor, alpha: float = 0.01, gamma: float = 0.01, beta: int = 2
) -> torch.Tensor:
    """Apply the operator L of :func:`lddmm_energy`, with its stencil and borders, to a field (B, D, *S)."""
    check_number(beta, "beta", 1, whole=True)
    rank = check_field(field, "field")
    for _ in range(beta):
        field = gamma * field - alpha * _laplacian(field, rank)
    return field


def _laplacian(v: torch.Tensor, rank: int) -> torch.Tensor:
    padded = F.pad(v, [1, 1] * rank, mode="replicate")
    inner = (..., *[slice(1, -1)] * rank)
    total = -2 * rank * v
    for axis in range(rank):
        for side in (slice(0, -2), slice(2, None)):
            total = total + padded[(*inner[: axis + 1], side, *inner[axis + 2 :])]
    return total


def velocity_kl(mean: torch.Tensor, log_variance: torch.Tensor, prior: float) -> torch.Tensor:
    """Kullback-Leibler divergence of a Gaussian velocity from a smooth prior (Dalca et al. 2019).

    The divergence is per voxel and up to a constant. The velocity is N(mean, diag(variance)), the prior is
    N(0, Lambda^-1) with ``Lambda = prior (D - A)``, the Laplacian of the grid: A connects neighbouring
    voxels, D counts each voxel's neighbours. This gives ``2 KL = trace(prior D variance) - log |variance| +
    prior * sum over neighbours of (difference of means)^2 + constant``.

    Parameters
    ----------
    mean, log_variance : (B, D, *S), of one shape.
    prior : lambda; a larger value means a smoother prior.

    Notes
    -----
    At the same lambda, the last sum has a weight 2 D times smaller in the authors' code (which halves it and
    divides it by the number of axes once more). The copy in the TransMorph repository leaves out further
    terms of the divergence.
    """
    rank, voxels = check_field(mean, "mean"), mean[0, 0].numel()
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"mean {tuple(mean.shape)} and log_variance {tuple(log_variance.shape)} must have the same shape"
        )
    # A sum over an image is too large for half precision.
    mean, log_variance = (x.to(at_least_float32(x)) for x in (mean, log_variance))
    degree = torch.zeros_like(mean[0, 0])
    for axis in range(rank):
        degree.narrow(axis, 1, degree.shape[axis] - 1).add_(1)
        degree.narrow(axis, 0, degree.shape[axis] - 1).add_(1)
    spread = (prior * degree * log_variance.exp() - log_variance).sum()
    roughness = sum(_differences(mean, axis).square().sum() for axis in range(rank))
    return (spread + prior * roughness) / (2 * voxels * len(mean))
