"""LDDMM of one pair: its operator against the energy's stencil, and a registration that must succeed."""

import pytest
import torch

from tvf_core import fields, losses, metrics
from tvf_core.baselines import lddmm
from tvf_core.data import shapes


@pytest.mark.parametrize("shape", [(12, 9), (7, 6), (2, 5, 6), (5, 4, 7)], ids=str)
@pytest.mark.parametrize("beta", [1, 2])
def test_smooth_inverts_the_operator_of_the_energy(shape, beta):
    dim = len(shape)
    w = torch.randn(1, 3, dim, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = lddmm.smooth(w, dim, alpha=0.3, gamma=0.2, beta=beta)
    energy = losses.lddmm_energy(v, alpha=0.3, gamma=0.2, beta=beta)
    assert energy.item() == pytest.approx(w.square().sum(2).mean().item(), rel=1e-10)


def test_a_disc_becomes_a_c_without_folding_and_back():
    moving, fixed = shapes.disc_and_c(48)
    result, history = lddmm.register(moving, fixed, iterations=40)
    assert losses.mse(result.warped, fixed) < 0.01 * history[0]["mse"]
    assert metrics.folding_percent(result.displacement) == 0
    assert losses.mse(fields.warp(fixed, result.inverse()), moving) < 0.05 * history[0]["mse"]


def test_a_heavier_energy_gives_a_smaller_deformation():
    moving, fixed = shapes.disc_and_c(32)
    size = [lddmm.register(moving, fixed, weight=weight, iterations=25)[0].displacement.norm() for weight in (1e2, 1e9)]
    assert size[1] < 0.8 * size[0]
