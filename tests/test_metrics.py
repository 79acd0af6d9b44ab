"""Metrics against literal NumPy and SciPy versions and on fields whose value is known."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.metrics import structural_similarity

from tvf_core import losses, metrics
from tvf_core.metrics.feature_similarity import fsim, phase_congruency
from tvf_core.metrics.folding import CONVENTIONS, SDLOGJ_KINDS

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
            jacobian[..., c, a] = ndimage.correlate1d(u[c], [-0.5, 0, 0.5], axis=a, mode="constant") + (
                a == c
            )
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
    for kind in SDLOGJ_KINDS:
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
    u[:, 1, :, 0] = 3.0  # only differences that include the first column show it
    phi = np.arange(10.0) + np.array([3.0] + 9 * [0.0])
    assert metrics.folding_percent(u) == pytest.approx(100 * (np.gradient(phi) <= 0).mean())
    assert metrics.folding_percent(u) > 0


def literal_folds(u, convention):
    """How many voxels fold and how many are looked at, voxel by voxel; u (D, *S)."""
    dim, shape = len(u), u.shape[1:]
    folded = looked_at = 0
    for x in itertools.product(*map(range, shape)):
        if convention == "inner" and not all(2 <= i < n - 2 for i, n in zip(x, shape)):
            continue
        jacobian = np.eye(dim)
        for a in range(dim):
            before, after = list(x), list(x)
            before[a], after[a] = max(x[a] - 1, 0), min(x[a] + 1, shape[a] - 1)
            run = after[a] - before[a] if convention == "one-sided" else 2
            jacobian[:, a] += (u[(slice(None), *after)] - u[(slice(None), *before)]) / run
        looked_at += 1
        folded += np.linalg.det(jacobian) <= 0
    return folded, looked_at


@each_size
def test_folding_is_counted_voxel_by_voxel_in_each_convention(shape):
    u = 0.8 * np.random.default_rng(0).standard_normal((len(shape), *shape))
    found = {}
    for convention in CONVENTIONS:
        folded, looked_at = literal_folds(u, convention)
        assert looked_at == math.prod(n - 4 * (convention == "inner") for n in shape)
        found[convention] = metrics.folding_percent(torch.tensor(u)[None], convention)
        assert found[convention] == pytest.approx(100 * folded / looked_at, rel=1e-12)
    assert len(set(found.values())) == 3 and min(found.values()) > 1
    assert metrics.folding_percent(torch.tensor(u)[None]) == found["one-sided"]


def test_folds_of_a_known_field_by_each_convention():
    rng = np.random.default_rng(2)
    u = ndimage.gaussian_filter(rng.normal(size=(3, 24, 20, 28)), (0, 2, 2, 2)) * 16
    assert literal_folds(u, "one-sided") == (184, 13_440) and literal_folds(u, "inner") == (50, 7_680)
    for convention, per_cent in (("one-sided", 100 * 184 / 13_440), ("inner", 100 * 50 / 7_680)):
        assert metrics.folding_percent(torch.tensor(u)[None], convention) == pytest.approx(
            per_cent, rel=1e-12
        )


@pytest.mark.parametrize("shape", [(5, 5), (5, 6, 5)], ids=str)
def test_the_smallest_image_that_has_inner_voxels_is_counted(shape):
    u = torch.zeros(1, len(shape), *shape)
    u[:, 0, 1], u[:, 0, 3] = 1.5, -1.5  # the middle line turns round, and nothing else is looked at
    assert metrics.folding_percent(u, "inner") == 100
    assert 0 < metrics.folding_percent(u) < 100


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
    expected = (
        (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    ).mean()
    assert metrics.ssim(a, b) == pytest.approx(float(expected), abs=1e-6)
    assert metrics.ssim(a, b) < 0.99
    assert metrics.ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize(
    "shape,across", [((11, 12, 10), 2), ((12, 3, 11), 1), ((1, 13, 11), 0), ((11, 11, 2), 2)], ids=str
)
def test_ssim_of_few_slices_is_the_mean_over_them(shape, across):
    rng = np.random.default_rng(0)
    a, b = (rng.random(shape) for _ in range(2))
    settings = dict(data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    each = [
        structural_similarity(a.take(k, across), b.take(k, across), **settings) for k in range(shape[across])
    ]
    found = metrics.ssim(*(torch.tensor(x)[None, None] for x in (a, b)))
    assert found == pytest.approx(np.mean(each), rel=1e-12) and found < 0.5


def test_ssim_works_or_says_what_is_too_small():
    for shape in [*itertools.product((1, 10, 11), repeat=2), *itertools.product((1, 10, 11), repeat=3)]:
        image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
        if sum(s >= 11 for s in shape) >= 2:
            assert metrics.ssim(image, image) == pytest.approx(1)
            assert losses.ssim(image, image).item() == pytest.approx(-1)
            continue
        for measure in (metrics.ssim, losses.ssim):
            with pytest.raises(ValueError) as error:
                measure(image, image)
            axes = "each axis" if len(shape) == 2 else "two axes"
            assert str(error.value) == f"ssim: needs at least 11 voxels along {axes}, got {shape}"


def box(shape, first, last):
    labels = torch.zeros(1, 1, *shape, dtype=torch.long)
    labels[(..., *[slice(a, b) for a, b in zip(first, last)])] = 1
    return labels


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_hd95_of_a_shifted_box_is_the_shift(dim, shift):
    # Two opposite faces are `shift` apart; of four (six) faces of one size they are far more than 5 % of the
    # surface.
    shape = (31, 28, 29)[:dim]
    fixed = box(shape, [8] * dim, [18] * dim)
    moved = box(shape, [8 + shift] + [8] * (dim - 1), [18 + shift] + [18] * (dim - 1))
    assert metrics.hd95(moved, fixed, fixed, [1]) == pytest.approx([shift])


@pytest.mark.parametrize("dim", [2, 3])
def test_hd95_takes_the_larger_direction_and_forgives_five_per_cent(dim):
    fixed = box((60, 31, 30)[:dim], [4] * dim, [24] * dim)
    # A single far voxel has less than 5 % of the surface; a block of size 8 has more, so its near side
    # counts.
    for size, score in ((1, 0), (8, 17)):
        far = fixed + box((60, 31, 30)[:dim], [40] + [10] * (dim - 1), [40 + size] + [10 + size] * (dim - 1))
        here = metrics.hd95(far, fixed, fixed, [1])[0]
        assert here == metrics.hd95(fixed, far, far, [1])[0]
        assert here == 0 if score == 0 else here >= score


def test_hd95_skips_labels_missing_before_the_warp_and_is_infinite_for_those_lost_in_it():
    one = box((12, 13, 14), [3] * 3, [8] * 3)
    two = one.roll(5, 4)  # beside ``one``
    fixed, moving, warped = one + 2 * two, 2 * two + 3 * one, 1 * one
    scores = metrics.hd95(warped, fixed, moving, [1, 2, 3])  # 1 is missing in moving, 3 in fixed, 2 was lost
    assert np.isnan(scores[[0, 2]]).all() and np.isinf(scores[1])


def literal_ndv(u):
    """Liu et al.'s sums voxel by voxel, u (D, *S)."""
    dim, shape, total = len(u), u.shape[1:], 0.0

    def at(x):
        return np.array(x) + u[(slice(None), *np.clip(x, 0, np.array(shape) - 1))]

    for x in itertools.product(*map(range, shape)):
        x, corners = np.array(x), []
        for signs in itertools.product((1, -1), repeat=dim):
            # A forward difference is T(x+e) - T(x), a backward one T(x) - T(x-e).
            corners.append([s * (at(x + s * e) - at(x)) for s, e in zip(signs, np.eye(dim, dtype=int))])
        if dim == 3:
            corners += [
                [at(x + np.array(step)) - at(x) for step in steps]
                for steps in (((-1, -1, 0), (-1, 0, -1), (0, -1, -1)), ((1, 1, 0), (0, 1, 1), (1, 0, 1)))
            ]
        total += sum(max(-np.linalg.det(np.stack(c, 1)), 0) for c in corners) / 2 / math.factorial(dim)
    return 100 * total / np.prod(shape)


