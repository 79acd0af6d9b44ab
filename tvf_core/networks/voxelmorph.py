"""VoxelMorph as the TransMorph experiments use it, 2D and 3D: VM-2 and VM-diff.

VM-2 (Balakrishnan et al. 2019, IEEE TMI 38) predicts a displacement. VM-diff (Dalca et al. 2019, Medical
Image Analysis 57) predicts a distribution of stationary velocities. Widths and layers are those of the copies
in the TransMorph repository, which the paper compared with; the current ``voxelmorph`` package is another
network. Any image size works, because every upsampled level is cropped to the size of its encoder level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .. import released
from ..checks import check_pair
from ..integrate import scaling_and_squaring
from .layers import RELEASED, STANDARD, Convention, predict

ENCODER = (16, 32, 32, 32)  # channels of the encoder of VM-2, from 1/2 to 1/16 of the resolution
DECODER = 32  # channels of the decoder
LOG_VARIANCE = -10.0  # log-variance that VM-diff predicts at the start of training


def conv_relu(dim: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution of width 3 with bias, then LeakyReLU(0.2), without normalisation."""
    conv = nn.Conv2d if dim == 2 else nn.Conv3d
    return nn.Sequential(conv(inputs, outputs, 3, stride, padding=1), nn.LeakyReLU(0.2))


def field_head(dim: int, inputs: int, std: float = 1e-5, bias: float = 0.0) -> nn.Module:
    """Convolution to D components whose output starts near ``bias`` everywhere."""
    layer = (nn.Conv2d if dim == 2 else nn.Conv3d)(inputs, dim, 3, padding=1)
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, bias)
    return layer


def join(x: torch.Tensor, skip: torch.Tensor, mode: str = "nearest") -> torch.Tensor:
    """Upsample ``x`` by 2, crop it to the size of ``skip`` (which may be odd), and concatenate ``skip``."""
    corners = {} if mode == "nearest" else {"align_corners": False}
    x = F.interpolate(x, scale_factor=2, mode=mode, **corners)
    return torch.cat([x[(..., *[slice(0, s) for s in skip.shape[2:]])], skip], dim=1)


class VoxelMorphBackbone(nn.Module):
    """Image pair ``(B, 2, *S)`` -> features ``(B, 32, *ceil(S / 4))``, for any image size.

    The encoder has four convolutions of stride 2 (16, 32, 32, 32 channels). The decoder repeats twice:
    convolution, nearest-neighbour upsampling, concatenation of the encoder's features; a convolution ends it.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim, self.channels = dim, DECODER
        widths = (2, *ENCODER)
        self.down = nn.ModuleList(conv_relu(dim, a, b, stride=2) for a, b in zip(widths, ENCODER))
        self.up = nn.ModuleList(
            conv_relu(dim, c, DECODER) for c in (ENCODER[3], DECODER + ENCODER[2], DECODER + ENCODER[1])
        )

    def forward(self, pair):
        return self.features(pair)[0]

    def features(self, pair):
        """Decoder features at 1/4 of the resolution and encoder features at 1/2."""
        levels, x = [], pair
        for layer in self.down:
            x = layer(x)
            levels.append(x)
        x = self.up[0](x)
        for layer, skip in zip(self.up[1:], (levels[2], levels[1])):
            x = layer(join(x, skip))
        return x, levels[0]


class VoxelMorph(nn.Module):
    """VM-2: predicts one displacement field at full resolution.

    Sources: Balakrishnan et al. 2019; widths as in the TransMorph repository (301,411 parameters in 3D).
    """

    convention = STANDARD

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.backbone = VoxelMorphBackbone(dim)
        self.up3 = conv_relu(dim, DECODER + ENCODER[0], DECODER)
        self.full = nn.Sequential(
            conv_relu(dim, DECODER + 2, DECODER), conv_relu(dim, DECODER, 16), conv_relu(dim, 16, 16)
        )
        self.flow = field_head(dim, 16)

    def forward(self, moving, fixed):
        """Images ``(B, 1, *S)`` in [0, 1] -> displacement ``(B, D, *S)`` in voxels, None for the velocity."""
        check_pair(moving, fixed, self.dim, values=False)
        pair = torch.cat([moving, fixed], dim=1)
        x, half = self.backbone.features(pair)
        return predict(self.flow, self.full(join(self.up3(join(x, half)), pair))), None


class VoxelMorphDiff(nn.Module):
    """VM-diff: predicts mean and log-variance of a stationary velocity on the half grid; the map is its flow.

    Parameters
    ----------
    dim : 2 or 3.
    convention : ``STANDARD``: the velocity is per unit time, and the map of the half grid is doubled in size
        and value. ``RELEASED``, as in the TransMorph repository: the field is squared 7 times without
        dividing it by 2^7 first, the map is doubled in size only, and no velocity is returned.

    Notes
    -----
    In training the velocity is drawn from the predicted distribution; in evaluation it is the mean
    (Dalca et al. 2019). The network has 307,878 parameters in 3D.
    """

    def __init__(self, dim: int, convention: Convention = STANDARD):
        super().__init__()
        self.dim, self.mode = dim, "bilinear" if dim == 2 else "trilinear"
        self.released = convention is RELEASED
        self.convention = STANDARD  # its warp has matched corners in either case
        widths = (2, ENCODER[0], *[DECODER] * 4)
        self.encoders = nn.ModuleList(
            conv_relu(dim, a, b, stride=min(2, 1 + k)) for k, (a, b) in enumerate(zip(widths, widths[1:]))
        )
        self.decoders = nn.ModuleList(
            conv_relu(dim, a, b)
            for a, b in ((DECODER, DECODER), *[(2 * DECODER, DECODER)] * 3, (DECODER, 16))
        )
        self.flow_mean = field_head(dim, 16)
        self.flow_sigma = field_head(dim, 16, std=1e-10, bias=LOG_VARIANCE)

    def distribution(self, moving, fixed):
        """Mean and log-variance of the velocity, each ``(B, D, *ceil(S / 2))``."""
        check_pair(moving, fixed, self.dim, values=False)
        levels, x = [], torch.cat([moving, fixed], dim=1)
        for layer in self.encoders:
            x = layer(x)
            levels.append(x)
        x = self.decoders[0](x)
        for layer, skip in zip(self.decoders[1:4], levels[3:0:-1]):
            x = layer(join(x, skip, self.mode))
        x = self.decoders[4](x)
        return predict(self.flow_mean, x), predict(self.flow_sigma, x)

    def half_displacement(self, velocity):
        """Flow of a velocity ``(B, D, *ceil(S / 2))``: displacement on the half grid, in its voxels."""
        return scaling_and_squaring(
            velocity * 2**7 if self.released else velocity, padding="zeros" if self.released else "border"
        )

    def displacement(self, velocity, shape):
        """Flow of a velocity ``(B, D, *ceil(S / 2))``: displacement on the image grid of size ``shape``."""
        half = self.half_displacement(velocity)
        return released.double(half, shape) if self.released else STANDARD.double(half, shape)

    def forward(self, moving, fixed):
        """Images ``(B, 1, *S)`` in [0, 1] -> displacement ``(B, D, *S)`` and velocity ``(B, 1, D, *S')``.

        The displacement is in voxels. The velocity lives on the half grid, S' = ceil(S / 2), in its voxels
        per unit time; for ``RELEASED`` it is None.
        """
        mean, _ = self.distribution(moving, fixed)
        return self.displacement(mean, moving.shape[2:]), None if self.released else mean[:, None]
