"""What the networks share: convolution units, registration heads, and the convention of halving, doubling and warping."""

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
    """How a network halves images and doubles fields, ``sampled(u)``, what its warp makes of a displacement, and
    what that warp reads outside the image (``padding``, see :func:`tvf_core.fields.sample`)."""

    halve: Callable
    double: Callable
    sampled: Callable
    padding: str = "zeros"

    def warp(self, image, displacement):
        return fields.warp(image, self.sampled(displacement), padding=self.padding)


def as_given(displacement):
    return displacement


STANDARD = Convention(fields.halve, fields.double, as_given)
RELEASED = Convention(released.halve, released.double, released.sampled)


def conv(dim: int, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
    """Convolution of width 3 that keeps the size."""
    return (nn.Conv2d if dim == 2 else nn.Conv3d)(inputs, outputs, 3, padding=1, bias=bias)


class InstanceNorm(nn.Module):
    """Every channel of every image to mean 0 and variance 1, without parameters.

    Where there is no CUDA as a group norm with one channel to a group: the same sums, two to three times as fast on
    a processor as PyTorch's instance norm. On CUDA (by its design; not measured) it would keep only a few units busy.
    """

    def forward(self, x):
        if x.is_cuda:
            return F.instance_norm(x)
        return F.group_norm(
            x.contiguous(), x.shape[1]
        )  # contiguous: with channels last the kernel loses digits


def conv_unit(dim: int, inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, instance normalisation, LeakyReLU(0.01)."""
    return nn.Sequential(conv(dim, inputs, outputs), InstanceNorm(), nn.LeakyReLU(0.01, inplace=True))


class DecoderBlock(nn.Module):
    """Upsample twice, append the skip features, two convolution units."""

    def __init__(self, dim: int, inputs: int, outputs: int, skip: int):
        super().__init__()
        self.mode = "bilinear" if dim == 2 else "trilinear"
        self.conv1 = conv_unit(dim, inputs + skip, outputs)
        self.conv2 = conv_unit(dim, outputs, outputs)

    def upsample(self, x, shape):
        x = F.interpolate(x, scale_factor=2, mode=self.mode, align_corners=False)
        return x[(..., *[slice(0, s) for s in shape])]  # odd sizes: the last voxel has no partner

    def forward(self, x, skip):
        return self.conv2(self.conv1(torch.cat([self.upsample(x, skip.shape[2:]), skip], dim=1)))


def registration_head(dim: int, inputs: int = HEAD_CHANNELS) -> nn.Sequential:
    """Convolution to D components, started so small that the first map is nearly the identity."""
    layer = conv(dim, inputs, dim, bias=True)
    nn.init.normal_(layer.weight, std=1e-5)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer)


def predict(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Field of a registration head, float32 also under autocast: half precision would move voxels in steps."""
    with torch.autocast(x.device.type, enabled=False):
        u = head(x.to(next(head.parameters()).dtype))
        return u.to(at_least_float32(u))
