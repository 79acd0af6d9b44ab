"""TM-TVF: a head that turns backbone features into N time-varying velocity fields (the paper, figure 2).

At step t, a small decoder of its own gets the backbone's features, the fixed image, and the moving image
warped by the map so far; it predicts v_t at half resolution. The backbone can be any module with ``dim``,
``channels`` and features at a quarter of the resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .. import released
from ..checks import check_pair, one_of
from ..fields import at_least_float32, identity_grid, sample
from ..integrate import STEPS, advance
from .layers import HEAD_CHANNELS, RELEASED, STANDARD, DecoderBlock, conv_unit, predict, registration_head


class TimeVaryingVelocity(nn.Module):
    """Predict v_t for N intervals of [0, 1] and integrate it to a map.

    Parameters
    ----------
    backbone : module ``(B, 2, *S) -> (B, channels, *ceil(S / 4))``, with ``dim`` and ``channels``.
    steps : N, the number of velocity fields; each has its own weights, so N is fixed by training.
    method : integrator that builds the map. ``euler`` is the paper's update; the shipped weights were
        trained with ``rk4``, one step per interval. ``released`` is the update of the released code, and
        also uses that code's halving, doubling and warping.

    Notes
    -----
    The head's output is the displacement of one interval, v_t / N, which keeps the scale of the
    released weights; the returned velocity is per unit time. Velocities live on the half grid, in
    half-grid voxels; the map is doubled in size and value (``released``: in size only) to reach the image
    grid. Integrating the velocity on the image grid (:func:`tvf_core.integrate.flow`) gives nearly the same
    map without that upsampling, and registration does so.
    """

    def __init__(self, backbone: nn.Module, steps: int = 8, method: str = "euler"):
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        dim, c = backbone.dim, backbone.channels
        self.dim, self.steps = dim, steps
        self.method = one_of(method, (*STEPS, "released"), "integrator of a velocity that changes in time")
        self.convention = RELEASED if method == "released" else STANDARD
        self.recompute = False
        self.backbone = backbone
        self.reg_heads = nn.ModuleList(registration_head(dim) for _ in range(steps))
        self.up3s = nn.ModuleList(DecoderBlock(dim, c, HEAD_CHANNELS, c // 2) for _ in range(steps))
        self.cs = nn.ModuleList(conv_unit(dim, 2, c // 2) for _ in range(steps))

    def forward(self, moving, fixed):
        """Images ``(B, 1, *S)`` in [0, 1].

        Returns
        -------
        displacement : (B, D, *S) voxels; ``warped(x) = moving(x + u(x))``.
        velocity : (B, N, D, *ceil(S / 2)) half-grid voxels per unit time.
        """
        check_pair(moving, fixed, self.dim, values=False)
        return self.decode(self.backbone(torch.cat([moving, fixed], dim=1)), moving, fixed)

    def decode(self, features, moving, fixed):
        """Second half of :meth:`forward`, from the backbone's features ``(B, channels, *ceil(S / 4))``."""
        halves = self.convention.halve(moving), self.convention.halve(fixed)
        grid = identity_grid(halves[0].shape[2:], moving.device, at_least_float32(moving))
        place, velocities = None, []
        for k, shared in enumerate(self._shared(features, halves[0].shape[2:])):
            if self.recompute and torch.is_grad_enabled():
                v, place = checkpoint(
                    self._interval,
                    k,
                    shared,
                    *halves,
                    grid,
                    place,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                v, place = self._interval(k, shared, *halves, grid, place)
            velocities.append(v)
        u = place if self.method == "released" else place - grid
        return self.convention.double(u, moving.shape[2:]), torch.stack(velocities, dim=1)

    def _shared(self, features, shape):
        """Contribution of the backbone's features to the first decoder convolution of every interval.

        A convolution of concatenated inputs is the sum of the convolutions of each input, so that the
        features need only one upsampling and one convolution for all intervals. The result has one tensor
        per interval.
        """
        weight = torch.cat([block.conv1[0].weight[:, : self.backbone.channels] for block in self.up3s])
        return self._convolve(self.up3s[0].upsample(features.contiguous(), shape), weight).chunk(
            self.steps, dim=1
        )

    def _interval(self, k, shared, moving, fixed, grid, place):
        """Velocity of interval k, and the map after it as positions (``released``: as displacements)."""
        warped = moving
        if place is not None:
            warped = (
                self.convention.warp(moving, place) if self.method == "released" else sample(moving, place)
            ).to(moving.dtype)  # a network of half precision goes on in it
        block, context = self.up3s[k], self.cs[k](torch.cat([warped, fixed], dim=1))
        own = self._convolve(context, block.conv1[0].weight[:, self.backbone.channels :])
        x = block.conv2(block.conv1[1:](shared + own))
        v = self.steps * predict(self.reg_heads[k], x)
        if self.method == "released":
            return v, released.advance(v / self.steps, torch.zeros_like(v) if place is None else place)
        return v, advance(v, grid.expand_as(v) if place is None else place, 1 / self.steps, self.method)

    def _convolve(self, x, weight):
        return (F.conv2d if self.dim == 2 else F.conv3d)(x, weight, padding=1)
