"""LapIRN (Mok & Chung 2020, MICCAI) and conditional LapIRN (Mok & Chung 2021, MICCAI), 2D and 3D.

Three levels, at 1/4, 1/2 and full resolution, each add a correction to the upsampled field of the level
below. The paper's Table 2 names the first method and cites the second. Inside the network, fields are in
normalised coordinates as in the authors' code (-1 and 1 are the first and last voxel), which need no
rescaling between levels; their components are in the order of the axes. The network's outputs are in voxels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from .. import fields
from ..checks import check_pair
from ..fields import average_down
from ..integrate import scaling_and_squaring
from .layers import STANDARD, predict

# Size of the network -> "start channel" of the authors. They published 7, and 4 for the "lite" network.
START_CHANNELS = {"tiny": 1, "demo": 4, "small": 4, "base": 7, "large": 7, "huge": 8}
RANGE = 0.4  # largest correction by one level, as a part of half the image size
LATENT = 64  # width of the latent code that steers conditional normalisation
WEIGHT_ONE = 0.1  # smoothness code of the published tests of conditional LapIRN; it stands for a weight of 1


def conv(dim: int, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """Convolution of width 3 without bias."""
    return (nn.Conv2d if dim == 2 else nn.Conv3d)(inputs, outputs, 3, stride, padding=1, bias=False)


def voxels(field: torch.Tensor) -> torch.Tensor:
    """Convert a field from normalised coordinates to voxels of its grid."""
    half = field.new_tensor(field.shape[2:]).sub(1).div(2)
    return field * half.view(1, -1, *[1] * (field.dim() - 2))


def read(image: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Warp an image by a displacement that may live on a coarser grid; the border value continues outside.

    Parameters
    ----------
    image : (B, C, *S).
    displacement : (B, D, *S') voxels of its own grid, whose first and last voxels coincide with the image's.
        Where that grid has one voxel along an axis, this voxel lies in the middle.

    Returns
    -------
    (B, C, *S') on the grid of the displacement.
    """
    points = (
        fields.identity_grid(displacement.shape[2:], displacement.device, displacement.dtype) + displacement
    )
    ratio = [(a - 1) / max(b - 1, 1) for a, b in zip(image.shape[2:], displacement.shape[2:])]
    points = points * points.new_tensor(ratio).view(1, -1, *[1] * (points.dim() - 2))
    if 1 in displacement.shape[2:]:
        middle = [(a - 1) / 2 * (b == 1) for a, b in zip(image.shape[2:], displacement.shape[2:])]
        points = points + points.new_tensor(middle).view(1, -1, *[1] * (points.dim() - 2))
    return fields.sample(image, points, padding="border")


class ConditionalNorm(nn.Module):
    """Instance normalisation whose scale and shift are computed from a latent code (Mok & Chung 2021)."""

    def __init__(self, channels: int):
        super().__init__()
        self.style = nn.Linear(LATENT, 2 * channels)

    def forward(self, x, latent):
        gain, shift = self.style(latent).view(len(latent), 2, -1, *[1] * (x.dim() - 2)).unbind(1)
        one = x.shape[2:].numel() == 1  # the voxel is its own mean; PyTorch refuses it
        return (x - x if one else F.instance_norm(x)) * (1 + gain) + shift