@pytest.mark.parametrize("shape", [(7, 6), (8, 9), (4, 5, 6)], ids=str)
def test_ndv_equals_its_definition_voxel_by_voxel(shape):
    u = 0.8 * np.random.default_rng(0).standard_normal((len(shape), *shape))
    assert metrics.ndv_percent(torch.tensor(u)[None]) == pytest.approx(literal_ndv(u), rel=1e-9)
    assert literal_ndv(u) > 1


@pytest.mark.parametrize("shape", [(9, 6), (9, 6, 5)], ids=str)
def test_ndv_sees_folds_that_central_differences_miss(shape):
    u = torch.zeros(1, len(shape), *shape)
    u[:, 0, 1::2] = 1.5  # every second line moves past its neighbour, which central differences do not see
    assert metrics.folding_percent(u, "inner") == metrics.folding_percent(u, "replicated") == 0
    assert metrics.folding_percent(u) == pytest.approx(100 / 9)  # the one-sided difference of the last line
    assert metrics.ndv_percent(u) == pytest.approx(literal_ndv(u[0].numpy())) and metrics.ndv_percent(u) > 15
    assert metrics.ndv_percent(0 * u) == 0
    mirrored = (
        -2 * torch.arange(shape[0], dtype=torch.float32).view(-1, *[1] * (len(shape) - 1)) * torch.ones(shape)
    )
    # x -> -x turns every simplex inside out; the replicated border keeps some of the outermost upright.
    u[:, 0] = mirrored
    inner = 100 * (shape[0] - 2) / shape[0]
    assert metrics.ndv_percent(u) > inner


