"""Linear maps as functions of few numbers, many at once: turns to try, and small changes to optimise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch


def turns_to_try(dim: int) -> torch.Tensor:
    """Rotations ``(T, D, D)`` of up to about 30 degrees, none of which is far from another."""
    if dim == 2:
        vectors = [(math.radians(a),) for a in range(-40, 41, 8)]
    else:
        step = math.radians(16)
        vectors = [np.multiply(v, step) for v in itertools.product((-1, 0, 1), repeat=3)]
        vectors += [np.multiply(v, 2 * step) for v in (*np.eye(3), *-np.eye(3))]
    return torch.matrix_exp(_skew(torch.tensor(np.array(vectors)), dim))


def _skew(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """Skew matrices ``(B, D, D)`` of rotation vectors ``(B, 3)``, in 2D of angles ``(B, 1)``."""
    result = vectors.new_zeros(len(vectors), dim, dim)
    pairs = ((1, 0),) if dim == 2 else ((2, 1), (0, 2), (1, 0))
    for k, (i, j) in enumerate(pairs):
        result[:, i, j], result[:, j, i] = vectors[:, k], -vectors[:, k]
    return result


def _symmetric(numbers: torch.Tensor, dim: int) -> torch.Tensor:
    """Symmetric matrices ``(B, D, D)``: one number is a multiple of the identity, else the triangle."""
    if numbers.shape[1] == 1:
        return numbers[:, :, None] * torch.eye(dim, dtype=numbers.dtype)
    result = numbers.new_zeros(len(numbers), dim, dim)
    for k, (i, j) in enumerate(itertools.combinations_with_replacement(range(dim), 2)):
        result[:, i, j] = result[:, j, i] = numbers[:, k]
    return result


def change(theta: torch.Tensor, middle: torch.Tensor, radius: float) -> torch.Tensor:
    """Matrices about the middle: shifts, turns and stretches, all in mm at the radius."""
    dim = len(middle)
    turns = dim * (dim - 1) // 2
    linear = torch.matrix_exp(_skew(theta[:, dim : dim + turns] / radius, dim))
    if theta.shape[1] > dim + turns:
        linear = linear @ torch.matrix_exp(_symmetric(theta[:, dim + turns :] / radius, dim))
    result = torch.eye(dim + 1, dtype=theta.dtype).repeat(len(theta), 1, 1)
    result[:, :-1, :-1] = linear
    result[:, :-1, -1] = middle + theta[:, :dim] - linear @ middle
    return result
