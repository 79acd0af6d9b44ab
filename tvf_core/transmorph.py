"""TransMorph (Chen et al. 2022, Medical Image Analysis 82): Swin encoder, convolutional decoder, one field.

The decoder down to a quarter of the resolution is a module of its own, because the time-varying
model (``tvf.py``) shares it. Widths, layers and parameter counts are those of the released code, 2D
and 3D; only the convolution that its half-resolution variant never uses is left out. How images are
halved, fields doubled and images warped are not weights: a :class:`Convention` says whether in the way
of this package (``fields``) or in that of the released code (``released``), which published weights need.
Any image size works: every level pads inside and crops back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from . import fields, released
from .checks import check_pair, one_of
from .fields import at_least_float32
from .swin import Swin, SwinConfig

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


def _as_given(displacement):
    return displacement


STANDARD = Convention(fields.halve, fields.double, _as_given)
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
        return F.group_norm(x.contiguous(), x.shape[1])  # contiguous: with channels last the kernel loses digits


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


class TransMorphBackbone(nn.Module):
    """Image pair ``(B, 2, *S)`` -> features ``(B, C, *ceil(S / 4))``: encoder and three decoder blocks."""

    def __init__(self, config: SwinConfig):
        super().__init__()
        c, dim = config.embed, config.dim
        self.dim, self.channels = dim, c
        self.transformer = Swin(config)
        self.up0 = DecoderBlock(dim, 8 * c, 4 * c, 4 * c)
        self.up1 = DecoderBlock(dim, 4 * c, 2 * c, 2 * c)
        self.up2 = DecoderBlock(dim, 2 * c, c, c)

    def forward(self, pair):
        if max(pair.shape[2:]) <= 16:
            raise ValueError(f"image size {tuple(pair.shape[2:])}: at least one axis must exceed 16 voxels")
        f0, f1, f2, f3 = self.transformer(pair)
        return self.up2(self.up1(self.up0(f3, f2), f1), f0)


class TransMorph(nn.Module):
    """TransMorph: one displacement field.

    Parameters
    ----------
    config : SwinConfig
    head : ``full`` predicts at image resolution (the faces), ``half`` at half resolution and
        upsamples (the OASIS variant).
    convention : ``STANDARD``, where the values are voxels of the grid they live on, or ``RELEASED``.
    """

    def __init__(self, config: SwinConfig, head: str = "full", convention: Convention = STANDARD):
        super().__init__()
        c, dim = config.embed, config.dim
        self.dim, self.head = dim, one_of(head, ("full", "half"), "head")
        # The released full-resolution variant warps rightly.
        self.convention = replace(convention, sampled=_as_given) if head == "full" else convention
        self.backbone = TransMorphBackbone(config)
        self.c1 = conv_unit(dim, 2, c // 2)
        if head == "full":
            self.c2 = conv_unit(dim, 2, HEAD_CHANNELS)
            self.up3 = DecoderBlock(dim, c, c // 2, c // 2)
            self.up4 = DecoderBlock(dim, c // 2, HEAD_CHANNELS, HEAD_CHANNELS)
        else:
            self.up3 = DecoderBlock(dim, c, HEAD_CHANNELS, c // 2)
        self.reg_head = registration_head(dim)

    def forward(self, moving, fixed):
        """Images ``(B, 1, *S)`` in [0, 1] -> displacement ``(B, D, *S)`` in voxels, and None for velocity."""
        check_pair(moving, fixed, self.dim, values=False)
        pair = torch.cat([moving, fixed], dim=1)
        x = self.up3(self.backbone(pair), self.c1(self.convention.halve(pair)))
        if self.head == "half":
            return self.convention.double(predict(self.reg_head, x), moving.shape[2:]), None
        return predict(self.reg_head, self.up4(x, self.c2(pair))), None