class ResidualBlock(nn.Module):
    """Residual pre-activation block of two convolutions, with conditional normalisation if asked for."""

    def __init__(self, dim: int, channels: int, conditional: bool):
        super().__init__()
        self.conv1, self.conv2 = (conv(dim, channels, channels) for _ in range(2))
        self.conditional = conditional
        if conditional:
            widths = (1, *[LATENT] * 4)
            self.mapping = nn.Sequential(
                *[layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
            )
            self.norm1, self.norm2 = ConditionalNorm(channels), ConditionalNorm(channels)

    def forward(self, x, code):
        y = x
        latent = self.mapping(code) if self.conditional else None
        for convolve, norm in ((self.conv1, "norm1"), (self.conv2, "norm2")):
            if self.conditional:
                y = getattr(self, norm)(y, latent)
            y = convolve(F.leaky_relu(y, 0.2))
        return x + y


class Level(nn.Module):
    """Network of one level: image pair, upsampled field -> field correction, embedding for the next level."""

    def __init__(self, dim: int, inputs: int, channels: int, conditional: bool):
        super().__init__()
        up = nn.ConvTranspose2d if dim == 2 else nn.ConvTranspose3d
        self.encoder = nn.Sequential(
            conv(dim, inputs, channels), nn.LeakyReLU(0.2), conv(dim, channels, channels)
        )
        self.down = conv(dim, channels, channels, stride=2)
        self.blocks = nn.ModuleList(ResidualBlock(dim, channels, conditional) for _ in range(5))
        self.up = up(channels, channels, 2, stride=2, bias=False)
        self.output = nn.Sequential(
            conv(dim, 2 * channels, channels), nn.LeakyReLU(0.2), conv(dim, channels, dim)
        )
        # This start is our choice: a new level begins with the field of the level below.
        nn.init.normal_(self.output[2].weight, std=1e-5)

    def forward(self, x, embedding, code):
        features = self.encoder(x)
        y = self.down(features)
        if embedding is not None:
            y = y + embedding
        for block in self.blocks:
            y = F.leaky_relu(block(y, code), 0.2)
        # At odd sizes the upsampled map has one voxel too many.
        y = self.up(y)[(..., *[slice(0, s) for s in features.shape[2:]])]
        field = predict(self.output[2], self.output[:2](torch.cat([y, features], dim=1)))
        return RANGE * F.softsign(field).flip(1), y  # released weights give the last axis first


class LapIRN(nn.Module):
    """Laplacian pyramid of three levels, for any image size.

    At a level whose grid has one voxel along an axis, nothing moves along it.

    Parameters
    ----------
    dim : 2 or 3.
    start : "start channel" of the authors; layers have four times as many channels. The network has 923,748
        parameters for a start of 7 in 3D.
    diffeomorphic : the sum of the levels is a stationary velocity, and the map is its flow; otherwise the sum
        is a displacement.
    conditional : a smoothness code in [0, 1] steers every residual block; it stands for a smoothness weight
        of ten times the code.

    Attributes
    ----------
    code : float
        Smoothness code with which a conditional network registers; it may be changed at any time.
    """

    convention = replace(STANDARD, padding="border")

    def __init__(self, dim: int, start: int = 7, diffeomorphic: bool = False, conditional: bool = False):
        super().__init__()
        self.dim, self.diffeomorphic = dim, diffeomorphic
        self.conditional, self.code = conditional, WEIGHT_ONE
        self.levels = nn.ModuleList(Level(dim, 2 + dim * (k > 0), 4 * start, conditional) for k in range(3))

    def forward(self, moving, fixed):
        """Images ``(B, 1, *S)`` in [0, 1] -> displacement ``(B, D, *S)``, velocity ``(B, 1, D, *S)`` or None.

        Both are in voxels.
        """
        return self.pyramid(moving, fixed)[-1]

    def pyramid(self, moving, fixed, levels: int = 3, frozen: bool = False, code=None):
        """Displacement and velocity (or None) of each of the coarsest ``levels`` levels, coarsest first.

        Fields are in voxels of the grid of their level.

        Parameters
        ----------
        moving, fixed : (B, 1, *S).
        levels : 1 to 3.
        frozen : compute no gradients for the levels below the last, as at the start of each stage of
            training.
        code : (B, 1) smoothness codes of a conditional network; the default is the network's own code.
        """
        check_pair(moving, fixed, self.dim, values=False)
        if code is None and self.conditional:
            if not 0 <= self.code <= 1:
                raise ValueError(f"smoothness code: expected within [0, 1], got {self.code}")
            code = moving.new_full((len(moving), 1), self.code)
        images = [(moving, fixed)]
        for _ in range(2):
            images.append(tuple(average_down(image) for image in images[-1]))
        total, u, embedding, outcomes = None, None, None, []
        for k in range(levels):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (frozen and k < levels - 1)):
                small_moving, small_fixed = images[2 - k]
                if k == 0:
                    x = torch.cat([small_moving, small_fixed], dim=1)
                else:
                    total, u = (self._upsample(field, small_fixed.shape[2:]) for field in (total, u))
                    x = torch.cat([read(small_moving, voxels(u)), small_fixed, total.flip(1)], dim=1)
                    x = x.to(moving.dtype)  # a network of half precision goes on in it
                correction, embedding = self.levels[k](x, embedding, code)
                total = correction if total is None else total + correction
                displacement, velocity, u = voxels(total), None, total
                if self.diffeomorphic:
                    velocity = displacement[:, None]
                    displacement = scaling_and_squaring(velocity[:, 0])
                    half = voxels(torch.ones_like(displacement))  # 0 along an axis of one voxel
                    u = displacement / half.clamp_min(0.5)
                outcomes.append((displacement, velocity))
        return outcomes

    def _upsample(self, field, shape):
        fine = F.interpolate(
            field, scale_factor=2, mode="bilinear" if self.dim == 2 else "trilinear", align_corners=False
        )
        return fine[(..., *[slice(0, s) for s in shape])]
