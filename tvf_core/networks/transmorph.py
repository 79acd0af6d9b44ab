"""TransMorph (Chen et al. 2022, Medical Image Analysis 82): Swin encoder, convolutional decoder, one field.

The encoder and the decoder up to a quarter of the resolution form a module of their own, because the
time-varying model (:mod:`tvf_core.networks.time_varying`) shares them. Widths, layers and parameter counts
are those of the released code, 2D and 3D; only the convolution that its half-resolution variant never uses is
left out. The weights do not fix how images are halved, fields doubled and images warped: a
:class:`~tvf_core.networks.layers.Convention` chooses between the rules of this package (``fields``) and those
of the released code (``released``), which published weights need. Any image size works, because every level
pads its input and crops its output. In an image of at most 16 voxels along each axis, the coarse levels that
have one voxel add nothing: instance normalisation makes it 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..checks import check_pair, one_of
from .layers import (
    HEAD_CHANNELS,
    STANDARD,
    Convention,
    DecoderBlock,
    as_given,
    conv_unit,
    predict,
    registration_head,
)
from .swin import Swin, SwinConfig


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
        f0, f1, f2, f3 = self.transformer(pair)
        return self.up2(self.up1(self.up0(f3, f2), f1), f0)


class TransMorph(nn.Module):
    """TransMorph: predicts one displacement field.

    Parameters
    ----------
    config : SwinConfig
    head : ``full`` predicts at image resolution (used for the faces), ``half`` predicts at half resolution
        and upsamples (the OASIS variant).
    convention : ``STANDARD``, where the values are voxels of the grid they live on, or ``RELEASED``.
    """

    def __init__(self, config: SwinConfig, head: str = "full", convention: Convention = STANDARD):
        super().__init__()
        c, dim = config.embed, config.dim
        self.dim, self.head = dim, one_of(head, ("full", "half"), "head")
        # The warp of the released full-resolution variant has no mismatched corners.
        self.convention = replace(convention, sampled=as_given) if head == "full" else convention
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
        """Images ``(B, 1, *S)`` in [0, 1] -> displacement ``(B, D, *S)`` in voxels, None for the velocity."""
        check_pair(moving, fixed, self.dim, values=False)
        pair = torch.cat([moving, fixed], dim=1)
        x = self.up3(self.backbone(pair), self.c1(self.convention.halve(pair)))
        if self.head == "half":
            return self.convention.double(predict(self.reg_head, x), moving.shape[2:]), None
        return predict(self.reg_head, self.up4(x, self.c2(pair))), None
