"""Losses against literal loops, dense convolutions and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from tvf_core import losses, methods

each_size = pytest.mark.parametrize("shape", [(11, 13), (10, 12), (9, 10, 11)], ids=str)


def noise(shape, seed=0, channels=1, batch=1, dtype=torch.float64):
    return torch.tensor(np.random.default_rng(seed).random((batch, channels, *shape)), dtype=dtype)


def random_labels(shape, classes, seed):
    return torch.tensor(np.random.default_rng(seed).integers(0, classes, (1, 1, *shape)))


def literal_lncc(a, b, window, eps=1e-5):
    """Every window by itself, on images padded with zeros, as the formula of the released code."""
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
    """The released form: box sums by one convolution with ones."""
    dim = a.dim() - 2
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


@pytest.mark.parametrize("shape", [(7, 20), (7, 10, 11), (12, 13, 5)], ids=str)
def test_lncc_works_on_images_thinner_than_its_window(shape):
    a, b = noise(shape, 0), noise(shape, 1)
    expected = literal_lncc(a[0, 0].numpy(), b[0, 0].numpy(), 9)
    assert float(losses.lncc(a, b)) == pytest.approx(expected, rel=1e-9)


@each_size
def test_gradients_of_lncc_equal_those_of_the_dense_form(shape):
    a, b = noise(shape, 0).requires_grad_(), noise(shape, 1).requires_grad_()
    ours = torch.autograd.grad(losses.lncc(a, b), (a, b))
    expected = torch.autograd.grad(dense_lncc(a, b, 9), (a, b))
    torch.testing.assert_close(ours, expected)
    single = [t.detach().float().requires_grad_() for t in (a, b)]
    for g, e in zip(torch.autograd.grad(losses.lncc(*single), single), expected):
        assert (g.double() - e).abs().max() < 1e-3 * e.abs().max()  # float32 loses little to cancellation


@each_size
def test_lncc_of_an_image_with_itself_is_minus_one(shape):
    a = noise(shape, dtype=torch.float32)
    assert float(losses.lncc(a, a)) == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_lncc_of_a_constant_image_is_finite_and_zero_away_from_the_border(value):
    a = torch.full((1, 1, 24, 25), value, requires_grad=True)
    b = noise((24, 25), dtype=torch.float32)
    loss = losses.lncc(a, b, 3)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(a.grad).all()
    assert a.grad[..., 2:-2, 2:-2].abs().max() < 1e-3
    if value == 0:
        assert float(loss.detach()) == 0
    both = torch.full((1, 1, 24, 25), value, requires_grad=True)
    losses.lncc(both, both.detach()).backward()
    assert torch.isfinite(both.grad).all()


@pytest.mark.parametrize("shape", [(25, 26), (15, 16, 15)], ids=str)
def test_lncc_does_not_see_an_affine_change_of_intensity(shape):
    # a is zero wherever a window reaches outside the image, so those windows count nothing.
    a, b = torch.zeros(1, 1, *shape, dtype=torch.float64), noise(shape, 1)
    core = (..., *[slice(5, -5)] * len(shape))
    a[core] = noise(shape, 0)[core]
    expected = float(losses.lncc(a, b, 5, eps=1e-12))
    assert expected < -0.001
    assert float(losses.lncc(a, 0.4 * b + 0.3, 5, eps=1e-12)) == pytest.approx(expected, rel=1e-6)
    assert float(losses.lncc(a, 1 - b, 5, eps=1e-12)) == pytest.approx(expected, rel=1e-6)  # squared: the sign too


def literal_label_maps(moving, displacement, fixed, classes):
    points = np.stack(np.meshgrid(*map(np.arange, moving.shape[2:]), indexing="ij")) + displacement[0].numpy()
    for k in range(classes):
        one = (moving[0, 0].numpy() == k).astype(float)
        yield ndimage.map_coordinates(one, points, order=1, mode="grid-constant"), fixed[0, 0].numpy() == k


@each_size
def test_soft_dice_and_label_mse_equal_warping_each_label_by_itself(shape):
    classes = 6  # label 5 is in neither map
    moving, fixed = random_labels(shape, 5, 0), random_labels(shape, 5, 1)
    u = 4 * noise(shape, 2, channels=len(shape)) - 2
    scores, squares = [], []
    for warped, target in literal_label_maps(moving, u, fixed, classes):
        scores.append(2 * (warped * target).sum() / ((warped**2).sum() + target.sum() + 1e-5))
        squares.append(((warped - target) ** 2).mean())
    assert scores[-1] == 0
    assert float(losses.soft_dice(moving, u, fixed, classes)) == pytest.approx(1 - np.mean(scores), rel=1e-6)
    assert float(losses.label_mse(moving, u, fixed, classes)) == pytest.approx(np.mean(squares), rel=1e-6)


def test_soft_dice_of_identical_labels_counts_the_classes_that_are_there():
    labels = random_labels((9, 10), 4, 0)
    u = torch.zeros(1, 2, 9, 10)
    assert float(losses.soft_dice(labels, u, labels, 4)) == pytest.approx(0, abs=1e-5)
    assert float(losses.soft_dice(labels, u, labels, 5)) == pytest.approx(1 / 5, abs=1e-5)
    assert float(losses.label_mse(labels, u, labels, 5)) == pytest.approx(0, abs=1e-9)


def test_label_losses_average_over_the_batch():
    moving, fixed = (torch.cat([random_labels((9, 10), 4, s), random_labels((9, 10), 4, s + 1)]) for s in (0, 5))
    u = noise((9, 10), 3, channels=2, batch=2)
    for loss in (losses.soft_dice, losses.label_mse):
        single = [float(loss(moving[k : k + 1], u[k : k + 1], fixed[k : k + 1], 4)) for k in (0, 1)]
        assert float(loss(moving, u, fixed, 4)) == pytest.approx(np.mean(single), rel=1e-6)


@each_size
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
        means.append(np.mean(squares))
    assert float(losses.diffusion(u)) == pytest.approx(np.mean(means), rel=1e-9)


@each_size
@pytest.mark.parametrize("beta", [1, 2])
def test_lddmm_energy_of_a_cosine_is_given_by_the_laplacians_eigenvalue(shape, beta):
    # cos(pi k (x + 1/2) / n) is an eigenvector of the mirrored second difference: eigenvalue 2 cos(pi k / n) - 2.
    alpha, gamma = 0.3, 0.2
    dim, modes = len(shape), (2, 1, 3)
    v = torch.zeros(2, 3, dim, *shape, dtype=torch.float64)
    wave, decay = torch.ones(shape, dtype=torch.float64), 0.0
    for axis, n in enumerate(shape):
        line = torch.cos(math.pi * modes[axis] * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        wave = wave * line.view([-1 if a == axis else 1 for a in range(dim)])
        decay += 2 - 2 * math.cos(math.pi * modes[axis] / n)
    heights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)  # one per time step; the integral is their mean
    v[:, :, 0] = heights.view(1, 3, *[1] * dim) * wave
    v[:, :, 1] = 0.5 * v[:, :, 0]
    mean_square = float(wave.square().mean()) * (1 + 4 + 16) / 3 * 1.25
    expected = (alpha * decay + gamma) ** (2 * beta) * mean_square
    assert float(losses.lddmm_energy(v, alpha, gamma, beta)) == pytest.approx(expected, rel=1e-9)


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
    for loss in (losses.soft_dice, losses.label_mse):
        auto = torch.autograd.grad(loss(moving, u, fixed, 3), u)[0]
        for where in itertools.islice(np.ndindex(*u.shape), 0, None, 7):
            step = torch.zeros_like(u)
            step[where] = 1e-2
            with torch.no_grad():
                slope = (loss(moving, u + step, fixed, 3) - loss(moving, u - step, fixed, 3)) / 2e-2
            assert float(auto[where]) == pytest.approx(float(slope), abs=1e-4)


@pytest.mark.parametrize("method", [name for name, entry in methods.METHODS.items() if entry.build])
@pytest.mark.parametrize("shape", [(12, 13), (9, 10, 11)], ids=str)
def test_objective_is_the_weighted_terms_and_drops_label_terms_without_labels(method, shape, smooth_velocity):
    dim = len(shape)
    u, v = smooth_velocity(shape, steps=1)[:, 0], smooth_velocity(shape, seed=1)
    batch = {"moving": noise(shape, 0).float(), "fixed": noise(shape, 1).float(),
             "moving_labels": random_labels(shape, 4, 0), "fixed_labels": random_labels(shape, 4, 1)}
    labels = (batch["moving_labels"], u, batch["fixed_labels"], 4)
    entry = methods.METHODS[method]
    warped = methods.fields.warp(batch["moving"], u)
    value = {"lncc": losses.lncc(warped, batch["fixed"]), "mse": (warped - batch["fixed"]).square().mean(),
             "dice": losses.soft_dice(*labels), "label_mse": losses.label_mse(*labels),
             "diffusion": losses.diffusion(u)}
    if entry.energy:
        value["lddmm"] = losses.lddmm_energy(v, **entry.energy[dim])
    terms = methods.objective(method, batch, u, v, classes=4)
    assert set(terms) == set(entry.losses[dim])
    for term, weight in entry.losses[dim].items():
        torch.testing.assert_close(terms[term], weight * value[term])
    assert set(methods.objective(method, batch, u, v)) == set(terms) - {"dice", "label_mse"}
