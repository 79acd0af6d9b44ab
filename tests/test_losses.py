"""Losses against literal loops, dense convolutions, one-hot maps and closed forms."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch.library import opcheck

from tvf_core import fields, integrate, losses, metrics, released
from tvf_core.data import demo_brains
from tvf_core.labels import compact, table
from tvf_core.losses import label_overlap, local_ncc, objectives
from tvf_core.methods import METHODS
from tvf_core.networks import layers
from tvf_core.paths import ROOT

LABEL_TERMS = [losses.soft_dice, losses.label_mse]
INTEGERS = [
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]

each_size = pytest.mark.parametrize("shape", [(11, 13), (10, 12), (9, 10, 11)], ids=str)


def noise(shape, seed=0, channels=1, batch=1, dtype=torch.float64):
    return torch.tensor(np.random.default_rng(seed).random((batch, channels, *shape)), dtype=dtype)


def random_labels(shape, classes, seed, batch=1):
    return torch.tensor(np.random.default_rng(seed).integers(0, classes, (batch, 1, *shape)))


def gradients(loss, *inputs):
    """Value of ``loss(*inputs)`` and its gradients for all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def distance(found, expected):
    """Largest difference, relative to the largest expected value."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def literal_lncc(a, b, window, eps=1e-5):
    """Local NCC window by window, on zero-padded images, by the formula of the released code."""
    half, n = window // 2, window**a.ndim
    a, b = np.pad(a, half), np.pad(b, half)
    values = []
    for corner in np.ndindex(*(s - 2 * half for s in a.shape)):
        box = tuple(slice(c, c + window) for c in corner)
        i, j = a[box], b[box]
        mean_i, mean_j = i.sum() / n, j.sum() / n
        cross = ((i - mean_i) * (j - mean_j)).sum()
        values.append(cross**2 / (((i - mean_i) ** 2).sum() * ((j - mean_j) ** 2).sum() + eps))
    return -np.mean(values)


def dense_lncc(a, b, window, eps=1e-5):
    """Local NCC of the released code in float64: box sums are convolutions with ones."""
    a, b, dim = a.double(), b.double(), a.dim() - 2
    conv = F.conv2d if dim == 2 else F.conv3d
    ones, n = torch.ones(1, 1, *[window] * dim, dtype=a.dtype), window**dim
    box = [conv(x, ones, padding=window // 2) for x in (a, b, a * a, b * b, a * b)]
    mean_a, mean_b = box[0] / n, box[1] / n
    cross = box[4] - mean_b * box[0] - mean_a * box[1] + mean_a * mean_b * n
    var_a = box[2] - 2 * mean_a * box[0] + mean_a * mean_a * n
    var_b = box[3] - 2 * mean_b * box[1] + mean_b * mean_b * n
    return -(cross * cross / (var_a * var_b + eps)).mean()


@each_size
@pytest.mark.parametrize("window", [3, 9])
def test_lncc_equals_a_loop_over_windows(shape, window):
    a, b = noise(shape, 0), noise(shape, 1)
    expected = literal_lncc(a[0, 0].numpy(), b[0, 0].numpy(), window)
    assert float(losses.lncc(a, b, window)) == pytest.approx(expected, rel=1e-9)
    assert float(losses.lncc(a.float(), b.float(), window)) == pytest.approx(expected, abs=1e-5)


THIN = [(1, 20), (20, 1), (2, 7), (1, 1), (11, 10, 1), (1, 9, 10), (9, 1, 2), (1, 1, 12), (1, 1, 1)]


@pytest.mark.parametrize("shape", [(7, 20), (7, 10, 11), (12, 13, 5), *THIN], ids=str)
def test_lncc_works_on_images_thinner_than_its_window(shape):
    a, b = noise(shape, 0), noise(shape, 1)
    expected = literal_lncc(a[0, 0].numpy(), b[0, 0].numpy(), 9)
    assert float(losses.lncc(a, b)) == pytest.approx(expected, rel=1e-9)
    value, *found = gradients(losses.lncc, a, b)
    _, *slopes = gradients(lambda a, b: dense_lncc(a, b, 9), a, b)
    for g, e in zip(found, slopes):
        assert distance(g, e) < 1e-6


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("window", [3, 9])
def test_lncc_of_one_voxel_has_a_closed_form(dim, window):
    """All other voxels of the window are zero: sums of products shrink by what the mean takes away."""
    a, b = (torch.full((1, 1, *[1] * dim), value, dtype=torch.float64) for value in (0.3, 0.8))
    squared = (0.3 * 0.8 * (1 - window**-dim)) ** 2
    assert float(losses.lncc(a, b, window)) == pytest.approx(-squared / (squared + 1e-5), rel=1e-12)


def intensities(kind, shape, seed, batch):
    """An image of noise, a textured patch on a bright constant background, or one of faint contrast."""
    texture = noise(shape, seed, batch=batch)
    if kind == "patch":
        image, inner = torch.full_like(texture, 0.8), (..., *[slice(s // 3, 2 * s // 3) for s in shape])
        image[inner] = 0.8 + 0.2 * (texture[inner] - 0.5)
        return image
    return texture if kind == "noise" else 0.5 + 1e-3 * texture


@pytest.mark.parametrize("shape,batch", [((13, 16), 2), ((13, 10, 11), 1), ((6, 7, 8), 2)], ids=str)
@pytest.mark.parametrize("window", [3, 5, 9])
@pytest.mark.parametrize("kind", ["noise", "patch", "faint"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_lncc_and_its_gradients_equal_the_dense_form(shape, batch, window, kind, dtype):
    # In float32 the sums would lose the variance of faint contrast, and a constant background would outweigh
    # the patch.
    a, b = (intensities(kind, shape, k, batch).to(dtype) for k in (0, 1))
    scale = a.numel()  # a mean's gradient would underflow in float16
    value, *found = gradients(lambda a, b: scale * losses.lncc(a, b, window), a, b)
    value_dense, *expected = gradients(lambda a, b: scale * dense_lncc(a, b, window), a.double(), b.double())
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert float(value) == pytest.approx(float(value_dense), rel=1e-5 if dtype != torch.float64 else 1e-9)
    for g, e in zip(found, expected):
        assert g.dtype == dtype
        # A small variance also costs digits in float64, in both forms; float16 keeps 11 bits.
        assert distance(g, e) < {torch.float64: 1e-7, torch.float32: 1e-5, torch.float16: 6e-4}[dtype]


@pytest.mark.parametrize("shape", [(7, 12), (2, 6, 7), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("window", [5, 9])
def test_lncc_does_not_depend_on_how_many_planes_come_at_once(shape, window, monkeypatch):
    a, b = noise(shape, 0, batch=2), noise(shape, 1, batch=2)
    found = []
    for voxels in (1, 3 * 2 * math.prod(shape[1:]), 10**9):  # one plane, three planes, all
        monkeypatch.setitem(local_ncc.CHUNK, "cpu", voxels)
        found.append(gradients(lambda a, b: losses.lncc(a, b, window), a, b))
    for others in found[1:]:
        for x, y in zip(others, found[0]):
            assert distance(x, y) < 1e-12


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=str)
def test_first_derivatives_of_lncc_are_right_and_there_are_no_second_ones(shape):
    a, b = noise(shape, 0, batch=2).requires_grad_(), noise(shape, 1, batch=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: losses.lncc(a, b, 3), (a, b))
    assert torch.autograd.gradcheck(lambda a: losses.lncc(a, b.detach(), 3), a)
    assert torch.autograd.gradcheck(lambda b: losses.lncc(a.detach(), b, 3), b)
    (slope,) = torch.autograd.grad(losses.lncc(a, b, 3), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        slope.sum().backward()


def test_lncc_computes_and_keeps_gradients_only_where_they_are_wanted(monkeypatch):
    asked, compute = [], local_ncc.lncc_with_gradients

    def spy(*arguments):
        asked.append(arguments[4:])
        return compute(*arguments)

    monkeypatch.setattr(local_ncc, "lncc_with_gradients", spy)
    a, b = noise((8, 9), 0), noise((8, 9), 1)
    assert not losses.lncc(a, b).requires_grad
    a.requires_grad_()
    with torch.no_grad():
        assert not losses.lncc(a, b).requires_grad
    losses.lncc(a, b).backward()
    assert a.grad.any() and b.grad is None
    assert asked == [(False, False), (False, False), (True, False)]
    value, *empty = local_ncc.lncc_with_gradients(a.detach(), b, 9, 1e-5, False, False)
    assert [g.numel() for g in empty] == [0, 0]


@pytest.mark.parametrize("window", [-3, 0, 1, 8])
def test_lncc_refuses_windows_without_a_centre_or_without_neighbours(window):
    with pytest.raises(ValueError, match="window: expected .* of at least 3"):
        losses.lncc(noise((9, 9)), noise((9, 9)), window)


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 7)], ids=str)
def test_lncc_takes_views_of_any_memory_layout(shape):
    a, b = noise(shape, 0, batch=2), noise(shape, 1, batch=2)
    swapped, strided = a.transpose(2, 3).contiguous().transpose(2, 3), b.repeat_interleave(2, -1)[..., ::2]
    expected = gradients(lambda a, b: losses.lncc(a, b, 3), a, b)
    a_leaf, b_leaf = swapped.requires_grad_(), strided.requires_grad_()
    value = losses.lncc(a_leaf, b_leaf, 3)
    torch.testing.assert_close((value.detach(), *torch.autograd.grad(value, (a_leaf, b_leaf))), expected)
    one = b[:, :, :1].expand_as(b)  # the same plane everywhere, stored once
    assert float(losses.lncc(a, one, 3)) == pytest.approx(
        float(losses.lncc(a, one.contiguous(), 3)), rel=1e-12
    )


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)], ids=str)
def test_lncc_keeps_the_contract_of_an_operation(wanted, shape):
    for lay in (lambda x: x, lambda x: x.transpose(2, 3)):
        a, b = (lay(noise(shape, k)).requires_grad_(want) for k, want in enumerate(wanted))
        # The check that differentiates all outputs is left out, because the gradients have no derivative.
        opcheck(
            local_ncc.lncc_with_gradients,
            (a, b, 3, 1e-5, *wanted),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


@each_size
def test_lncc_of_an_image_with_itself_is_minus_one(shape):
    a = noise(shape, dtype=torch.float32)
    assert float(losses.lncc(a, a)) == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("other", ["noise", "constant"])
def test_a_constant_image_has_no_correlation_and_no_gradient_away_from_the_border(value, other):
    a = torch.full((1, 1, 24, 25), value)
    b = noise((24, 25)).float() if other == "noise" else torch.full_like(a, 0.7)
    loss, *found = gradients(losses.lncc, a, b)
    expected, *dense = gradients(lambda a, b: dense_lncc(a, b, 9), a.double(), b.double())
    # At the border the zeros outside the image give contrast.
    assert float(loss) == pytest.approx(float(expected), rel=1e-5, abs=1e-12)
    for g, e in zip(found, dense):
        torch.testing.assert_close(g.double(), e, rtol=0, atol=1e-8)
        assert g[..., 8:-8, 8:-8].abs().max() < 1e-9
    if value == 0:
        assert float(loss) == 0 and not torch.stack(found)[1 if other == "noise" else 0].any()


@pytest.mark.parametrize("shape", [(25, 26), (15, 16, 15)], ids=str)
def test_lncc_does_not_see_an_affine_change_of_intensity(shape):
    # a is zero wherever a window reaches outside the image, so that those windows contribute nothing.
    a, b = torch.zeros(1, 1, *shape, dtype=torch.float64), noise(shape, 1)
    core = (..., *[slice(5, -5)] * len(shape))
    a[core] = noise(shape, 0)[core]
    expected = float(losses.lncc(a, b, 5, eps=1e-12))
    assert expected < -0.001
    assert float(losses.lncc(a, 0.4 * b + 0.3, 5, eps=1e-12)) == pytest.approx(expected, rel=1e-6)
    # The correlation is squared, so that its sign does not matter either.
    assert float(losses.lncc(a, 1 - b, 5, eps=1e-12)) == pytest.approx(expected, rel=1e-6)


def literal_label_maps(moving, displacement, fixed, classes):
    points = np.stack(np.meshgrid(*map(np.arange, moving.shape[2:]), indexing="ij")) + displacement[0].numpy()
    for k in range(classes):
        one = (moving[0, 0].numpy() == k).astype(float)
        yield ndimage.map_coordinates(one, points, order=1, mode="grid-constant"), fixed[0, 0].numpy() == k


@each_size
def test_soft_dice_and_label_mse_equal_warping_each_label_by_itself(shape):
    labels = range(6)  # label 5 is in neither map: it is not in the mean
    moving, fixed = random_labels(shape, 5, 0), random_labels(shape, 5, 1)
    u = 4 * noise(shape, 2, channels=len(shape)) - 2
    scores, squares = [], []
    for warped, target in literal_label_maps(moving, u, fixed, 5):
        scores.append(2 * (warped * target).sum() / ((warped**2).sum() + target.sum() + 1e-5))
        squares.append(((warped - target) ** 2).mean())
    for given in (labels, None):
        dice, mse = (float(loss(moving, u, fixed, given)) for loss in LABEL_TERMS)
        assert dice == pytest.approx(1 - np.mean(scores), rel=1e-6)
        assert mse == pytest.approx(np.mean(squares), rel=1e-6)


def test_label_terms_of_identical_maps_are_zero_whatever_else_could_occur():
    labels = random_labels((9, 10), 4, 0)
    u = torch.zeros(1, 2, 9, 10)
    for numbers in (range(4), range(5), range(-40, 2035), None):
        assert float(losses.soft_dice(labels, u, labels, numbers)) == pytest.approx(0, abs=1e-5)
        assert float(losses.label_mse(labels, u, labels, numbers)) == pytest.approx(0, abs=1e-9)


def test_a_label_that_only_one_map_of_a_pair_has_is_in_its_mean():
    moving, fixed = torch.zeros(2, 2, 1, 6, 7, dtype=torch.int64)
    moving[0, 0, 2:4, 2:4] = 1  # in the moving map alone; the second pair has background alone
    u = torch.zeros(2, 2, 6, 7)
    background = 2 * 38 / (38 + 42)
    assert float(losses.soft_dice(moving, u, fixed)) == pytest.approx(1 - (background / 2 + 1) / 2, abs=1e-5)
    assert float(losses.label_mse(moving, u, fixed)) == pytest.approx((4 / 42 + 4 / 42) / 2 / 2)
    # Both directions agree, though nothing of the moving map may be left after the warp.
    for a, b, shift in ((fixed, moving, 0), (moving, fixed, 50)):
        other = float(losses.soft_dice(a, u + shift, b))
        assert other == pytest.approx(1 - (background / 2 + 1) / 2 if not shift else 1, abs=1e-5)


def test_label_losses_average_over_the_batch():
    moving, fixed = (
        torch.cat([random_labels((9, 10), 4, s), random_labels((9, 10), 4, s + 1)]) for s in (0, 5)
    )
    u = noise((9, 10), 3, channels=2, batch=2)
    for loss in LABEL_TERMS:
        single = [float(loss(moving[k : k + 1], u[k : k + 1], fixed[k : k + 1])) for k in (0, 1)]
        assert float(loss(moving, u, fixed)) == pytest.approx(np.mean(single), rel=1e-6)


def one_hot(labels, classes):
    return F.one_hot(labels[:, 0].long(), classes).movedim(-1, 1).double()


def dense_label_terms(moving, displacement, fixed, classes, eps=1e-5):
    """Soft Dice and mean squared difference with one warped channel per class, in float64."""
    source, target = one_hot(moving, classes), one_hot(fixed, classes)
    warped, axes = fields.warp(source, displacement.double()), tuple(range(2, source.dim()))
    common, size = (warped * target).sum(axes), warped.square().sum(axes) + target.square().sum(axes)
    scores, squares = 2 * common / (size + eps), (warped - target).square().mean(axes)
    occurs = (source + target).amax(axes) > 0
    pairs = [
        (score[there].mean(), square[there].mean()) for score, square, there in zip(scores, squares, occurs)
    ]
    dice, mse = (torch.stack(values).mean() for values in zip(*pairs))
    return 1 - dice, mse


def blocks(shape, classes, seed, batch=1, edge=4):
    labels = random_labels([-(-s // edge) for s in shape], classes, seed, batch)
    for axis, size in enumerate(shape):
        labels = labels.repeat_interleave(edge, 2 + axis).narrow(2 + axis, 0, size)
    return labels


def motion(shape, reach, seed=2, batch=1):
    """Displacements up to ``reach`` voxels that avoid voxel centres, where the gradient jumps."""
    rng = np.random.default_rng(seed)
    size = (batch, len(shape), *shape)
    return torch.tensor(rng.integers(-reach, reach + 1, size) + rng.uniform(0.05, 0.95, size))


LABEL_CASES = {  # maker of labels, shape, classes, farthest displacement, batch
    "random, far outside too": (random_labels, (12, 13), 5, 30, 1),
    "random, 3D": (random_labels, (7, 8, 9), 4, 8, 1),
    "random, batch": (random_labels, (9, 8), 3, 3, 2),
    "blocks": (blocks, (17, 22), 4, 1, 1),
    "blocks, 3D, batch": (blocks, (10, 11, 9), 6, 2, 2),
    "253 classes": (random_labels, (20, 21), 253, 2, 1),  # 254 are the last that fit in 8 bits
    "254 classes": (random_labels, (20, 21), 254, 2, 1),
    "255 classes": (random_labels, (20, 21), 255, 2, 1),
    "256 classes": (random_labels, (20, 21), 256, 2, 1),
    "700 classes, 3D": (random_labels, (9, 8, 9), 700, 1, 1),
    "one plane": (random_labels, (1, 9, 10), 4, 3, 1),
    "one row": (random_labels, (14, 1), 3, 3, 1),
    "one voxel in the middle axis": (random_labels, (6, 1, 5), 3, 2, 2),
    "one class": (random_labels, (8, 9), 1, 3, 1),
    "classes that only one map has, or none": (random_labels, (11, 12), 3, 2, 1),
    "all far outside": (random_labels, (8, 9), 3, 3, 1),
}


def label_case(name):
    make, shape, classes, reach, batch = LABEL_CASES[name]
    moving, fixed = (make(shape, classes, seed, batch) for seed in (0, 1))
    u = motion(shape, reach, batch=batch) + (50 if name == "all far outside" else 0)
    if name.startswith("classes that"):
        moving, fixed, classes = 3 * moving, fixed + 2, 9
    for labels in (moving, fixed) if classes > 200 else ():
        labels[(0, 0, *[0] * len(shape))] = classes - 1
    return moving, fixed, u, range(classes)


@pytest.mark.parametrize("case", LABEL_CASES)
@pytest.mark.parametrize("term", [0, 1], ids=["soft_dice", "label_mse"])
def test_label_terms_and_their_gradients_equal_warping_one_channel_per_class(case, term):
    moving, fixed, u, labels = label_case(case)
    ours = LABEL_TERMS[term]
    expected, slope = gradients(lambda u: dense_label_terms(moving, u, fixed, len(labels))[term], u)
    assert slope.any() != (case == "all far outside") and float(expected) > 1e-4
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        value, found = gradients(lambda u: ours(moving, u, fixed, labels), u.to(dtype))
        assert value.dtype == found.dtype == dtype
        assert float(value) == pytest.approx(float(expected), rel=rtol)
        torch.testing.assert_close(found.double(), slope, rtol=0, atol=rtol * float(slope.abs().max()))


NUMBERS = {  # numbers of five labels -> the types that can hold them
    (0, 1, 2, 3, 4): INTEGERS,
    (0, 17, 49, 53, 127): INTEGERS,
    (-128, -3, -1, 0, 127): [t for t in INTEGERS if t.is_signed],
    (0, 1, 250, 254, 255): [t for t in INTEGERS if t != torch.int8],
    (0, 1000, 1001, 2035, 32_767): [t for t in INTEGERS if t.itemsize > 1],
    (0, 614_454_277, 20_000_000, 5, 6): [t for t in INTEGERS if t.itemsize > 2],
    (0, 2**31 + 5, 2**32 - 1, 3, 2): [torch.uint32, torch.uint64, torch.int64],
    (-(2**63), -1, 0, 2**62, 2**63 - 1): [torch.int64],
    (0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1): [torch.uint64],
}


def renamed(labels, numbers, dtype):
    """A map of 0, 1, 2, ... with other numbers, made by Python's integers."""
    values = np.array(numbers, dtype=str(dtype).removeprefix("torch."))
    return torch.from_numpy(values[labels.numpy()])


