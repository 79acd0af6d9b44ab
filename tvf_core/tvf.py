"""TM-TVF: a head that turns backbone features into N time-varying velocity fields (the paper, figure 2).

Step t sees the backbone's features, the fixed image, and the moving image warped by the map so
far; its own small decoder predicts v_t at half resolution. Any backbone with ``dim``,
``channels`` and quarter-resolution features fits.
"""

from __future__ import annotations

import torch
from torch import nn

from .checks import check_pair, one_of
from .integrate import INTEGRATORS, advance
from .transmorph import HEAD_CHANNELS, RELEASED, STANDARD, DecoderBlock, conv_unit, registration_head


class TimeVaryingVelocity(nn.Module):
    """Predict v_t for N intervals of [0, 1] and the map they flow to.

    Parameters
    ----------
    backbone : module ``(B, 2, *S) -> (B, channels, *ceil(S / 4))``, with ``dim`` and ``channels``.
    steps : N, the number of velocity fields; each has its own weights, so N is fixed by training.
    method : integrator that builds the map. ``euler`` is the paper's update; the shipped weights were
        trained with ``rk4``, one step per interval. ``released`` is the rule of the released code, and
        switches halving, doubling and warping to that code's too.

    Notes
    -----
    The head's output is the displacement of one interval, v_t / N, which keeps the scale of the
    released weights; the returned velocity is per unit time. Velocities live on the half grid, in
    half-grid voxels; the map is doubled in size and value (``released``: in size only) to reach the image
    grid. ``flow`` of the velocity on the image grid gives nearly the same map without that upsampling; it is
    what a registration uses.
    """

    def __init__(self, backbone: nn.Module, steps: int = 8, method: str = "euler"):
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        dim, c = backbone.dim, backbone.channels
        self.dim, self.steps, self.method = dim, steps, one_of(method, INTEGRATORS, "integrator")
        self.convention = RELEASED if method == "released" else STANDARD
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
        check_pair(moving, fixed, self.dim)
        features = self.backbone(torch.cat([moving, fixed], dim=1))
        moving_half, fixed_half = self.convention.halve(moving), self.convention.halve(fixed)
        warped, u, velocities = moving_half, None, []
        for context, decode, head in zip(self.cs, self.up3s, self.reg_heads):
            if u is not None:
                warped = self.convention.warp(moving_half, u)
            v = self.steps * head(decode(features, context(torch.cat([warped, fixed_half], dim=1)))).float()
            u = advance(v, torch.zeros_like(v) if u is None else u, 1 / self.steps, self.method)
            velocities.append(v)
        return self.convention.double(u, moving.shape[2:]), torch.stack(velocities, dim=1)
