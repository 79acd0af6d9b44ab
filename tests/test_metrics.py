"""Scores against literal NumPy and SciPy versions and fields whose score is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from tvf_core import metrics

each_size = pytest.mark.parametrize("shape", [(13, 16), (12, 9), (9, 10, 11), (8, 7, 12)], ids=str)


def random_labels(shape, top, seed):
    return torch.tensor(np.random.default_rng(seed).integers(0, top + 1, (1, 1, *shape)))


@each_size
def test_dice_skips_labels_missing_before_the_warp_and_punishes_those_lost_in_it(shape):
    warped, fixed, moving = (random_labels(shape, 6, seed) for seed in range(3))
    fixed[fixed == 2] = 0  # missing in fixed
    moving[moving == 3] = 0  # missing in moving, though the warped map has it
    warped[warped == 5] = 0  # lost by the warp
    labels = [1, 2, 3, 4, 5, 9]
    expected = []
    for k in labels:
        w, f, m = ((x == k).numpy() for x in (warped, fixed, moving))
        expected.append(2 * (w & f).sum() / (w.sum() + f.sum()) if f.any() and m.any() else np.nan)
    ours = metrics.dice(warped, fixed, moving, labels)
    np.testing.assert_allclose(ours, expected)
    assert np.isnan(ours[[1, 2, 5]]).all() and ours[4] == 0


def literal_sdlogj(u):
    dim = len(u)
    jacobian = np.zeros((*u.shape[1:], dim, dim))
    for c in range(dim):
        for a in range(dim):
            jacobian[..., c, a] = ndimage.correlate1d(u[c], [-0.5, 0, 0.5], axis=a, mode="constant") + (a == c)
    det = np.linalg.det(jacobian)[(slice(2, -2),) * dim]
    return np.log(np.clip(det + 3, 1e-9, 1e9)).std()


@each_size
@pytest.mark.parametrize("strength", [0.3, 4.0], ids=["mild", "folded"])
def test_official_sdlogj_equals_the_challenges_formula(shape, strength):
    u = strength * np.random.default_rng(0).standard_normal((len(shape), *shape))
    assert metrics.sdlogj(torch.tensor(u)[None]) == pytest.approx(literal_sdlogj(u), rel=1e-9)


@pytest.mark.parametrize("shape", [(13, 16), (9, 10, 11)], ids=str)
def test_both_sdlogj_of_a_quadratic_map_are_known(shape):
    # u_0 = c x^2 / 2 has det J = 1 + c x at every inner voxel, exactly.
    n, c = shape[0], 0.15
    x = np.arange(n, dtype=float)
    u = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    u[:, 0] = torch.tensor(c * x * x / 2).view(-1, *[1] * (len(shape) - 1))
    inner = 1 + c * x[2:-2]
    assert metrics.sdlogj(u, "textbook") == pytest.approx(np.log(inner).std(), rel=1e-9)
    assert metrics.sdlogj(u, "official") == pytest.approx(np.log(inner + 3).std(), rel=1e-9)
    for kind in metrics.SDLOGJ_KINDS:
        assert metrics.sdlogj(0 * u, kind) == 0


def test_textbook_sdlogj_leaves_folded_voxels_out():
    n, c = 20, -0.15  # det J = 1 - 0.15 x crosses zero between x = 6 and 7
    x = np.arange(n, dtype=float)
    u = torch.zeros(1, 2, n, 8, dtype=torch.float64)
    u[:, 0] = torch.tensor(c * x * x / 2)[:, None]
    inner = 1 + c * x[2:-2]
    assert metrics.sdlogj(u, "textbook") == pytest.approx(np.log(inner[inner > 0]).std(), rel=1e-9)


@pytest.mark.parametrize("shape", [(21, 8), (20, 7), (21, 6, 5)], ids=str)
def test_folding_percent_counts_a_known_fold(shape):
    # phi_0 rises to x = 10 and falls afterwards: det J is 1, then 0 at the turn, then -1.
    u = torch.zeros(1, len(shape), *shape)
    x = torch.arange(shape[0], dtype=torch.float32)
    u[:, 0] = (10 - (x - 10).abs() - x).view(-1, *[1] * (len(shape) - 1))
    assert metrics.folding_percent(u) == pytest.approx(100 * (shape[0] - 10) / shape[0])
    assert metrics.folding_percent(0 * u) == 0


def test_folding_percent_counts_the_border():
    u = torch.zeros(1, 2, 10, 10)
    u[:, 1, :, 0] = 3.0  # only differences that reach the first column see it
    phi = np.arange(10.0) + np.array([3.0] + 9 * [0.0])
    assert metrics.folding_percent(u) == pytest.approx(100 * (np.gradient(phi) <= 0).mean())
    assert metrics.folding_percent(u) > 0


@pytest.mark.parametrize("shape", [(24, 27), (15, 14, 13)], ids=str)
def test_ssim_equals_wang_2004_by_plain_convolutions(shape, smooth_image):
    dim = len(shape)
    a = smooth_image(shape, dtype=torch.float64)
    b = (0.8 * a + 0.2 * smooth_image(shape, sigma=1, seed=1, dtype=torch.float64)).clamp(0, 1)
    line = torch.tensor([math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)], dtype=torch.float64)
    kernel = line / line.sum()
    window = kernel
    for _ in range(dim - 1):
        window = window[..., None] * kernel
    conv = F.conv2d if dim == 2 else F.conv3d
    mean_a, mean_b, aa, bb, ab = (conv(x, window[None, None]) for x in (a, b, a * a, b * b, a * b))
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()
    assert metrics.ssim(a, b) == pytest.approx(float(expected), abs=1e-6)
    assert metrics.ssim(a, b) < 0.99
    assert metrics.ssim(a, a) == pytest.approx(1)