@pytest.mark.parametrize("shape,batch", [((9, 10), 1), ((6, 1), 2), ((5, 6, 4), 2)], ids=str)
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_label_terms_depend_on_neither_the_numbers_of_labels_nor_their_type(numbers, shape, batch):
    moving, fixed = (random_labels(shape, 5, seed, batch) for seed in (0, 1))
    moving[moving == 1], fixed[fixed == 2] = 0, 0
    u = motion(shape, 2, batch=batch)
    for loss in LABEL_TERMS:
        expected = gradients(lambda u, loss=loss: loss(moving, u, fixed, range(5)), u)
        assert expected[1].any()
        for dtype in NUMBERS[numbers]:
            maps = [renamed(x, numbers, dtype) for x in (moving, fixed)]
            for given in (None, numbers, (*numbers, 99, -7, 2**60 + 1, 2**64 - 3)):
                found = gradients(lambda u, loss=loss: loss(maps[0], u, maps[1], given), u)  # noqa: B023
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_the_two_maps_of_a_pair_may_be_of_different_types():
    moving, fixed, u = random_labels((9, 10), 4, 0), random_labels((9, 10), 4, 1), motion((9, 10), 2)
    for loss in LABEL_TERMS:
        expected = gradients(lambda u, loss=loss: loss(moving, u, fixed), u)
        for one, other in [(INTEGERS[k], INTEGERS[(k + 3) % 8]) for k in range(8)]:
            found = gradients(lambda u, loss=loss: loss(moving.to(one), u, fixed.to(other)), u)  # noqa: B023
            assert all(torch.equal(x, y) for x, y in zip(found, expected))
        # The largest numbers of uint64 have the bits of negative ones, and are others all the same.
        signed = renamed(moving, (-1, -3, 2, 3), torch.int64)
        large = renamed(fixed, (2**64 - 1, 2**64 - 3, 2, 3), torch.uint64)
        apart = gradients(lambda u, loss=loss: loss(signed, u, large), u)  # noqa: B023
        other = gradients(lambda u, loss=loss: loss(moving, u, fixed + 4 * (fixed < 2)), u)
        torch.testing.assert_close(apart, other, rtol=1e-12, atol=1e-15)


