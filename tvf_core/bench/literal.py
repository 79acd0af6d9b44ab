"""Slow forms that the fast ones must equal, written as the released code computes them.

They use dense convolutions for the local sums, one channel per label, explicit attention scores with a mask
made at every call, and a decoder that upsamples and concatenates at every time step. ``tvf bench`` compares
with them; nothing else uses them.
"""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import nn

from .. import fields, released
from ..networks.layers import InstanceNorm
from ..networks.swin import WindowAttention, from_windows, to_windows
from ..networks.time_varying import TimeVaryingVelocity


def lncc(a: torch.Tensor, b: torch.Tensor, window: int = 9, eps: float = 1e-5) -> torch.Tensor:
    """Local NCC by five dense convolutions with a kernel of ones; all maps are kept for the backward pass."""
    rank = a.dim() - 2
    kernel = torch.ones(1, 1, *[window] * rank, dtype=a.dtype, device=a.device)
    convolve = F.conv2d if rank == 2 else F.conv3d
    sum_a, sum_b, sum_aa, sum_bb, sum_ab = (
        convolve(x, kernel, padding=window // 2) for x in (a, b, a * a, b * b, a * b)
    )
    n = window**rank
    mean_a, mean_b = sum_a / n, sum_b / n
    cross = sum_ab - mean_b * sum_a - mean_a * sum_b + mean_a * mean_b * n
    var_a = sum_aa - 2 * mean_a * sum_a + mean_a * mean_a * n
    var_b = sum_bb - 2 * mean_b * sum_b + mean_b * mean_b * n
    return -(cross * cross / (var_a * var_b + eps)).mean()


def soft_dice(moving_labels, displacement, fixed_labels, labels, at_once: bool = False) -> torch.Tensor:
    """Soft Dice of one-hot maps, warped one by one as in the released code, or ``at_once`` in one warp.

    ``labels`` are the numbers from 0 on. The mean is over those that occur in a pair.
    """
    moving, fixed = (
        F.one_hot(x[:, 0].long(), len(labels)).movedim(-1, 1).contiguous()
        for x in (moving_labels, fixed_labels)
    )
    if at_once:
        warped = fields.warp(moving.to(displacement.dtype), displacement)
    else:
        warped = torch.cat(
            [fields.warp(moving[:, k : k + 1].to(displacement.dtype), displacement) for k in labels],
            dim=1,
        )
    axes = tuple(range(2, warped.dim()))
    overlap, occurs = (warped * fixed).sum(axes), (moving + fixed).amax(axes) > 0
    scores = 2 * overlap / ((warped * warped).sum(axes) + (fixed * fixed).sum(axes) + 1e-5)
    return 1 - (scores.sum(1) / occurs.sum(1)).mean()


def flow(velocity: torch.Tensor) -> torch.Tensor:
    """Euler steps of the map, ``u <- u + v_t o (Id + u) / N``; each step makes its own grid."""
    u = torch.zeros_like(velocity[:, 0])
    for k in range(velocity.shape[1]):
        u = u + fields.warp(velocity[:, k], u, padding="border") / velocity.shape[1]
    return u


class Attention(WindowAttention):
    """Window attention with scores, bias and mask as tensors of their own; each call makes the mask anew.

    (The released code makes the mask once for the blocks of a stage.)
    """

    def forward(self, x):
        tokens = to_windows(x, self.window)
        batch, windows, volume, channels = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, windows, volume, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.relative_position_bias_table[self.index].permute(2, 0, 1)
        if self.shifted:
            scores = scores + shift_mask(x.shape[1:-1], self.window, x.device)
        out = scores.softmax(-1) @ v
        out = self.proj(out.transpose(2, 3).reshape(batch, windows, volume, channels))
        return from_windows(out, self.window, x.shape[1:-1])


def shift_mask(shape, window: tuple[int, ...], device=None) -> torch.Tensor:
    """Additive mask (windows, 1, tokens, tokens) of a rolled volume: -100 between tokens of two regions."""
    region = torch.zeros(1, *shape, 1, device=device)
    cuts = [(slice(0, -w), slice(-w, -(w // 2)), slice(-(w // 2), None)) for w in window]
    for number, where in enumerate(itertools.product(*cuts)):
        region[(0, *where)] = number
    region = to_windows(region, window)[0, :, :, 0]
    return torch.where(region[:, None, :] != region[:, :, None], -100.0, 0.0)[:, None]


class Norm(InstanceNorm):
    """Instance normalisation by PyTorch's own function."""

    def forward(self, x):
        return F.instance_norm(x)


class Velocity(TimeVaryingVelocity):
    """TM-TVF whose decoder upsamples and concatenates at each step, and integrates displacements."""

    def decode(self, features, moving, fixed):
        moving_half, fixed_half = self.convention.halve(moving), self.convention.halve(fixed)
        warped, u, velocities = moving_half, None, []
        for context, block, head in zip(self.cs, self.up3s, self.reg_heads):
            if u is not None:
                warped = self.convention.warp(moving_half, u)
            v = self.steps * head(block(features, context(torch.cat([warped, fixed_half], dim=1)))).float()
            u = torch.zeros_like(v) if u is None else u
            if self.method == "released":
                u = released.advance(v / self.steps, u)
            elif self.method == "euler":
                u = u + fields.warp(v, u, padding="border") / self.steps
            else:
                raise ValueError(
                    f"the literal decoder takes Euler steps or the released ones, not {self.method}"
                )
            velocities.append(v)
        return self.convention.double(u, moving.shape[2:]), torch.stack(velocities, dim=1)


def network(fast: nn.Module) -> nn.Module:
    """Copy of a network with the same weights whose layers are replaced by the literal ones."""
    slow = copy.deepcopy(fast)
    for module in slow.modules():
        for ours, theirs in (
            (WindowAttention, Attention),
            (InstanceNorm, Norm),
            (TimeVaryingVelocity, Velocity),
        ):
            if type(module) is ours:
                module.__class__ = theirs
    return slow
