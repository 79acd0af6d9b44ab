"""Metrics against literal NumPy and SciPy versions and on fields whose value is known."""

import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.metrics import structural_similarity
from surface_distance import lookup_tables

from tvf_core import fields, losses, metrics
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


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = (-(2**63), -(2**31), -200, -3, -1, 0, 1, 5, 127, 255, 2035, 2**16 - 1, 20_000_000, 614_454_277)
NUMBERS += (2**31 + 5, 2**32 - 1, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(9, 10), (1, 17), (5, 6, 4), (7, 1, 3)], ids=str)
def test_overlap_of_labels_of_any_type_and_number_is_that_of_small_ones(dtype, shape):
    # Any array with a place for each number up to the largest would not fit into the memory.
    limits = np.iinfo(dtype)
    numbers = [k for k in NUMBERS if limits.min <= k <= limits.max]
    small = [random_labels(shape, len(numbers) - 1, seed) for seed in range(3)]
    small[2][small[2] == 1], small[1][small[1] == 2], small[0][small[0] == 3] = 0, 0, 0
    large = [torch.from_numpy(np.array(numbers, dtype=dtype)[x.numpy()]) for x in small]
    order = np.random.default_rng(0).permutation(len(numbers))
    expected = [metrics.dice(*small, range(len(numbers))), metrics.hd95(*small, range(len(numbers)))]
    assert np.isfinite(expected[0]).any() and np.isfinite(expected[1]).any()
    for measure, scores in zip((metrics.dice, metrics.hd95), expected):
        np.testing.assert_array_equal(measure(*large, numbers), scores)
        np.testing.assert_array_equal(measure(*large, [numbers[k] for k in order]), scores[order])
        # Numbers that the maps do not hold, or that their type cannot, are missing; others do not count.
        others = (-9, 2**63 + 11, 77, 2**64 + 7)
        found = measure(*large, [*others, numbers[-1], numbers[-1], numbers[0]])
        assert np.isnan(found[: len(others)]).all()
        np.testing.assert_array_equal(found[len(others) :], scores[[-1, -1, 0]])
        assert measure(*large, []).shape == (0,)


def test_maps_of_different_types_are_compared_by_their_numbers():
    maps = [random_labels((9, 10), 3, seed) for seed in range(3)]
    for measure in (metrics.dice, metrics.hd95):
        expected = measure(*maps, [0, 1, 2, 3])
        for k in range(8):
            types = [INTEGERS[(k + step) % 8] for step in (0, 3, 5)]
            mixed = [x.to(getattr(torch, dtype)) for x, dtype in zip(maps, types)]
            np.testing.assert_array_equal(measure(*mixed, [0, 1, 2, 3]), expected)
        # -1 has the bits of the largest number of uint64, and is another label all the same.
        signed = -torch.ones(1, 1, 4, 5, dtype=torch.int64)
        unsigned = signed.view(torch.uint64)
        assert np.isnan(measure(signed, unsigned, signed, [-1, 2**64 - 1])).all()
        lost = measure(signed, unsigned, unsigned, [2**64 - 1, -1])
        assert lost[0] == (0 if measure is metrics.dice else np.inf) and np.isnan(lost[1])