def test_gaps_between_label_numbers_leave_the_strength_of_the_gradient():
    moving, fixed = (blocks((20, 21), 3, seed) for seed in (0, 1))
    u = motion((20, 21), 1)
    for loss in LABEL_TERMS:
        near = gradients(lambda u, loss=loss: loss(moving, u, fixed), u)
        far = [renamed(x, (0, 1000, 2035), torch.int16) for x in (moving, fixed)]
        found = gradients(lambda u, loss=loss: loss(far[0], u, far[1]), u)  # noqa: B023
        assert all(torch.equal(x, y) for x, y in zip(found, near)) and found[1].any()


@pytest.mark.parametrize(
    "case", ["random, far outside too", "blocks, 3D, batch", "one plane", "700 classes, 3D"]
)
def test_label_terms_do_not_depend_on_how_many_planes_come_at_once(case, monkeypatch):
    moving, fixed, u, labels = label_case(case)
    found = []
    for voxels in (1, 3 * u[0, 0, 0].numel(), 10**9):  # one plane, three planes, all
        monkeypatch.setitem(label_overlap.CHUNK, "cpu", voxels)
        terms = [lambda u, loss=loss: loss(moving, u, fixed, labels) for loss in LABEL_TERMS]
        found.append([gradients(term, u) for term in terms])
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(17, 22), (9, 10, 11)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_label_sums_are_float64_and_exact_where_neighbours_agree(shape, dtype):
    moving, fixed = blocks(shape, 5, 0, 2), blocks(shape, 5, 1, 2)
    u = torch.zeros(2, len(shape), *shape, dtype=dtype)
    u[:, 0] = 1  # whole voxels: the weights are 0 and 1
    sums, _ = label_overlap.label_overlap(moving, u, fixed, 5)
    axes = tuple(range(2, 2 + len(shape)))
    source, target = one_hot(moving, 5), one_hot(fixed, 5)
    warped = F.pad(source[:, :, 1:], [0, 0] * (len(shape) - 1) + [0, 1])
    expected = [(warped * target).sum(axes), warped.sum(axes), target.sum(axes), source.sum(axes)]
    assert sums.dtype == torch.float64 and torch.equal(sums, torch.stack(expected))


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("layout", ["channels last", "axes exchanged", "strided", "expanded"])
def test_label_terms_take_displacements_of_any_memory_layout(shape, layout):
    moving, fixed, u = random_labels(shape, 4, 0, 2), random_labels(shape, 4, 1, 2), motion(shape, 2, batch=2)
    if layout == "expanded":
        u = u[:1].expand_as(u)
    view = {
        "channels last": lambda: u.movedim(1, -1).contiguous().movedim(-1, 1),
        "axes exchanged": lambda: u.transpose(-1, -2).contiguous().transpose(-1, -2),
        "strided": lambda: u.repeat_interleave(2, -1)[..., ::2],
        "expanded": lambda: u,
    }[layout]()
    for loss in LABEL_TERMS:
        leaf = view.detach().requires_grad_()
        value = loss(moving, leaf, fixed)
        expected = gradients(lambda u, loss=loss: loss(moving, u, fixed), u.contiguous())
        torch.testing.assert_close((value.detach(), *torch.autograd.grad(value, leaf)), expected)


