"""Labels of every integer type and number, and intensities outside [0, 1], in fields, metrics and losses."""

import itertools

import literal
import numpy as np
import pytest
import torch
from test_sweep_functions import FLOATS, SIZES, make, ours, shapes

from tvf_core import fields, losses, metrics

WHOLE = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
NUMBERS = (1, 2, 127, 255, 1000, 2035, 65_535, 20_000_000, 614_454_277, 2**31 + 5, 2**53 + 1, 2**63 - 1)


def fitting(dtype):
    """Odd label numbers that a type can hold, the smallest and the largest among them; 0 is background."""
    info = torch.iinfo(dtype)
    return sorted(
        {n for n in (*NUMBERS, info.max, info.max - 1, info.min, -1) if n and info.min <= n <= info.max}
    )


def label_maps(shape, numbers, dtype, count, seed=0):
    """Maps (1, 1, *S) in which background and some of the numbers occur, and the same with 0, 1, 2, ..."""
    rng = np.random.default_rng([seed, *shape])
    plain = [rng.integers(0, len(numbers) + 1, (1, 1, *shape)) for _ in range(count)]
    odd = np.array([0, *numbers], dtype=np.dtype(str(dtype).removeprefix("torch.")))
    return [torch.from_numpy(odd[one]) for one in plain], [torch.from_numpy(one) for one in plain]


def choices(dtype):
    """Four of the odd numbers at a time, so that few voxels hold many of each."""
    numbers = fitting(dtype)
    return [numbers[k : k + 4] for k in range(0, len(numbers), 4)]