@pytest.mark.parametrize("measure", [metrics.dice, metrics.hd95])
@pytest.mark.parametrize("batches", [(2, 2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=str)
def test_overlap_is_measured_of_one_pair_at_a_time(measure, batches):
    maps = [random_labels((8, 9), 3, 0).expand(batch, 1, 8, 9) for batch in batches]
    wrong = next(batch for batch in batches if batch != 1)
    with pytest.raises(ValueError) as error:
        measure(*maps, [1])
    assert str(error.value) == (
        f"{measure.__name__}: expected one pair (1, ...), got a batch of {wrong}; score the pairs one by one"
    )


@pytest.mark.parametrize("labels", [3, [1.0], ["1"], [None]], ids=str)
def test_labels_to_score_are_whole_numbers(labels):
    maps = [random_labels((8, 9), 3, 0)] * 3
    for measure in (metrics.dice, metrics.hd95):
        with pytest.raises(TypeError, match="labels: expected label numbers such as"):
            measure(*maps, labels)
        one = measure(*maps, [2])
        for same in ((2,), np.array([2], np.uint8), torch.tensor([2]), {2: "two"}, range(2, 3)):
            np.testing.assert_array_equal(measure(*maps, same), one)


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
            run = max(after[a] - before[a], 1) if convention == "one-sided" else 2
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


def surface(mask, spacing):
    """Places and sizes of the surface elements of a mask: 2 x 2 (x 2) voxels that are not all in or out."""
    corners = list(itertools.product((0, 1), repeat=mask.ndim))
    padded, places, sizes = np.pad(mask, 1), [], []
    for where in np.ndindex(*(n - 1 for n in padded.shape)):
        inside = [bool(padded[tuple(np.add(where, c))]) for c in corners]
        if any(inside) and not all(inside):
            places.append(np.multiply(where, spacing))
            sizes.append(length(inside, spacing) if mask.ndim == 2 else area(inside, spacing))
    return np.array(places), np.array(sizes)


def length(inside, spacing):
    """Length of the lines that part four pixels (0, 0), (0, 1), (1, 0), (1, 1), from edge to edge."""
    edges = {(0, 1): (0, 0.5), (0, 2): (0.5, 0), (1, 3): (0.5, 1), (2, 3): (1, 0.5)}
    cut = [np.multiply(middle, spacing) for (a, b), middle in edges.items() if inside[a] != inside[b]]
    if len(cut) == 2:
        return math.dist(*cut)
    return 2 * math.dist((0, 0), np.multiply(spacing, 0.5))  # two corners are cut off


def area(inside, spacing):
    """Area of the surface in a cube of eight voxels, of which unit cubes' surfaces have these normals."""
    code = sum(2 ** (7 - k) * one for k, one in enumerate(inside))
    normals = np.array(lookup_tables._NEIGHBOUR_CODE_TO_NORMALS[code])
    return np.linalg.norm(math.prod(spacing) * normals / spacing, axis=1).sum()  # det(S) S^-T n


def literal_hd95(one, other, spacing):
    """Distances of every surface element to every other, and the percentile weighted by their sizes."""
    (a, size_a), (b, size_b) = (surface(mask, np.asarray(spacing, float)) for mask in (one, other))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    found = []
    for nearest, size in ((distances.min(1), size_a), (distances.min(0), size_b)):
        order = np.argsort(nearest)
        share = np.cumsum(size[order]) / size.sum()
        found.append(nearest[order][np.argmax(share >= 0.95)])
    return max(found)


SPACINGS = {2: [(1, 1), (1, 3), (2.5, 0.7)], 3: [(1, 1, 1), (1, 1, 4), (0.5, 3, 1.2)]}


@pytest.mark.parametrize("shape", [(19, 17), (14, 1), (9, 10, 8), (1, 9, 9)], ids=str)
@pytest.mark.parametrize("blur", [0.7, 2.0])
def test_hd95_equals_a_brute_force_with_voxels_of_any_shape(shape, blur):
    masks = []
    for seed in (0, 1):
        values = np.random.default_rng(seed).standard_normal(shape)
        values = ndimage.gaussian_filter(values, [min(blur, n - 1) for n in shape])
        masks.append(values > np.quantile(values, 0.6))
    maps = [torch.tensor(mask[None, None]).long() for mask in masks]
    scores = {}
    for spacing in SPACINGS[len(shape)]:
        [scores[spacing]] = metrics.hd95(*maps, maps[1], [1], spacing)
        assert scores[spacing] == pytest.approx(literal_hd95(*masks, spacing), rel=1e-12)
        [twice] = metrics.hd95(*maps, maps[1], [1], tuple(2 * s for s in spacing))
        assert twice == pytest.approx(2 * scores[spacing]) and twice > 0
    if blur == 2 and min(shape) > 1:
        assert len(set(scores.values())) == 3  # the shape of the voxels matters
    cube = scores[(1,) * len(shape)]
    for default in ([], [1], [1.0], [(1,) * len(shape)], [np.ones(len(shape))], [torch.ones(len(shape))]):
        assert metrics.hd95(*maps, maps[1], [1], *default) == [cube]


@pytest.mark.parametrize("axis,dim", [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)])
def test_hd95_of_a_box_shifted_along_an_axis_is_in_the_unit_of_its_voxels(axis, dim):
    spacing = (0.8, 1.5, 3.0)[:dim]
    first = np.full(dim, 4)
    fixed, moved = (
        box((20, 21, 22)[:dim], a, a + 9) for a in (first, first + 3 * np.eye(dim, dtype=int)[axis])
    )
    assert metrics.hd95(moved, fixed, fixed, [1], spacing) == pytest.approx([3 * spacing[axis]])


@pytest.mark.parametrize(
    "spacing", [0, -1, np.nan, np.inf, (1, 0), (1, np.nan), (1,), (1, 1, 1), [[1, 1]], "a", None, ()]
)
def test_a_spacing_that_is_none_is_refused_in_one_line(spacing):
    labels = box((8, 9), (2, 2), (5, 5))
    with pytest.raises(ValueError) as error:
        metrics.hd95(labels, labels, labels, [1], spacing)
    assert str(error.value) == (
        f"spacing: expected the size of a voxel, one number above 0 or 2 for the 2 axes, got {spacing!r}"
    )


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


OF_A_MAP = {
    **{f"sdlogj {kind}": partial(metrics.sdlogj, kind=kind) for kind in SDLOGJ_KINDS},
    **{f"folding {c}": partial(metrics.folding_percent, convention=c) for c in CONVENTIONS},
    "ndv": metrics.ndv_percent,
}
each_of_a_map = pytest.mark.parametrize("measure", OF_A_MAP.values(), ids=OF_A_MAP)


@each_of_a_map
@pytest.mark.parametrize("shape", [(6, 7), (5, 8, 6)], ids=str)
@pytest.mark.parametrize("flaw", [math.nan, math.inf, -math.inf], ids=str)
def test_a_map_that_is_not_finite_has_no_score(flaw, shape, measure):
    dim, u = len(shape), 0.3 * np.random.default_rng(0).standard_normal((1, len(shape), *shape))
    assert math.isfinite(measure(torch.tensor(u)))
    for share, component, dtype in itertools.product((0, 0.5, 1), range(dim), (torch.float32, torch.float16)):
        bad = torch.tensor(u, dtype=dtype)
        bad[(0, component, *(int(share * (s - 1)) for s in shape))] = flaw
        assert math.isnan(measure(bad))
    assert math.isnan(measure(torch.full((1, dim, *shape), flaw)))


@each_of_a_map
def test_a_determinant_beyond_float64_is_no_perfect_map(measure):
    u = torch.tensor(1e200 * np.random.default_rng(0).standard_normal((1, 2, 7, 6)))
    assert not math.isfinite(measure(u))


@each_of_a_map
@pytest.mark.parametrize("shape", [(6, 7), (5, 8, 6)], ids=str)
def test_scores_of_a_map_are_of_one_pair(shape, measure):
    for batch in (2, 5):
        with pytest.raises(ValueError, match=rf": expected one pair \(1, ...\), got a batch of {batch};"):
            measure(torch.zeros(batch, len(shape), *shape))


def test_textbook_sdlogj_is_not_defined_where_everything_folds():
    u = torch.zeros(1, 2, 8, 9)
    u[:, 0] = -2 * torch.arange(8.0)[:, None]  # x -> -x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(metrics.sdlogj(u, "textbook"))
    assert metrics.sdlogj(u) == pytest.approx(0) and metrics.folding_percent(u) == 100


@pytest.mark.parametrize(
    "shape", [*itertools.product((1, 2, 3), repeat=2), *itertools.product((1, 2), repeat=3)], ids=str
)
def test_folds_and_volume_of_the_smallest_grids(shape):
    u = 0.8 * np.random.default_rng(1).standard_normal((len(shape), *shape))
    field = torch.tensor(u)[None]
    for convention in ("one-sided", "replicated"):
        folded, looked_at = literal_folds(u, convention)
        assert metrics.folding_percent(field, convention) == pytest.approx(100 * folded / looked_at)
    assert metrics.ndv_percent(field) == pytest.approx(literal_ndv(u), rel=1e-9)


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 3)], ids=str)
@pytest.mark.parametrize("flaw", [math.nan, math.inf, -math.inf], ids=str)
def test_the_inverse_error_is_nan_where_a_map_is_not_finite(flaw, shape):
    u = torch.tensor(np.random.default_rng(0).random((2, len(shape), *shape)))
    bad, where = u.clone(), tuple(s // 2 for s in shape)
    bad[(0, 1, *where)] = flaw
    expected = metrics.inverse_consistency_error(u, -u)
    expected[(0, *where)] = math.nan
    ours = metrics.inverse_consistency_error(bad, -u)
    torch.testing.assert_close(ours, expected, equal_nan=True)  # the other pair of the batch keeps its map
    read = metrics.inverse_consistency_error(torch.zeros_like(u), bad)
    assert read[(0, *where)].isnan() and not read.isinf().any() and read[1].isfinite().all()


@pytest.mark.parametrize("shape", [(12, 15), (9, 12, 15)])
def test_landmarks_of_the_fixed_image_are_carried_to_the_moving_one(shape):
    """A shift that is known: the moving image is the fixed one, moved by s, so that u = s everywhere."""
    rank = len(shape)
    shift = torch.tensor([2.0, -1.0, 3.0][:rank])
    fixed = torch.rand(1, 7, rank, generator=torch.Generator().manual_seed(0)) * 4 + 3
    moving = fixed + shift
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    shifted = torch.roll(image, shift.int().tolist(), tuple(range(2, 2 + rank)))
    u = shift.view(1, rank, *[1] * rank).expand(1, rank, *shape)
    inside = (0, 0, *[slice(3, -3)] * rank)
    torch.testing.assert_close(fields.warp(shifted, u)[inside], image[inside])  # it does align the images
    torch.testing.assert_close(metrics.landmark_error(u, fixed, moving), torch.zeros(1, 7), atol=1e-5, rtol=0)
    length = float(shift.norm())
    before = metrics.landmark_error(torch.zeros_like(u), fixed, moving)
    torch.testing.assert_close(before, torch.full((1, 7), length))
    torch.testing.assert_close(metrics.landmark_error(-u, fixed, moving), torch.full((1, 7), 2 * length))


def test_as_many_landmarks_in_one_image_as_in_the_other():
    with pytest.raises(ValueError, match="as many in the moving image"):
        metrics.landmark_error(torch.zeros(1, 2, 8, 8), torch.ones(1, 3, 2), torch.ones(1, 4, 2))
