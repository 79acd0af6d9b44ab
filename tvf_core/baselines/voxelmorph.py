"""The U-Net of VoxelMorph (Balakrishnan et al. 2019) as the TransMorph experiments use it, 2D and 3D.

Kept to the part that a time-varying head needs: down to 1/16 of the resolution, up again to 1/4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

ENCODER = (16, 32, 32, 32)  # VM-2
DECODER = 32


def conv_relu(dim: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution of width 3 with bias, LeakyReLU(0.2): no normalisation anywhere."""
    conv = nn.Conv2d if dim == 2 else nn.Conv3d
    return nn.Sequential(conv(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(0.2))


class VoxelMorphBackbone(nn.Module):
    """Image pair ``(B, 2, *S)`` -> features ``(B, 32, *ceil(S / 4))``; any image size.

    Four convolutions of stride 2 (16, 32, 32, 32 channels); then convolution, nearest upsampling
    and the encoder's features of that level, twice, and a last convolution.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim, self.channels = dim, DECODER
        widths = (2, *ENCODER)
        self.down = nn.ModuleList(conv_relu(dim, a, b, stride=2) for a, b in zip(widths, ENCODER))
        self.up = nn.ModuleList(conv_relu(dim, c, DECODER) for c in (ENCODER[3], DECODER + ENCODER[2], DECODER + ENCODER[1]))

    def forward(self, pair):
        levels, x = [], pair
        for layer in self.down:
            x = layer(x)
            levels.append(x)
        x = self.up[0](x)
        for layer, skip in zip(self.up[1:], (levels[2], levels[1])):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = x[(..., *[slice(0, s) for s in skip.shape[2:]])]  # odd sizes: the last voxel has no partner
            x = layer(torch.cat([x, skip], dim=1))
        return x