def test_fsim_falls_with_blur_and_noise_and_is_one_for_equal_images(smooth_image):
    for shape in [(64, 65), (63, 66)]:
        a = (smooth_image(shape) > 0.5).float()
        blurred = torch.tensor(ndimage.gaussian_filter(a.numpy(), (0, 0, 2, 2)))
        noise = torch.rand(a.shape, generator=torch.Generator().manual_seed(0))
        assert fsim(a, a) == pytest.approx(1, abs=1e-12)
        assert fsim(a, blurred) == pytest.approx(fsim(blurred, a), abs=1e-12)
        assert 1 > fsim(a, 0.9 * a + 0.1 * blurred) > fsim(a, blurred) > fsim(a, noise) > 0
    with pytest.raises(ValueError, match="two 2D images"):
        fsim(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))


def test_fsim_averages_large_images_down_first(smooth_image):
    small = [smooth_image((256, 271), seed=k) for k in range(2)]
    large = [F.interpolate(x, scale_factor=2) for x in small]
    assert fsim(*large) == pytest.approx(fsim(*small), abs=1e-9)  # the smaller side is 512: two by two
    flat = torch.full((1, 1, 32, 32), 0.3)
    assert fsim(flat, flat) == pytest.approx(1)


def test_fsim_takes_pictures_of_every_size():
    for shape in itertools.product((1, 2, 3, 4, 5, 8, 11, 17), repeat=2):
        if shape == (1, 1):  # it would score 1 whatever the pixels are
            with pytest.raises(ValueError, match="fsim: needs at least 2 pixels"):
                fsim(torch.rand(1, 1, 1, 1), torch.rand(1, 1, 1, 1))
            continue
        rng = np.random.default_rng(0)
        a, b = (torch.tensor(rng.random((1, 1, *shape))) for _ in range(2))
        flat, black = torch.full_like(a, 0.3), torch.zeros_like(a)
        for image in (a, flat, black):
            assert fsim(image, image) == pytest.approx(1, abs=1e-12), shape
        for other in (b, flat, black):
            assert 0 < fsim(a, other) < 1 and fsim(a, other) == pytest.approx(fsim(other, a), abs=1e-12)
        if shape[0] % 2 and shape[1] % 2:  # an even axis has one frequency without its opposite
            assert fsim(a, b) == pytest.approx(fsim(a.mT, b.mT), abs=1e-9)  # on its side
        assert fsim(a, 0.9 * a + 0.1 * b) > fsim(a, b) or min(shape) < 8


def test_fsim_of_an_image_that_is_not_finite_is_nan():
    for value, where in itertools.product((math.nan, math.inf, -math.inf), ((0, 0), (3, 5), (7, 8))):
        a, b = torch.rand(1, 1, 8, 9), torch.rand(1, 1, 8, 9)
        a[(0, 0, *where)] = value
        assert math.isnan(fsim(a, b)) and math.isnan(fsim(b, a)) and math.isnan(fsim(a, a))


def test_similarities_take_a_little_rounding_beyond_the_range_and_no_more():
    image = torch.rand(1, 1, 12, 13)
    for low, high in ((-5e-5, 1 + 5e-5), (0.0, 1.0)):
        image[..., 0, 0], image[..., 5, 5] = low, high
        for measure in (metrics.ssim, fsim, lambda a, b: -losses.ssim(a, b)):
            assert float(measure(image, image)) == pytest.approx(1)
    for low, high in ((-1e-3, 1.0), (0.0, 1.01), (0.0, 255.0)):
        image[..., 0, 0], image[..., 5, 5] = low, high
        for measure in (metrics.ssim, fsim, losses.ssim):
            with pytest.raises(ValueError, match=r"sim: intensities from .* expected \[0, 1\]; scale them"):
                measure(torch.rand(1, 1, 12, 13), image)


def test_phase_congruency_is_highest_on_an_edge_and_ignores_contrast():
    image = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    image[..., 32:] = 200
    strong, weak = (phase_congruency(x)[0, 0, 20:44, 20:44] for x in (image, image / 8))
    assert set(strong.argmax(1).tolist()) <= {11, 12}
    torch.testing.assert_close(strong, weak, atol=1e-4, rtol=0)
