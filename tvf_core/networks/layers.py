"""Parts that the networks share: convolution units, registration heads, rules of resampling and warping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .. import fields, released
from ..fields import at_least_float32

HEAD_CHANNELS = 16


@dataclass(frozen=True)
class Convention:
    """How a network halves images, doubles fields and warps images.

    Attributes
    ----------
    halve : image -> image at half resolution.
    double : field on the half grid, image shape -> field on the image grid.
    sampled : displacement -> the displacement that the network's warp applies in effect.
    padding : how the warp reads outside the image; see :func:`tvf_core.fields.sample`.
    """

    halve: Callable
    double: Callable
    sampled: Callable
    padding: str = "zeros"

    def warp(self, image, displacement):
        return fields.warp(image, self.sampled(displacement), padding=self.padding)


def as_given(displacement):
    """The displacement itself: the ``sampled`` of a warp that applies what it is given."""
    return displacement


STANDARD = Convention(fields.halve, fields.double, as_given)
RELEASED = Convention(released.halve, released.double, released.sampled)


def conv(dim: int, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
    """Convolution of width 3 that keeps the size."""
    return (nn.Conv2d if dim == 2 else nn.Conv3d)(inputs, outputs, 3, padding=1, bias=bias)


class InstanceNorm(nn.Module):
    """Normalise every channel of every image to mean 0 and variance 1, without parameters.

    A channel of one voxel becomes 0: the voxel is its own mean.

    Off CUDA this is a group norm with one channel per group: it computes the same sums and is two to three
    times as fast on a CPU as PyTorch's instance norm. On CUDA a group norm would keep only a few of the
    multiprocessors busy (an expectation from its design, not a measurement).
    """

    def forward(self, x):
        if x.shape[2:].numel() == 1:  # PyTorch refuses it
            return x - x
        if x.is_cuda:
            return F.instance_norm(x)
        # In the channels-last memory format the kernel loses digits, so the input is made contiguous.
        return F.group_norm(x.contiguous(), x.shape[1])


def conv_unit(dim: int, inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, instance normalisation, LeakyReLU(0.01)."""
    return nn.Sequential(conv(dim, inputs, outputs), InstanceNorm(), nn.LeakyReLU(0.01, inplace=True))


class DecoderBlock(nn.Module):
    """Decoder block: upsample by 2, concatenate the skip features, apply two convolution units."""

    def __init__(self, dim: int, inputs: int, outputs: int, skip: int):
        super().__init__()
        self.mode = "bilinear" if dim == 2 else "trilinear"
        self.conv1 = conv_unit(dim, inputs + skip, outputs)
        self.conv2 = conv_unit(dim, outputs, outputs)

    def upsample(self, x, shape):
        x = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)
        return x[(..., *[slice(0, s) for s in shape])]  # at odd sizes one voxel is too many

    def forward(self, x, skip):
        return self.conv2(self.conv1(torch.cat([self.upsample(x, skip.shape[2:]), skip], dim=1)))


def registration_head(dim: int, inputs: int = HEAD_CHANNELS) -> nn.Sequential:
    """Convolution to D components with weights so small that the first map is nearly the identity."""
    layer = conv(dim, inputs, dim, bias=True)
    nn.init.normal_(layer.weight, std=1e-5)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer)


def predict(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a registration head in float32 or wider: half precision is too coarse for voxel coordinates.

    That holds under autocast, and for a network whose weights were made half precision.
    """
    own = next(head.parameters())
    dtype = at_least_float32(own)
    with torch.autocast(x.device.type, enabled=False):
        if own.dtype == dtype:
            return head(x.to(dtype))
        wide = {name: p.to(dtype) for name, p in head.named_parameters()}
        return torch.func.functional_call(head, wide, x.to(dtype))
