"""The flow of a velocity against other solvers, matrix exponentials and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torchdiffeq import odeint

from tvf_core import fields, integrate, metrics, released

ORDER = {"euler": 1, "heun": 2, "rk4": 4}
each_method = pytest.mark.parametrize("method", ORDER)
each_size = pytest.mark.parametrize("shape", [(40, 37), (28, 27, 26)], ids=str)

# Rates of change that do not commute and are so small that the middle of a 15-voxel grid stays inside.
RATES = np.array(
    [
        [[0.1, 0.5, 0.2], [-0.3, -0.2, 0.1], [0.2, -0.1, 0.3]],
        [[-0.3, 0.1, -0.4], [0.5, 0.2, 0.1], [-0.2, 0.3, 0.0]],
        [[0.2, -0.4, 0.3], [0.1, 0.1, -0.5], [0.3, 0.2, -0.2]],
    ]
)
DRIFTS = np.array([[0.4, -0.6, 0.3], [-0.5, 0.2, 0.6], [0.1, 0.7, -0.4]])


def centred(shape):
    x = fields.identity_grid(shape, dtype=torch.float64)
    return x - torch.tensor([(s - 1) / 2 for s in shape], dtype=torch.float64).view(1, -1, *[1] * len(shape))


def sampled(matrices, drifts, shape):
    """Velocities M x + b (x from the centre) on a grid, which linear interpolation reproduces exactly."""
    dim, x = len(shape), centred(shape)
    return torch.stack(
        [
            torch.einsum("ij,bj...->bi...", torch.tensor(m[:dim, :dim]), x)
            + torch.tensor(b[:dim]).view(1, -1, *[1] * dim)
            for m, b in zip(matrices, drifts)
        ],
        dim=1,
    )


def generator(matrix, drift, dim):
    """M x + b as one matrix on (x, 1)."""
    g = np.zeros((dim + 1, dim + 1))
    g[:dim, :dim], g[:dim, dim] = matrix[:dim, :dim], drift[:dim]
    return g


def displacement_of(matrix, shape):
    """Displacement of an affine map given as a matrix on (x, 1)."""
    x, dim = centred(shape), len(shape)
    moved = torch.einsum("ij,bj...->bi...", torch.tensor(matrix[:dim, :dim]), x)
    return moved + torch.tensor(matrix[:dim, dim]).view(1, -1, *[1] * dim) - x


def middle(tensor, dim, margin=5):
    return tensor[(..., *[slice(margin, -margin)] * dim)]


def curl(t, x):
    """An analytic velocity that changes in time and is not linear."""
    return torch.stack([torch.sin(x[:, 1] + 2 * t), torch.cos(1.5 * x[:, 0] - t) * (1 + t)], dim=1)


@each_method
def test_error_against_torchdiffeq_falls_with_the_order_of_the_method(method):
    start = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = odeint(
        lambda t, x: curl(float(t), x),
        start,
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        method="dopri5",
        rtol=1e-12,
        atol=1e-12,
    )[-1]
    steps = [16, 32, 64, 128]
    errors = [
        (integrate.solve(curl, start, steps=n, method=method) - exact).abs().max().item() for n in steps
    ]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDER[method], abs=0.2)


@each_method
def test_one_method_of_torchdiffeq_gives_the_same_numbers(method):
    theirs = {"euler": "euler", "heun": "heun2", "rk4": None}[method]
    # torchdiffeq's "rk4" is the 3/8 rule, so that one step of the classical tableau is written out here.
    if theirs is None:
        x, h = torch.full((1, 2, 3, 3), 0.4, dtype=torch.float64), 0.3
        k1 = curl(0.1, x)
        k2 = curl(0.1 + 0.15, x + 0.15 * k1)
        k3 = curl(0.1 + 0.15, x + 0.15 * k2)
        k4 = curl(0.1 + 0.3, x + 0.3 * k3)
        expected = x + h * (k1 / 6 + k2 / 3 + k3 / 3 + k4 / 6)
        torch.testing.assert_close(integrate.solve(curl, x, 0.1, 0.4, 1, "rk4"), expected)
        return
    start = torch.full((1, 2, 3, 3), 0.4, dtype=torch.float64)
    expected = odeint(
        lambda t, x: curl(float(t), x), start, torch.linspace(0, 1, 6, dtype=torch.float64), method=theirs
    )
    torch.testing.assert_close(integrate.solve(curl, start, steps=5, method=method), expected[-1])


def flow(velocity, method="rk4", substeps=1, inverse=False, shape=None):
    return integrate.flow(velocity, method, substeps, *((1, 0) if inverse else (0, 1)), shape=shape)


def test_solve_runs_backwards_in_time():
    start = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    there = integrate.solve(curl, start, 0.0, 1.0, 64)
    torch.testing.assert_close(integrate.solve(curl, there, 1.0, 0.0, 64), start, atol=1e-7, rtol=0)


@each_method
@pytest.mark.parametrize("shape", [(15, 16), (15, 14, 15)], ids=str)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_flow_of_affine_velocities_is_the_methods_own_matrix_product(method, shape, inverse):
    # For v = G x a step of order p is exactly the Taylor polynomial of exp(hG) of degree p.
    dim, substeps = len(shape), 2
    product = np.eye(dim + 1)
    pieces = [generator(m, b, dim) for m, b in zip(RATES, DRIFTS)]
    for g in reversed(pieces) if inverse else pieces:
        h = (-1 if inverse else 1) / (len(pieces) * substeps)
        step = sum(np.linalg.matrix_power(h * g, k) / math.factorial(k) for k in range(ORDER[method] + 1))
        product = np.linalg.matrix_power(step, substeps) @ product
    ours = flow(sampled(RATES, DRIFTS, shape), method, substeps, inverse)
    torch.testing.assert_close(
        middle(ours, dim), middle(displacement_of(product, shape), dim), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("shape", [(15, 16), (15, 14, 15)], ids=str)
def test_flow_of_affine_velocities_is_the_product_of_matrix_exponentials_in_order_of_time(shape):
    dim = len(shape)
    factors = [expm(generator(m, b, dim) / len(RATES)) for m, b in zip(RATES, DRIFTS)]
    forward = factors[2] @ factors[1] @ factors[0]  # the first factor in time stands on the right
    wrong = factors[0] @ factors[1] @ factors[2]
    velocity = sampled(RATES, DRIFTS, shape)
    ours = middle(flow(velocity, "rk4", 8), dim)
    torch.testing.assert_close(ours, middle(displacement_of(forward, shape), dim), atol=1e-6, rtol=0)
    # The wrong order of the factors gives another map.
    assert (ours - middle(displacement_of(wrong, shape), dim)).abs().max() > 0.1
    back = middle(flow(velocity, "rk4", 8, inverse=True), dim)
    torch.testing.assert_close(
        back, middle(displacement_of(np.linalg.inv(forward), shape), dim), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_rotation_velocity_rotates_by_its_angle(inverse):
    shape, angle = (21, 24), math.pi / 3
    spin = np.array([[[0, -angle], [angle, 0]]] * 5)
    turn = np.eye(3)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ours = flow(sampled(spin, np.zeros((5, 2)), shape), "rk4", 2, inverse)
    expected = displacement_of(turn.T if inverse else turn, shape)
    inside = (centred(shape).norm(dim=1, keepdim=True) < 9).expand_as(ours)
    torch.testing.assert_close(ours[inside], expected[inside], atol=1e-5, rtol=0)


@each_method
@pytest.mark.parametrize("shape", [(8, 11), (7, 6, 9)], ids=str)
def test_constant_velocity_is_a_translation_up_to_the_border(method, shape):
    b = torch.linspace(-2.5, 1.7, len(shape)).view(1, 1, -1, *[1] * len(shape))
    velocity = b.expand(1, 3, len(shape), *shape)
    torch.testing.assert_close(flow(velocity, method), velocity[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(flow(velocity, method, inverse=True), -velocity[:, 0], atol=1e-5, rtol=0)


@each_size
def test_inverse_flow_undoes_the_flow(shape, smooth_velocity):
    velocity = smooth_velocity(shape)
    there, back = flow(velocity), flow(velocity, inverse=True)
    assert there.abs().max() > 1
    assert metrics.inverse_consistency_error(there, back).max() < 0.05
    assert metrics.inverse_consistency_error(back, there).max() < 0.05


@each_size
def test_euler_error_of_the_inverse_shrinks_in_proportion_to_the_step(shape, smooth_velocity):
    velocity = smooth_velocity(shape, amplitude=3.0, dtype=torch.float64)

    def round_trip(substeps):  # moves the points on, so that nothing is resampled
        start = fields.identity_grid(shape, dtype=torch.float64)
        points = integrate.transport(velocity, start, "euler", substeps)
        return (
            (integrate.transport(velocity, points, "euler", substeps, 1, 0) - start).norm(dim=1).mean().item()
        )

    errors = [round_trip(n) for n in (1, 4, 16)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


@each_size
def test_trajectory_begins_at_the_identity_and_ends_at_the_flow(shape, smooth_velocity):
    velocity = smooth_velocity(shape)
    steps = velocity.shape[1]
    for inverse in (False, True):
        times = [k / steps for k in range(steps + 1)]
        path = integrate.trajectory(velocity, times[::-1] if inverse else times)
        assert path.shape[1] == steps + 1
        assert not path[:, 0].any()
        torch.testing.assert_close(path[:, -1], flow(velocity, inverse=inverse), atol=1e-5, rtol=0)
    assert torch.equal(integrate.trajectory(velocity), integrate.trajectory(velocity, times))


@each_size
@pytest.mark.parametrize("t", [0.5, 0.3, 2 / 3])
def test_semigroup_0_to_1_is_0_to_t_then_t_to_1(shape, t, smooth_velocity):
    velocity = smooth_velocity(shape, dtype=torch.float64)  # four intervals: 0.3 and 2/3 cut one
    first, rest = (integrate.flow(velocity, "rk4", 8, *times) for times in ((0, t), (t, 1)))
    whole = flow(velocity, "rk4", 8)
    # The tolerance is that of interpolating the second map.
    torch.testing.assert_close(fields.compose(rest, first), whole, atol=0.05, rtol=0)
    start = fields.identity_grid(shape, dtype=torch.float64)
    points = integrate.transport(velocity, start, "rk4", 8, 0, t)
    points = integrate.transport(velocity, points, "rk4", 8, t, 1)  # points need no interpolation
    torch.testing.assert_close(points - start, whole, atol=2e-4, rtol=0)
    torch.testing.assert_close(
        integrate.trajectory(velocity, (0, t, 1), "rk4", 8)[:, 1:],
        torch.stack([first, whole], 1),
        atol=2e-4,
        rtol=0,
    )
    back = integrate.transport(velocity, points, "rk4", 8, 1, 0)
    torch.testing.assert_close(back, start, atol=2e-4, rtol=0)


@pytest.mark.parametrize("steps", [3, 7, 12])
@pytest.mark.parametrize("method", ["rk4", "released"])
def test_times_may_be_rounded(steps, method, smooth_velocity):
    velocity = smooth_velocity((12, 11), steps=steps)
    times = torch.linspace(0, 1, steps + 1)  # float32, where they are not the nearest numbers to k / T
    torch.testing.assert_close(
        integrate.trajectory(velocity, times, method), integrate.trajectory(velocity, method=method)
    )
    beyond = [k * (1 / steps) for k in range(steps)] + [1 + 1e-9]
    torch.testing.assert_close(
        integrate.trajectory(velocity, beyond, method), integrate.trajectory(velocity, method=method)
    )


@each_size
def test_points_of_any_arrangement_are_carried_alike(shape, smooth_velocity):
    velocity, dim = smooth_velocity(shape).expand(2, -1, -1, *shape), len(shape)
    grid = fields.identity_grid(shape)
    expected = grid + integrate.flow(velocity)
    for arrangement in ([-1], [1, -1], [-1, *[1] * dim]):
        points = grid.reshape(1, dim, *arrangement)
        carried = integrate.transport(velocity, points)
        assert carried.shape == (2, *points.shape[1:])
        torch.testing.assert_close(carried.reshape(expected.shape), expected)
    assert integrate.flow(velocity).is_contiguous()  # not a slice of something larger


@each_method
def test_flow_over_part_of_the_time_is_that_part_of_an_affine_flow(method):
    shape, t = (15, 16), 0.45  # within the second of three intervals
    factors = [expm(generator(m, b, 2) * h) for m, b, h in zip(RATES, DRIFTS, (1 / 3, 0.45 - 1 / 3))]
    ours = integrate.flow(sampled(RATES, DRIFTS, shape), method, 64, 0, t)
    expected = displacement_of(factors[1] @ factors[0], shape)
    torch.testing.assert_close(
        middle(ours, 2), middle(expected, 2), atol=0.02 if method == "euler" else 1e-4, rtol=0
    )


@pytest.mark.parametrize("shape", [(29, 32), (30, 31), (29, 28, 30)], ids=str)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_flow_on_the_finer_grid_is_the_same_affine_map_there(shape, inverse):
    # The map is affine about the centre of the half grid, where the fine voxel x lies at (x + 1/2) / 2 - 1/2.
    half, dim = [-(-s // 2) for s in shape], len(shape)
    velocity = sampled(RATES, DRIFTS, half)
    ours = flow(velocity, "rk4", 8, inverse, shape=shape)
    factors = [expm(generator(m, b, dim) / len(RATES)) for m, b in zip(RATES, DRIFTS)]
    matrix = factors[2] @ factors[1] @ factors[0]
    matrix = np.linalg.inv(matrix) if inverse else matrix
    grid = (fields.identity_grid(shape, dtype=torch.float64) + 0.5) / 2 - 0.5
    centre = torch.tensor([(s - 1) / 2 for s in half], dtype=torch.float64).view(1, -1, *[1] * dim)
    matrix = torch.from_numpy(matrix)
    moved = (
        torch.einsum("ij,bj...->bi...", matrix[:dim, :dim], grid - centre)
        + matrix[:dim, dim].view(centre.shape)
        + centre
    )
    inside = (..., *[slice(8, s - 8) for s in shape])
    torch.testing.assert_close(ours[inside], (2 * (moved - grid))[inside], atol=1e-5, rtol=0)


@each_size
def test_flow_on_the_finer_grid_agrees_with_the_doubled_flow(shape, smooth_velocity):
    velocity = smooth_velocity([-(-s // 2) for s in shape])
    direct, doubled = flow(velocity, shape=shape), fields.double(flow(velocity), shape)
    # The outermost voxels lie beyond the half grid's centres.
    inside = (..., *[slice(2, s - 2) for s in shape])
    assert 1e-4 < (direct - doubled)[inside].abs().mean() < 0.1
    assert (direct - doubled)[inside].abs().max() < 0.5 < direct.abs().max()


@pytest.mark.parametrize("shape", [(9, 8), (7, 8, 6)], ids=str)
def test_the_released_rule_is_its_literal_form(shape, smooth_velocity):
    # The released sampler normalises for align_corners=True, reads with False, and has zeros outside.
    def read(image, u):
        grid = fields.identity_grid(shape, dtype=torch.float64) + u
        normalised = torch.stack(
            [2 * (grid[:, d] / (s - 1) - 0.5) for d, s in enumerate(shape)][::-1], dim=-1
        )
        return torch.nn.functional.grid_sample(image, normalised, align_corners=False, padding_mode="zeros")

    velocity = smooth_velocity(shape, dtype=torch.float64)
    steps = velocity.shape[1]
    for sign, inverse in ((1, False), (-1, True)):
        parts = [sign * velocity[:, k] / steps for k in range(steps)]
        expected = sum(read(part, part) for part in parts)
        torch.testing.assert_close(flow(velocity, "released", inverse=inverse), expected)
    fine = [2 * s - s % 2 for s in shape]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    upsampled = torch.nn.functional.interpolate(expected, scale_factor=2, mode=mode, align_corners=False)
    cropped = upsampled[(..., *[slice(0, s) for s in fine])]
    torch.testing.assert_close(flow(velocity, "released", inverse=True, shape=fine), cropped)
    torch.testing.assert_close(
        released.warp(velocity[:, 0], velocity[:, 1]), read(velocity[:, 0], velocity[:, 1])
    )


@each_size
def test_scaling_and_squaring_equals_the_flow_of_a_stationary_field(shape, smooth_field):
    field = smooth_field(shape, amplitude=1.6)
    for sign in (1, -1):
        expected = flow(sign * field[:, None], "rk4", 32)
        torch.testing.assert_close(integrate.scaling_and_squaring(sign * field), expected, atol=0.03, rtol=0)
    assert field.abs().max() > 1.5


@pytest.mark.parametrize("shape", [(41, 12), (41, 8, 6)], ids=str)
def test_the_flow_does_not_fold_where_one_euler_step_does(shape):
    velocity = torch.zeros(1, 1, len(shape), *shape, dtype=torch.float64)
    period, strength = shape[0] - 1, 3.0
    profile = -strength * period / (2 * math.pi) * torch.sin(2 * math.pi * torch.arange(shape[0]) / period)
    velocity[:, :, 0] = profile.view(-1, *[1] * (len(shape) - 1))  # slope -3 at both ends: 1 + v' = -2
    assert fields.jacobian_determinant(flow(velocity, "euler")).min() < -1.5
    exact = fields.jacobian_determinant(flow(velocity, "rk4", 32))
    assert exact.min() > 0
    assert exact.min() == pytest.approx(math.exp(-strength), rel=0.2)  # det J at the sink
    assert fields.jacobian_determinant(integrate.scaling_and_squaring(velocity[:, 0])).min() > 0


@each_method
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=str)
def test_gradients_of_the_flow_are_right(method, shape):
    # All components positive and below one voxel: every sample stays off the kinks at the voxel centres.
    v = 0.3 + 0.4 * torch.rand(
        1, 2, len(shape), *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert torch.autograd.gradcheck(lambda v: flow(v, method), v.requires_grad_(), fast_mode=len(shape) == 3)


def test_gradients_of_scaling_and_squaring_are_right():
    v = 0.3 + 0.4 * torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: integrate.scaling_and_squaring(v, 3), v.requires_grad_())


def test_a_2d_flow_equals_the_same_flow_extruded_to_3d(smooth_velocity):
    velocity = smooth_velocity((21, 18), amplitude=3.0)
    deep = torch.cat([torch.zeros_like(velocity[:, :, :1]), velocity], dim=2)[:, :, :, None].expand(
        -1, -1, -1, 5, -1, -1
    )
    for inverse in (False, True):
        ours = flow(deep, inverse=inverse)[:, :, 2]
        assert not ours[:, 0].any()
        torch.testing.assert_close(ours[:, 1:], flow(velocity, inverse=inverse), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(21, 24), (13, 12, 15)], ids=str)
def test_squaring_and_warping_agree_with_the_voxelmorph_package(shape, smooth_velocity, smooth_image):
    peer = pytest.importorskip("voxelmorph.nn.functional")
    velocity = smooth_velocity(shape, amplitude=3.0, steps=1, fade=1)
    ours = integrate.scaling_and_squaring(velocity[:, 0], 6, padding="zeros")
    torch.testing.assert_close(ours, peer.integrate_vec(velocity[:, 0], 6), atol=1e-5, rtol=0)
    image = smooth_image(shape)
    torch.testing.assert_close(
        fields.warp(image, ours), peer.spatial_transform(image, ours[0]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("shape", [(32, 29), (20, 23, 18)], ids=str)
def test_squaring_as_an_integrator_is_the_flow_of_a_velocity_that_stays(shape, smooth_velocity):
    velocity = smooth_velocity([-(-s // 2) for s in shape], amplitude=1.0, steps=1)
    squared = integrate.flow(velocity, "squaring", shape=shape)
    torch.testing.assert_close(squared, fields.double(integrate.scaling_and_squaring(velocity[:, 0]), shape))
    own, exact = integrate.flow(velocity, "squaring"), integrate.flow(velocity, "rk4", 16)
    assert (own - exact).abs().mean() < 0.05 * exact.abs().mean()
    back = integrate.flow(velocity, "squaring", t0=1, t1=0, shape=shape)
    torch.testing.assert_close(back, integrate.flow(-velocity, "squaring", shape=shape))
    path = integrate.trajectory(velocity, [0, 0.5, 1], "squaring", shape=shape)
    assert not path[:, 0].any()
    torch.testing.assert_close(path[:, 1], integrate.flow(velocity / 2, "squaring", shape=shape))
    constant = torch.full_like(velocity, 0.5)
    torch.testing.assert_close(integrate.flow(constant, "squaring"), constant[:, 0])


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)], ids=str)
@pytest.mark.parametrize("method", integrate.INTEGRATORS)
@pytest.mark.parametrize("flaw", [float("nan"), float("inf")], ids=str)
def test_the_flow_of_a_velocity_that_is_not_finite_is_not_finite(flaw, method, shape, smooth_velocity):
    steps = 1 if method == "squaring" else 2
    velocity = smooth_velocity(shape, amplitude=0.3, steps=steps, fade=1)
    where = tuple(s // 2 for s in shape)
    velocity[(0, 0, 1, *where)] = flaw
    fine = tuple(2 * s for s in shape)
    for t0, t1 in ((0, 1), (1, 0)):
        u = integrate.flow(velocity, method, t0=t0, t1=t1)
        assert not u[(0, slice(None), *where)].isfinite().all()
        assert not integrate.flow(velocity, method, t0=t0, t1=t1, shape=fine).isfinite().all()
    assert not integrate.trajectory(velocity, [0, 0.5, 1], method)[0, 2].isfinite().all()


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("method", integrate.STEPS)
@pytest.mark.parametrize("flaw", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_points_that_are_not_finite_stay_so_on_their_way(flaw, method, dim, smooth_velocity):
    velocity = smooth_velocity((6, 5, 4)[:dim], amplitude=0.5, steps=2, fade=1)
    points = torch.tensor([[2.0, 1.5, 1.0], [2.0, flaw, 1.0]])[:, :dim].T[None]
    for moved in (
        integrate.transport(velocity, points, method),
        integrate.advance(velocity[:, 0], points.view(1, dim, 2, *[1] * (dim - 1)), 0.5, method).flatten(2),
    ):
        assert moved[..., 0].isfinite().all() and moved[..., 1].isnan().all()