def test_label_terms_need_far_less_memory_than_one_channel_per_class(monkeypatch):
    monkeypatch.setitem(label_overlap.CHUNK, "cpu", 2600)  # four planes
    shape, classes = (24, 25, 26), 100
    moving, fixed = blocks(shape, classes, 0), blocks(shape, classes, 1)
    u = motion(shape, 1).float().requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        losses.soft_dice(moving, u, fixed).backward()
    changes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = list(itertools.accumulate(changes))
    channels = 4 * classes * math.prod(shape)
    assert 12 * math.prod(shape) <= max(held) < channels / 5  # the memory holds at least the gradient


@pytest.mark.parametrize("loss", LABEL_TERMS)
@pytest.mark.parametrize("labels", [range(4), (0, 1, 2, 3, 40)], ids=str)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "value,dtype",
    [
        (-1, torch.int64),
        (7, torch.uint8),
        (260, torch.uint16),
        (2**63 + 5, torch.uint64),
        (2**62, torch.int64),
    ],
)
def test_labels_that_do_not_count_are_refused_in_one_line(loss, labels, which, value, dtype):
    maps = [random_labels((8, 9), 4, k, batch=2) for k in (0, 1)]
    maps[which][1, 0, 3, 4] = 4
    maps[which] = renamed(maps[which], (0, 1, 2, 3, value), dtype)
    with pytest.raises(ValueError) as error:
        loss(maps[0], torch.zeros(2, 2, 8, 9), maps[1], labels)
    name = ("moving_labels", "fixed_labels")[which]
    assert str(error.value) == (
        f"{name}: the label {value} is none of the {len(labels)} in labels; "
        "add it to them, or make it background (0)"
    )