@pytest.mark.parametrize("shape", [(9, 12), (5, 6, 8), (7, 1, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", WHOLE)
def test_labels_of_every_type_and_value_come_back_exactly(dtype, shape):
    for numbers in choices(dtype):
        (labels,), _ = label_maps(shape, numbers, dtype, 1)
        still = torch.zeros(1, len(shape), *shape)
        for form in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            same = fields.warp_labels(labels, still.to(form))
            assert same.dtype == dtype and same.tolist() == labels.tolist()
        for axis, n in enumerate(shape):
            for step in (2, -1) if n > 2 else ():
                shift = still.clone()
                shift[:, axis] = step
                moved = fields.warp_labels(labels, shift).numpy()
                wanted = np.roll(labels.numpy(), -step, 2 + axis)
                gone = (
                    ...,
                    slice(n - step, None) if step > 0 else slice(0, -step),
                    *[slice(None)] * (len(shape) - axis - 1),
                )
                wanted[gone] = 0
                assert moved.dtype == wanted.dtype and np.array_equal(moved, wanted)


@pytest.mark.parametrize("shape", [(9, 12), (7, 1, 6)], ids=str)
@pytest.mark.parametrize("dtype", WHOLE)
def test_scores_and_losses_do_not_see_how_labels_are_called(dtype, shape):
    for numbers in choices(dtype):
        odd, plain = label_maps(shape, numbers, dtype, 3)
        names = list(range(1, len(numbers) + 1))
        for metric in (metrics.dice, metrics.hd95):
            np.testing.assert_array_equal(metric(*odd, numbers), metric(*plain, names))
        u = torch.from_numpy(make("field", shape, np.random.default_rng(1)))[None].requires_grad_()
        for loss in (losses.soft_dice, losses.label_mse):
            for chosen, called in ((None, None), ((0, *numbers, 100), (0, *names, 100))):
                first, second = loss(odd[0], u, odd[1], chosen), loss(plain[0], u, plain[1], called)
                torch.testing.assert_close(first, second)
                slopes = [torch.autograd.grad(value, u)[0] for value in (first, second)]
                torch.testing.assert_close(*slopes)
                assert slopes[0].any()


@pytest.mark.parametrize("dtype", [torch.bool, *FLOATS])
def test_labels_are_whole_numbers(dtype):
    labels, u = torch.ones(1, 1, 6, 5).to(dtype), torch.zeros(1, 2, 6, 5)
    for call in (
        lambda: fields.warp_labels(labels, u),
        lambda: metrics.dice(labels, labels, labels, [1]),
        lambda: metrics.hd95(labels, labels, labels, [1]),
        lambda: losses.soft_dice(labels, u, labels),
        lambda: losses.label_mse(labels, u, labels),
    ):
        with pytest.raises(TypeError) as refused:
            call()
        assert ours(refused.value)


@pytest.mark.parametrize("loss", ["soft_dice", "label_mse"])
def test_pairs_of_a_batch_with_other_labels_have_their_own_means(loss):
    """Whatever the other pair of the batch holds, and whatever else could occur."""
    moving, fixed = (torch.zeros(2, 1, 8, 9, dtype=torch.int64) for _ in range(2))
    moving[0, 0, 2:5, 2:6], fixed[0, 0, 3:6, 2:6] = 2035, 2035
    moving[1, 0, 1:7, 1:3], fixed[1, 0, 1:6, 4:8] = 1000, 614_454_277
    u = torch.from_numpy(np.stack([make("field", (8, 9), np.random.default_rng(k)) for k in (0, 1)]))
    each = [getattr(literal, loss)(*(x[k].numpy() for x in (moving, u, fixed))) for k in (0, 1)]
    for labels in (None, (0, 1000, 2035, 614_454_277), (614_454_277, 0, 7, 2035, 1000, 2**40)):
        found = getattr(losses, loss)(moving, u, fixed, labels)
        assert float(found) == pytest.approx(np.mean(each), rel=1e-4)
    with pytest.raises(ValueError, match="the label .* is none of the 2 in labels") as refused:
        getattr(losses, loss)(moving, u, fixed, (0, 2035))
    assert ours(refused.value)


@pytest.mark.parametrize("n", SIZES)
def test_a_zero_displacement_is_the_identity(n):
    for shape, dtype in itertools.product(shapes(n), FLOATS):
        still = torch.zeros(2, len(shape), *shape, dtype=dtype)
        image = torch.from_numpy(np.random.default_rng(n).uniform(size=(2, 1, *shape))).to(dtype)
        close = {"rtol": 0, "atol": 1e-5}
        for mode, padding in itertools.product(("linear", "nearest"), ("zeros", "border")):
            same = fields.warp(image, still, mode, padding)
            assert same.dtype == torch.promote_types(dtype, torch.float32)
            torch.testing.assert_close(
                same, image.to(same.dtype), **close if mode == "linear" else {"rtol": 0, "atol": 0}
            )
        for nothing in (fields.compose(still, still), fields.invert(still), fields.jacobian(still)[:, 0, 1]):
            assert not nothing.any()
        assert (fields.jacobian_determinant(still) == 1).all()


@pytest.mark.parametrize("n", SIZES[1:])
def test_hd95_is_how_far_a_voxel_has_moved_in_the_unit_of_the_spacing(n):
    for shape in shapes(n):
        for axis, spacing in itertools.product(range(len(shape)), (1.0, (2.5, 0.7, 1.3)[: len(shape)])):
            steps = shape[axis] - 1
            maps = torch.zeros(2, 1, 1, *shape, dtype=torch.int64)
            for k in (0, 1):
                maps[(k, 0, 0, *(steps * k if a == axis else m // 2 for a, m in enumerate(shape)))] = 2035
            unit = spacing if isinstance(spacing, float) else spacing[axis]
            found = metrics.hd95(maps[0], maps[1], maps[0], [2035, 7], spacing=spacing)
            np.testing.assert_allclose(found, [steps * unit, np.nan])


@pytest.mark.parametrize("shape", [(16, 13), (12, 13, 11)], ids=str)
@pytest.mark.parametrize("low, high", [(0, 255), (-1, 1), (0, 1.01), (-1000, 3000)])
def test_intensities_outside_0_and_1_are_refused_where_they_would_change_the_score(shape, low, high):
    a, b = torch.rand(2, 1, 1, *shape) * (high - low) + low
    a.view(-1)[5], b.view(-1)[7] = low, high
    good = torch.rand(1, 1, *shape)
    for function in (metrics.ssim, losses.ssim, *[metrics.fsim] * (len(shape) == 2)):
        for pair in ((a, b), (b, good), (good, b)):
            with pytest.raises(
                ValueError, match=r"intensities from .* expected \[0, 1\]; scale them"
            ) as refused:
                function(*pair)
            assert ours(refused.value)
    for loss in (losses.lncc, losses.mse, losses.multiscale_lncc):
        assert loss(a, b).isfinite()
