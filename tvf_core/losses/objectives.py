"""What training minimises: a module around a network that turns a batch of pairs into weighted loss terms.

Most methods differ only in their terms and weights (:class:`Objective`). Three train in a way of their own: VM-diff
draws from a distribution, CycleMorph trains two networks together, LapIRN grows level by level.
"""

from __future__ import annotations

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
    classes: int = 0,
    convention: Convention = STANDARD,
) -> dict[str, torch.Tensor]:
    """Weighted loss terms of one displacement.

    Parameters
    ----------
    weights : term -> weight; the terms are those listed below.
    constants : of the LDDMM terms, if they are among the weights: alpha, gamma, and beta of ``lddmm``.
    batch : ``moving``, ``fixed`` (B, 1, *S) and, for label terms, ``moving_labels``, ``fixed_labels``.
    displacement, velocity : of the network.
    classes : labels including background; 0 where the data have none: label terms are then skipped, as the paper
        does for the faces.
    convention : how images and labels are warped.

    Notes
    -----
    ``lncc``, ``ssim``, ``mse``: of the warped and the fixed image. ``dice``, ``label_mse``: of their labels.
    ``diffusion``: of the displacement, as in the released code; ``velocity_diffusion``: of the last velocity, as the
    paper's eq. 3 has it. ``lddmm``: eq. 1; ``lddmm_released``: what the released code computes in its place.
    """
    moving, fixed, sampled = batch["moving"], batch["fixed"], convention.sampled(displacement)
    warped = fields.warp(moving, sampled, padding=convention.padding)
    labels = [batch["moving_labels"], sampled, batch["fixed_labels"], classes] if classes else None
    terms = {
        "lncc": lambda: losses.lncc(warped, fixed),
        "ssim": lambda: losses.ssim(warped, fixed),
        "mse": lambda: losses.mse(warped, fixed),
        "dice": lambda: losses.soft_dice(*labels),
        "label_mse": lambda: losses.label_mse(*labels),
        "diffusion": lambda: losses.diffusion(displacement),
        "velocity_diffusion": lambda: losses.diffusion(velocity[:, -1]),
        "lddmm": lambda: losses.lddmm_energy(
            velocity, constants["alpha"], constants["gamma"], constants["beta"]
        ),
        "lddmm_released": lambda: released.lddmm_energy(velocity, constants["alpha"], constants["gamma"]),
    }
    return _weighted(weights, terms, classes)


# Term -> the constants that it uses.
CONSTANTS = {"lddmm": ("alpha", "gamma", "beta"), "lddmm_released": ("alpha", "gamma")}
VELOCITY_TERMS = ("velocity_diffusion", "lddmm", "lddmm_released")
TERMS = ("lncc", "ssim", "mse", *LABEL_TERMS, "diffusion", *VELOCITY_TERMS)


class Objective(nn.Module):
    """Network and loss of a method: ``objective(batch, progress)`` gives its weighted terms.

    Parameters
    ----------
    network : the network that is trained.
    weights, constants : numbers of the method, term -> weight and name -> value.
    classes : labels including background, 0 for none.
    """

    directions = 1  # ordered pairs that one step learns from: 2 where both directions are in one loss
    partly_used = False  # some steps leave parameters without a gradient

    def __init__(
        self, network: nn.Module, weights: dict[str, float], constants: dict[str, float], classes: int = 0
    ):
        super().__init__()
        self.network, self.weights, self.constants, self.classes = network, weights, constants, classes

    def forward(self, batch: dict, progress: float = 0.0) -> dict[str, torch.Tensor]:
        """Terms of a batch (:func:`standard_terms`); ``progress`` is the part of the training that is over, in [0, 1)."""
        displacement, velocity = self.network(batch["moving"], batch["fixed"])
        with self._precise(displacement):
            return standard_terms(
                self.weights,
                self.constants,
                batch,
                displacement,
                velocity,
                self.classes,
                self.network.convention,
            )

    @staticmethod
    def _precise(tensor):
        """Losses in float32, also where the network computes in half precision."""
        return torch.autocast(tensor.device.type, enabled=False)


class DistributionObjective(Objective):
    """VM-diff: likelihood of the image under one drawn velocity, and the divergence from the prior.

    Terms ``mse`` and ``kl`` (:func:`tvf_core.losses.velocity_kl`). Source: Dalca et al. 2019.
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
            return _weighted(self.weights, terms, self.classes)


class CycleObjective(Objective):
    """CycleMorph: this network from A (moving) to B (fixed), its partner from B to A, tied together.

    Terms ``lncc`` and ``diffusion``: both directions; ``cycle``: mean absolute difference of A and what remains of it
    there and back; ``identity``: correlation of an image with itself after a registration to itself; it should not
    move. Source: Kim et al. 2021, weights in their released 3D script. Six network evaluations a step.
    """

    directions = 2

    def __init__(self, network, weights, constants, classes=0):
        super().__init__(network, weights, constants, classes)
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
            return _weighted(self.weights, terms, self.classes)

    def _warp(self, image, displacement):
        with self._precise(image):
            return fields.warp(image, displacement)


class PyramidObjective(Objective):
    """LapIRN: coarse to fine; a quarter of the training at 1/4 of the resolution, a quarter at 1/2, the rest at all of it.

    Terms ``multiscale_lncc``, ``diffusion`` of the level's displacement or velocity (in voxels of that level), and
    ``dice`` at full resolution. Levels below are frozen when a new one starts. The conditional network draws a
    smoothness code at every step, which scales ``diffusion``. Source: Mok & Chung 2020, 2021; iterations and weights
    of their released code.
    """

    partly_used = True
    STARTS = (0, 1 / 4, 1 / 2)  # 30,001, 30,001 and 60,001 iterations

    def forward(self, batch, progress=0.0):
        level = sum(progress >= start for start in self.STARTS)
        frozen = level > 1 and progress - self.STARTS[level - 1] < self.constants["frozen"]
        code = None
        if self.network.conditional:  # one for the whole batch, as theirs is of one pair
            code = torch.rand(1, 1, device=batch["moving"].device).expand(len(batch["moving"]), 1)
        displacement, velocity = self.network.pyramid(batch["moving"], batch["fixed"], level, frozen, code)[
            -1
        ]
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
                    batch["moving_labels"], displacement, batch["fixed_labels"], self.classes
                ),
            }
            weights = {term: w for term, w in self.weights.items() if level == 3 or term != "dice"}
            return _weighted(weights, terms, self.classes)


def _weighted(weights, terms, classes):
    wanted = {term: w for term, w in weights.items() if classes or term not in LABEL_TERMS}
    return {term: weight * terms[term]() for term, weight in wanted.items()}