@pytest.mark.parametrize("loss", LABEL_TERMS)
@pytest.mark.parametrize("batches", [(2, 1, 2), (1, 2, 1), (1, 2, 2), (2, 2, 1)], ids=str)
def test_label_maps_and_displacement_must_have_one_batch_size(loss, batches):
    # Without the check, only the first label map would be used.
    moving, fixed = (random_labels((8, 9), 4, k, batch) for k, batch in zip((0, 2), (batches[0], batches[2])))
    with pytest.raises(ValueError, match="batch"):
        loss(moving, torch.zeros(batches[1], 2, 8, 9), fixed)


@pytest.mark.parametrize("loss", LABEL_TERMS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e30, float("nan")])
@pytest.mark.parametrize("where", [(0, 1, 2, 3), (1, 0, 0, 0), (1, 1, 7, 8)], ids=str)
def test_the_label_terms_of_a_displacement_that_is_not_finite_are_nan(loss, value, where):
    # Training itself reports a loss that is not finite. A crash inside the label term would hide which pair
    # caused it.
    labels, u = [random_labels((8, 9), 4, k, 2) for k in (0, 1)], motion((8, 9), 1, batch=2)
    u[where] = value
    u.requires_grad_()
    term = loss(labels[0], u, labels[1])
    term.backward()
    assert math.isnan(term.detach()) == (not math.isfinite(value))
    other = 1 - where[0]
    assert torch.isfinite(u.grad[other]).all() and u.grad[other].any()


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)], ids=str)
def test_label_overlap_keeps_the_contract_of_an_operation(shape):
    moving, fixed = blocks(shape, 4, 0, 2, edge=2), blocks(shape, 4, 1, 2, edge=2)
    for u in (motion(shape, 1, batch=2), motion((*shape[:-2], *shape[:-3:-1]), 1, batch=2).transpose(-1, -2)):
        opcheck(label_overlap.label_overlap, (moving, u.requires_grad_(), fixed, 4))
        _, seen = label_overlap.label_overlap(moving, u.detach(), fixed, 4)
        slopes = noise((2, 4), channels=4)[0]
        opcheck(label_overlap.label_overlap_backward, (slopes, moving, u.detach(), fixed, seen, 4))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_compact_maps_keep_the_contract_of_an_operation(dtype):
    maps = random_labels((5, 6), 4, 0, 2)
    for numbers in ([0, 1, 2, 3], [0, 3, 70, 100]):
        for one in (maps, maps.transpose(2, 3)):
            given = (renamed(one, numbers, dtype), *table(numbers, dtype), 4, "moving_labels")
            opcheck(torch.ops.tvf_core.compact_labels, given)
            assert torch.equal(compact(given[0], numbers, "moving_labels"), one.to(torch.uint8))


