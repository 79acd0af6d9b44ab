"""CycleMorph (Kim et al. 2021, Medical Image Analysis 71), 2D and 3D: the network of one direction.

Training uses two of these, from A to B and from B to A, and ties them by cycle and identity losses
(:class:`tvf_core.losses.objectives.CycleObjective`); registration needs the first alone.
"""

from __future__ import annotations

import torch
from torch import nn

from ..checks import check_pair
from .layers import STANDARD, predict
from .voxelmorph import conv_relu, field_head

WIDTHS = (16, 32, 32, 32, 32)  # from full resolution to 1/16
LAST = 8


class CycleMorph(nn.Module):
    """U-Net that predicts one displacement field at full resolution, for any image size.

    It has 361,299 parameters in 3D.

    Notes
    -----
    The published 3D script initialises *every* convolution from N(0, 1e-5), the copy in the TransMorph
    repository all of them with PyTorch's defaults. Here only the output layer starts near zero, so that the
    first map is nearly the identity.
    """

    convention = STANDARD

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        up = nn.ConvTranspose2d if dim == 2 else nn.ConvTranspose3d
        self.down = nn.ModuleList(
            conv_relu(dim, a, b, stride=min(2, 1 + k)) for k, (a, b) in enumerate(zip((2, *WIDTHS), WIDTHS))
        )
        widths = (*WIDTHS[:0:-1][:3], LAST)  # channels before upsampling from 1/16, 1/8, 1/4, 1/2
        self.up = nn.ModuleList(up(c, c, 3, stride=2, padding=1, output_padding=1) for c in widths)
        self.keep = conv_relu(dim, 32, LAST)
        self.joined = nn.ModuleList(conv_relu(dim, c + skip, c) for c, skip in zip(widths, WIDTHS[3::-1]))
        self.flow = field_head(dim, LAST)

    def forward(self, moving, fixed):
        """Images ``(B, 1, *S)`` in [0, 1] -> displacement ``(B, D, *S)`` in voxels, None for the velocity."""
        check_pair(moving, fixed, self.dim, values=False)
        levels, x = [], torch.cat([moving, fixed], dim=1)
        for layer in self.down:
            x = layer(x)
            levels.append(x)
        for k, (up, layer, skip) in enumerate(zip(self.up, self.joined, levels[3::-1])):
            if k == 3:
                x = self.keep(x)
            # At odd sizes the upsampled map has one voxel too many.
            x = up(x)[(..., *[slice(0, s) for s in skip.shape[2:]])]
            x = layer(torch.cat([skip, x], dim=1))
        return predict(self.flow, x), None
