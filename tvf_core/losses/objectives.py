"""Training objectives: modules around a network that turn a batch of pairs into weighted loss terms.

Most methods differ only in their terms and weights (:class:`Objective`). Three need an objective of their
own: VM-diff draws from a distribution, CycleMorph trains two networks together, LapIRN is trained level by
level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .. import fields, losses, released
from ..networks import lapirn
from ..networks.layers import STANDARD, Convention

LABEL_TERMS = ("dice", "label_mse")


def standard_terms(
    weights: dict[str, float],
    constants: dict[str, float],
    batch: dict,
    displacement: torch.Tensor,
    velocity: torch.Tensor | None = None,
    labels: Sequence[int] = (),
    convention: Convention = STANDARD,
) -> dict[str, torch.Tensor]:
    """Weighted loss terms of one displacement.

    Parameters
    ----------
    weights : term -> weight; the terms are listed below.
    constants : of the LDDMM terms, if they are among the weights: alpha, gamma, and beta of ``lddmm``.
    batch : ``moving``, ``fixed`` (B, 1, *S) and, for label terms, ``moving_labels``, ``fixed_labels``.
    displacement, velocity : outputs of the network.
    labels : the label numbers that count, background (0) among them. Without any, for data without labels,
        label terms are left out, as in the paper for the faces.
    convention : how images and labels are warped.

    Notes
    -----
    ``lncc``, ``ssim``, ``mse``: of the warped and the fixed image. ``dice``, ``label_mse``: of their labels.
    ``diffusion``: of the displacement, as in the released code; ``velocity_diffusion``: of the last
    velocity, as the paper's eq. 3 has it (there it is the motion of one interval, so that its square is
    N^2 times smaller). ``mse``, ``label_mse`` and ``lddmm``: the terms of eq. 2; ``lddmm_released``: what
    the released code computes in place of the last one.
    """
    moving, fixed, sampled = batch["moving"], batch["fixed"], convention.sampled(displacement)
    warped = fields.warp(moving, sampled, padding=convention.padding)
    maps = [batch["moving_labels"], sampled, batch["fixed_labels"], labels] if labels else None
    terms = {
        "lncc": lambda: losses.lncc(warped, fixed),
        "ssim": lambda: losses.ssim(warped, fixed),
        "mse": lambda: losses.mse(warped, fixed),
        "dice": lambda: losses.soft_dice(*maps),
        "label_mse": lambda: losses.label_mse(*maps),
        "diffusion": lambda: losses.diffusion(displacement),
        "velocity_diffusion": lambda: losses.diffusion(velocity[:, -1]),
        "lddmm": lambda: losses.lddmm_energy(
            velocity, constants["alpha"], constants["gamma"], constants["beta"]
        ),
        "lddmm_released": lambda: released.lddmm_energy(velocity, constants["alpha"], constants["gamma"]),
    }
    return _weighted(weights, terms, labels)


# Term -> the constants that it uses.
CONSTANTS = {"lddmm": ("alpha", "gamma", "beta"), "lddmm_released": ("alpha", "gamma")}
VELOCITY_TERMS = ("velocity_diffusion", "lddmm", "lddmm_released")
TERMS = ("lncc", "ssim", "mse", *LABEL_TERMS, "diffusion", *VELOCITY_TERMS)


class Objective(nn.Module):
    """Network and loss of a method: ``objective(batch, progress)`` returns the weighted loss terms.

    Parameters
    ----------
    network : the network that is trained.
    weights, constants : numbers of the method, term -> weight and name -> value.
    labels : the label numbers that count, background (0) among them; none for data without labels.
    """

    directions = 1  # ordered pairs that one loss covers: 2 if it contains both directions of a pair
    partly_used = False  # whether some steps leave parameters without a gradient

    def __init__(
        self,
        network: nn.Module,
        weights: dict[str, float],
        constants: dict[str, float],
        labels: Sequence[int] = (),
    ):
        super().__init__()
        self.network, self.weights, self.constants, self.labels = network, weights, constants, labels

    def forward(self, batch: dict, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """Weighted terms of a batch (:func:`standard_terms`).

        ``progress`` in [0, 1) is the fraction of the training that has been done.
        """
        displacement, velocity = self.network(batch["moving"], batch["fixed"])
        with self._precise(displacement):
            return standard_terms(
                self.weights,
                self.constants,
                batch,
                displacement,
                velocity,
                self.labels,
                self.network.convention,
            )

    @staticmethod
    def _precise(tensor):
        """Context in which losses are float32, even if the network computes in half precision."""
        return torch.autocast(tensor.device.type, enabled=False)


class DistributionObjective(Objective):
    """Objective of VM-diff: image likelihood under one drawn velocity, and divergence from the prior.

    Its terms are ``mse`` and ``kl`` (:func:`tvf_core.losses.velocity_kl`). Source: Dalca et al. 2019.
    """

    def forward(self, batch, progress=0.0):
        mean, log_variance = self.network.distribution(batch["moving"], batch["fixed"])
        with self._precise(mean):
            velocity = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            displacement = self.network.displacement(velocity, batch["moving"].shape[2:])
            terms = {
                "mse": lambda: losses.mse(fields.warp(batch["moving"], displacement), batch["fixed"]),
                "kl": lambda: losses.velocity_kl(mean, log_variance, self.constants["prior"]),
            }
            return _weighted(self.weights, terms, self.labels)


class CycleObjective(Objective):
    """Objective of CycleMorph: the network registers A (moving) to B (fixed), its partner B to A.

    ``lncc`` and ``diffusion`` are sums over both directions. ``cycle`` is the mean absolute difference
    between an image and its copy warped to the other image and back, summed over A and B. ``identity`` is the
    local NCC of an image with itself after registration to itself, which should not move it. One step
    evaluates a network six times. Source: Kim et al. 2021; weights of their released 3D script.
    """

    directions = 2

    def __init__(self, network, weights, constants, labels=()):
        super().__init__(network, weights, constants, labels)
        self.partner = type(network)(network.dim)

    def forward(self, batch, progress=0.0):
        a, b = batch["moving"], batch["fixed"]
        u, w = self.network(a, b)[0], self.partner(b, a)[0]
        like_b, like_a = self._warp(a, u), self._warp(b, w)
        again_a = self._warp(like_b, self.partner(like_b, like_a)[0])
        again_b = self._warp(like_a, self.network(like_a, like_b)[0])
        still_b, still_a = self._warp(b, self.network(b, b)[0]), self._warp(a, self.partner(a, a)[0])
        with self._precise(a):
            terms = {
                "lncc": lambda: losses.lncc(like_b, b) + losses.lncc(like_a, a),
                "diffusion": lambda: losses.diffusion(u) + losses.diffusion(w),
                "cycle": lambda: (again_a - a).abs().mean() + (again_b - b).abs().mean(),
                "identity": lambda: losses.lncc(still_b, b) + losses.lncc(still_a, a),
            }
            return _weighted(self.weights, terms, self.labels)

    def _warp(self, image, displacement):
        with self._precise(image):
            return fields.warp(image, displacement)


class PyramidObjective(Objective):
    """Objective of LapIRN, from coarse to fine.

    The first quarter of the training is at 1/4 of the resolution, the second at 1/2, the rest at full
    resolution. Its terms are ``multiscale_lncc``, ``diffusion`` of the level's displacement or velocity (in
    voxels of that level) and, at full resolution, ``dice``. When a level starts, the levels below it are
    frozen for the fraction ``constants["frozen"]`` of the training. For the conditional network, each step
    draws a smoothness code, which scales ``diffusion``. Source: Mok & Chung 2020, 2021; iterations and
    weights of their released code.
    """

    partly_used = True
    STARTS = (0, 1 / 4, 1 / 2)  # released code: 30,001, 30,001 and 60,001 iterations

    def forward(self, batch, progress=0.0):
        level = sum(progress >= start for start in self.STARTS)
        frozen = level > 1 and progress - self.STARTS[level - 1] < self.constants["frozen"]
        code = None
        if self.network.conditional:  # one for the whole batch; the authors' batch is one pair
            code = torch.rand(1, 1, device=batch["moving"].device).expand(len(batch["moving"]), 1)
        outcomes = self.network.pyramid(batch["moving"], batch["fixed"], level, frozen, code)
        displacement, velocity = outcomes[-1]
        with self._precise(displacement):
            warped, fixed = lapirn.read(batch["moving"], displacement), batch["fixed"]
            for _ in range(3 - level):
                fixed = fields.average_down(fixed)
            field = displacement if velocity is None else velocity[:, 0]
            rough = losses.diffusion(field)
            terms = {
                "multiscale_lncc": lambda: losses.multiscale_lncc(warped, fixed, (7, 5, 3)[3 - level :]),
                "diffusion": lambda: rough if code is None else code[0, 0] * rough,
                "dice": lambda: losses.soft_dice(
                    batch["moving_labels"], displacement, batch["fixed_labels"], self.labels
                ),
            }
            weights = {term: w for term, w in self.weights.items() if level == 3 or term != "dice"}
            return _weighted(weights, terms, self.labels)


def _weighted(weights, terms, labels):
    wanted = {term: w for term, w in weights.items() if labels or term not in LABEL_TERMS}
    return {term: weight * terms[term]() for term, weight in wanted.items()}