@pytest.mark.parametrize("shape", [*THIN, (11, 13), (10, 12), (9, 10, 11)], ids=str)
def test_diffusion_equals_a_loop_over_neighbours(shape):
    u = noise(shape, channels=len(shape), batch=2)
    means = []
    for axis in range(len(shape)):
        squares = []
        for b, c in itertools.product(range(2), range(len(shape))):
            for x in np.ndindex(*shape):
                y = tuple(p + (a == axis) for a, p in enumerate(x))
                if y[axis] < shape[axis]:
                    squares.append(float(u[(b, c, *y)] - u[(b, c, *x)]) ** 2)
        means.append(np.mean(squares) if squares else 0)
    value, slope = gradients(losses.diffusion, u)
    assert float(value) == pytest.approx(np.mean(means), rel=1e-9) and slope.any() == (max(shape) > 1)


@pytest.mark.parametrize(
    "term", [losses.diffusion, lambda u: losses.velocity_kl(u, torch.zeros_like(u), 3.0)]
)
def test_an_axis_of_one_voxel_adds_nothing_to_the_roughness(term):
    plane = noise((7, 6), channels=2)
    flat = noise((1, 1), channels=2)
    assert float(losses.diffusion(flat)) == 0
    for axis in range(3):  # the third component does not move
        solid = torch.cat([plane, torch.zeros_like(plane[:, :1])], 1).unsqueeze(2 + axis)
        if term is losses.diffusion:  # a mean over three axes instead of two, and three components
            assert float(term(solid)) == pytest.approx(float(term(plane)) * (2 / 3) ** 2, rel=1e-12)
        else:  # the third component has a variance of its own, with as many neighbours
            rest = term(plane) - term(torch.zeros_like(plane))
            assert float(term(solid) - term(0 * solid)) == pytest.approx(float(rest), rel=1e-12)
    for value in (math.nan, math.inf):  # nothing hides there either
        assert math.isnan(term(torch.full((1, 3, 1, 1, 1), value)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("beta", [1, 2])
def test_lddmm_energy_of_one_slice_is_that_of_the_plane(axis, beta):
    plane = noise((7, 6), channels=2 * 2).unflatten(1, (2, 2))
    solid = torch.cat([plane, torch.zeros_like(plane[:, :, :1])], 2).unsqueeze(3 + axis)
    expected = float(losses.lddmm_energy(plane, 0.3, 0.2, beta))
    assert float(losses.lddmm_energy(solid, 0.3, 0.2, beta)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", THIN, ids=str)
def test_the_lddmm_operator_equals_its_literal_form_in_thin_images(shape):
    field = noise(shape, channels=len(shape))
    found = losses.lddmm_operator(field, 0.3, 0.2, 2)[0]
    for component, expected in zip(found, field[0]):
        np.testing.assert_allclose(component, literal_operator(expected.numpy(), 0.3, 0.2, 2), rtol=1e-12)


@each_size
@pytest.mark.parametrize("beta", [1, 2])
def test_lddmm_energy_of_a_cosine_is_given_by_the_laplacians_eigenvalue(shape, beta):
    # cos(pi k (x + 1/2) / n) is an eigenvector of the mirrored second difference, with the eigenvalue
    # 2 cos(pi k / n) - 2.
    alpha, gamma = 0.3, 0.2
    dim, modes = len(shape), (2, 1, 3)
    v = torch.zeros(2, 3, dim, *shape, dtype=torch.float64)
    wave, decay = torch.ones(shape, dtype=torch.float64), 0.0
    for axis, n in enumerate(shape):
        line = torch.cos(math.pi * modes[axis] * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        wave = wave * line.view([-1 if a == axis else 1 for a in range(dim)])
        decay += 2 - 2 * math.cos(math.pi * modes[axis] / n)
    # One height per time step; the integral is their mean.
    heights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    v[:, :, 0] = heights.view(1, 3, *[1] * dim) * wave
    v[:, :, 1] = 0.5 * v[:, :, 0]
    mean_square = float(wave.square().mean()) * (1 + 4 + 16) / 3 * 1.25
    expected = (alpha * decay + gamma) ** (2 * beta) * mean_square
    assert float(losses.lddmm_energy(v, alpha, gamma, beta)) == pytest.approx(expected, rel=1e-9)


def literal_operator(v, alpha, gamma, beta):
    """``(-alpha Laplacian + gamma)^beta`` of one component, voxel by voxel; the border repeats beyond."""
    for _ in range(beta):
        out = np.empty_like(v)
        for x in np.ndindex(*v.shape):
            laplacian = 0.0
            for axis, side in itertools.product(range(v.ndim), (-1, 1)):
                y = list(x)
                y[axis] = min(max(x[axis] + side, 0), v.shape[axis] - 1)
                laplacian += v[tuple(y)] - v[x]
            out[x] = gamma * v[x] - alpha * laplacian
        v = out
    return v


@pytest.mark.parametrize("shape", [(12, 10), (11, 13), (6, 8, 4), (7, 5, 6)], ids=str)
def test_the_lddmm_loss_is_the_papers_eq_2_with_the_factors_that_the_docstring_states(shape):
    dim, steps, pairs, classes = len(shape), 3, 2, 3
    half = tuple(-(-s // 2) for s in shape)
    velocity = 8 * noise(half, 2, channels=steps * dim, batch=pairs).unflatten(1, (steps, dim)) - 4
    displacement = integrate.flow(velocity, shape=shape)
    batch = {"moving": noise(shape, 0, batch=pairs), "fixed": noise(shape, 1, batch=pairs)}
    batch |= {
        f"{role}_labels": random_labels(shape, classes, k, pairs)
        for k, role in enumerate(("moving", "fixed"))
    }
    method = METHODS["tm-tvf-lddmm"]
    constants = {name: number.value for name, number in method.constants[dim].items()}
    weights = method.weights(dim)
    terms = objectives.standard_terms(weights, constants, batch, displacement, velocity, range(classes))
    assert set(terms) == {"mse", "lddmm"} | ({"label_mse"} if dim == 3 else set())

    # the sums of eq. 2, per pair: v_t is the motion of an interval
    energy, image, labels = 0.0, 0.0, 0.0
    for b in range(pairs):
        for t, component in itertools.product(range(steps), range(dim)):
            motion = velocity[b, t, component].numpy() / steps
            energy += (literal_operator(motion, **constants) ** 2).sum() / pairs
        pair = slice(b, b + 1)
        warped = fields.warp(batch["moving"][pair], displacement[pair])
        image += float((warped - batch["fixed"][pair]).square().sum()) / pairs
        label_maps = literal_label_maps(
            batch["moving_labels"][pair], displacement[pair], batch["fixed_labels"][pair], classes
        )
        labels += sum(((p - f) ** 2).sum() for p, f in label_maps) / classes / pairs
    whole, halved = math.prod(shape), math.prod(half)
    e = float(losses.lddmm_energy(velocity, **constants))
    assert energy == pytest.approx(halved / steps * e, rel=1e-9) and energy > 0
    w = weights["lddmm"]
    assert float(terms["lddmm"]) == pytest.approx(w * steps / halved * energy, rel=1e-6)
    expected = image / whole + (labels / whole if dim == 3 else 0) + w * steps / halved * energy
    assert float(sum(terms.values())) == pytest.approx(expected, rel=1e-6)
    # the three readings: sum and sum, mean and mean, sum and mean
    mse = float(terms["mse"])
    assert energy + image == pytest.approx(whole * (mse + halved / (steps * whole) * e), rel=1e-9)
    assert energy / halved + image / whole == pytest.approx(mse + e / steps, rel=1e-9)
    assert energy + image / whole == pytest.approx(mse + halved / steps * e, rel=1e-9)


PAPER_SIZES = {2: (256, 256), 3: (160, 192, 224)}


def chapter_11():
    notebook = json.loads((ROOT / "notebooks" / "11_methods.ipynb").read_text(encoding="utf-8"))
    return "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("dim", [2, 3])
def test_the_weights_of_the_lddmm_energy_are_said_to_be_what_they_are(dim):
    shape, steps, weight = PAPER_SIZES[dim], 8, METHODS["tm-tvf-lddmm"].losses[dim]["lddmm"]
    half, whole = math.prod(s // 2 for s in shape), math.prod(shape)
    sum_mean, sum_sum, mean_mean = half // steps, steps * whole // half, steps
    assert half % steps == 0 and weight.value == pytest.approx(sum_mean, rel=0.08)
    assert f"{' x '.join(str(s // 2) for s in shape)} / {steps} = {sum_mean:,}" in weight.source
    assert f"both sums: 1/{sum_sum};" in weight.source and f"both means: 1/{mean_mean};" in weight.source
    for text in (losses.lddmm_energy.__doc__, chapter_11()):
        text = " ".join(text.split())
        assert f"{sum_mean:,}" in text and f"1/{sum_sum}" in text and f"1/{mean_mean}" in text
    page = " ".join(chapter_11().split())
    for reading in (sum_sum, mean_mean):
        assert f"{weight.value * reading:,.0f} times" in page
    demo = {2: (128, 128), 3: demo_brains.SHAPE}[dim]
    demo_sum_mean = math.prod(-(-s // 2) for s in demo) / steps
    assert f"({' x '.join(map(str, demo))})" in page and f"{demo_sum_mean:,.0f}" in page
    assert f"{weight.value / demo_sum_mean:.0f} times" in page


@pytest.mark.parametrize("beta", [1, 2])
def test_lddmm_energy_of_a_constant_field_is_gamma_alone(beta):
    v = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 1, 2, 1, 1).expand(1, 5, 2, 7, 8)
    assert float(losses.lddmm_energy(v, 0.7, 0.1, beta)) == pytest.approx(0.1 ** (2 * beta) * 25, rel=1e-9)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=str)
def test_gradients_of_the_smoothness_terms_are_right(shape):
    v = noise(shape, channels=2 * len(shape)).unflatten(1, (2, len(shape))).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: losses.lddmm_energy(v, 0.5, 0.3, 2), v, fast_mode=True)
    assert torch.autograd.gradcheck(losses.diffusion, v.detach()[:, 0].requires_grad_(), fast_mode=True)


def test_gradients_of_the_label_terms_are_right():
    moving, fixed = random_labels((4, 5), 3, 0), random_labels((4, 5), 3, 1)
    x = np.stack(np.meshgrid(range(4), range(5), indexing="ij"))
    rng = np.random.default_rng(0)
    cell = np.stack([rng.integers(0, 3, (4, 5)), rng.integers(0, 4, (4, 5))])
    u = torch.tensor(cell + rng.uniform(0.2, 0.8, cell.shape) - x)[None].requires_grad_()
    for loss in LABEL_TERMS:
        auto = torch.autograd.grad(loss(moving, u, fixed), u)[0]
        for where in itertools.islice(np.ndindex(*u.shape), 0, None, 7):
            step = torch.zeros_like(u)
            step[where] = 1e-2
            with torch.no_grad():
                slope = (loss(moving, u + step, fixed) - loss(moving, u - step, fixed)) / 2e-2
            assert float(auto[where]) == pytest.approx(float(slope), abs=1e-4)


@pytest.mark.parametrize("shape", [(12, 13), (11, 12, 13)], ids=str)
def test_standard_terms_are_weighted_and_label_terms_dropped_without_labels(shape, smooth_velocity):
    u, v = smooth_velocity(shape, steps=1)[:, 0], smooth_velocity(shape, seed=1)
    batch = {
        "moving": noise(shape, 0).float(),
        "fixed": noise(shape, 1).float(),
        "moving_labels": renamed(random_labels(shape, 4, 0), (0, 7, 1000, 2035), torch.int32),
        "fixed_labels": renamed(random_labels(shape, 4, 1), (0, 7, 1000, 2035), torch.int32),
    }
    constants = dict(alpha=0.02, gamma=0.03, beta=2)
    weights = {term: 1.5 + k for k, term in enumerate(objectives.TERMS)}
    for convention in (layers.STANDARD, layers.RELEASED):
        sampled = released.sampled(u) if convention is layers.RELEASED else u
        labels = (batch["moving_labels"], sampled, batch["fixed_labels"])
        warped = fields.warp(batch["moving"], sampled)
        value = {
            "lncc": losses.lncc(warped, batch["fixed"]),
            "mse": (warped - batch["fixed"]).square().mean(),
            "ssim": torch.tensor(-metrics.ssim(warped, batch["fixed"])),
            "diffusion": losses.diffusion(u),
            "dice": losses.soft_dice(*labels),
            "label_mse": losses.label_mse(*labels),
            "velocity_diffusion": losses.diffusion(v[:, -1]),
            "lddmm": losses.lddmm_energy(v, **constants),
            "lddmm_released": released.lddmm_energy(v, alpha=0.02, gamma=0.03),
        }
        assert set(value) == set(objectives.TERMS)
        terms = objectives.standard_terms(weights, constants, batch, u, v, (0, 7, 1000, 2035), convention)
        assert list(terms) == list(weights)
        for term, weight in weights.items():
            torch.testing.assert_close(terms[term], weight * value[term], rtol=1e-4, atol=1e-5)
    without = objectives.standard_terms(weights, constants, batch, u, v)
    assert set(without) == set(terms) - {"dice", "label_mse"}


def literal_pooled(image):
    """Mean over the 3^D neighbourhood of every second voxel, as far as it lies inside."""
    out = np.zeros([-(-s // 2) for s in image.shape])
    for where in np.ndindex(*out.shape):
        out[where] = image[tuple(slice(max(0, 2 * w - 1), 2 * w + 2) for w in where)].mean()
    return out


@pytest.mark.parametrize("shape", [(21, 24), (13, 12, 14), *THIN], ids=str)
def test_multiscale_lncc_is_its_literal_pyramid(shape):
    a, b = noise(shape, 0).double(), noise(shape, 1).double()
    small = [torch.from_numpy(literal_pooled(x[0, 0].numpy()))[None, None] for x in (a, b)]
    smaller = [torch.from_numpy(literal_pooled(x[0, 0].numpy()))[None, None] for x in small]
    expected = losses.lncc(a, b, 7) + losses.lncc(*small, 5) / 2 + losses.lncc(*smaller, 3) / 4
    torch.testing.assert_close(losses.multiscale_lncc(a, b), expected)
    torch.testing.assert_close(
        losses.multiscale_lncc(a, b, (5, 3)), losses.lncc(a, b, 5) + losses.lncc(*small, 3) / 2
    )


@pytest.mark.parametrize(
    "shape", [(17, 22), (11, 12), (13, 12, 14), (13, 12, 10), (13, 1, 12), (3, 13, 12)], ids=str
)
def test_ssim_loss_is_minus_the_metric_and_its_gradient_points_to_the_image(shape, smooth_image):
    a, b = (0.1 + 0.8 * smooth_image(shape, seed=seed) for seed in (1, 2))
    both = losses.ssim(torch.cat([a, b]), torch.cat([b, b]))
    assert float(both) == pytest.approx(-(metrics.ssim(a, b) + 1) / 2, abs=1e-5)
    a = a.double().requires_grad_()
    before = losses.ssim(a, b.double())
    gradient = torch.autograd.grad(before, a)[0]
    step = 1e-4 * torch.randn(a.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = (losses.ssim(a + step, b.double()) - losses.ssim(a - step, b.double())) / 2
    assert (gradient * step).sum().item() == pytest.approx(slope.item(), rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [(0, 0), (5, 6), (10, 11)], ids=str)
def test_ssim_of_an_image_that_is_not_finite_is_nan(where, value, smooth_image):
    for shape in [(11, 12), (11, 12, 3), (11, 12, 13)]:
        a, b = smooth_image(shape, seed=1), smooth_image(shape, seed=2)
        a[(0, 0, *where, *[1] * (len(shape) - 2))] = value
        for one, other in ((a, b), (b, a)):
            assert math.isnan(losses.ssim(one, other)) and math.isnan(metrics.ssim(one, other))


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 4), (1, 4), (1, 1), (2, 1, 3), (1, 1, 2)], ids=str)
def test_velocity_kl_is_that_of_two_gaussians(shape):
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (
        torch.randn(2, len(shape), *shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    places, prior = list(np.ndindex(*shape)), 7.0
    precision = np.zeros((len(places), len(places)))
    for i, p in enumerate(places):
        for j, q in enumerate(places):
            if sum(abs(a - b) for a, b in zip(p, q)) == 1:
                precision[i, j] -= prior
                precision[i, i] += prior
    total = 0
    for m, s in zip(mean.flatten(2).flatten(0, 1).numpy(), log_variance.flatten(2).flatten(0, 1).numpy()):
        # The prior's own constant is left out.
        total += np.trace(precision @ np.diag(np.exp(s))) - s.sum() + m @ precision @ m
    expected = total / 2 / len(places) / 2  # per voxel and per pair of the batch
    assert float(losses.velocity_kl(mean, log_variance, prior)) == pytest.approx(expected, rel=1e-12)


def test_velocity_kl_in_half_precision_is_a_sum_in_single_precision():
    mean, log_variance = noise((12, 13, 14), channels=3).half(), noise((12, 13, 14), 1, channels=3).half()
    half, single = (
        losses.velocity_kl(x, y, 10.0)
        for x, y in ((mean, log_variance), (mean.float(), log_variance.float()))
    )
    assert torch.equal(half, single) and half.isfinite()
