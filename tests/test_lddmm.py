"""LDDMM of one pair: its operator against the energy's stencil, its scales, and its registrations."""

import literal
import pytest
import torch

from tvf_core import fields, integrate, losses, metrics
from tvf_core.data import shapes
from tvf_core.pairwise import lddmm

# A weight for the images of these tests; that of lncc is larger, as its values are.
BY_SIMILARITY = [("mse", 100.0), ("lncc", 1e4)]


def blobs(shape, shift, radius):
    """Two images (1, 1, *shape) of one Gaussian blob, with ``moving(x + shift) = fixed(x)``."""
    x, shift = fields.identity_grid(shape), torch.tensor(shift)
    middle = (torch.tensor(shape) - 1) / 2

    def image(centre):
        distance = (x - centre.view(1, -1, *[1] * len(shape))) / radius
        return (-distance.square().sum(1, keepdim=True) / 2).exp()

    return image(middle + shift / 2), image(middle - shift / 2)


def along(axis, step, dim):
    return [step * (d == axis) for d in range(dim)]


def displacement_at_the_blob(registration, fixed):
    """Mean displacement, one number per axis, in the middle of the fixed blob."""
    return registration.displacement[0][:, fixed[0, 0] > 0.7].mean(1)


@pytest.mark.parametrize("shape", [(12, 9), (7, 6), (2, 5, 6), (5, 4, 7)], ids=str)
@pytest.mark.parametrize("beta", [1, 2])
def test_smooth_inverts_the_operator_of_the_energy(shape, beta):
    dim = len(shape)
    w = torch.randn(1, 3, dim, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = lddmm.smooth(w, dim, alpha=0.3, gamma=0.2, beta=beta)
    energy = losses.lddmm_energy(v, alpha=0.3, gamma=0.2, beta=beta)
    assert energy.item() == pytest.approx(w.square().sum(2).mean().item(), rel=1e-10)
    assert torch.allclose(
        losses.lddmm_operator(v[:, 0], alpha=0.3, gamma=0.2, beta=beta), w[:, 0], atol=1e-10
    )


def test_smooth_is_symmetric_so_that_its_gradient_is_itself():
    a, b = torch.randn(2, 1, 2, 3, 6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = (lddmm.smooth(a, 3, 0.3, 0.2, 2) * b).sum()
    assert first.item() == pytest.approx((a * lddmm.smooth(b, 3, 0.3, 0.2, 2)).sum().item(), rel=1e-10)


@pytest.mark.parametrize("shape", [(64, 48), (63, 49), (32, 40, 36), (33, 39, 35)], ids=str)
def test_the_energy_of_one_velocity_is_the_same_at_every_scale(shape):
    """The velocity is a cosine in the positions of the image grid, sampled at the voxels of each scale."""
    alpha, gamma, beta, energies, grid = 1.0, 0.05, 2, [], list(shape)
    for scale in (1, 2):
        # Positions are counted from the edge of the image, in its voxels.
        x = scale * (fields.identity_grid(grid, dtype=torch.float64) + 0.5)
        waves = torch.stack(
            [torch.cos(torch.pi * (shape[d] // 16) * x[0, d] / shape[d]) for d in range(len(shape))]
        )
        v = 3 * waves.prod(0).expand(1, 1, len(shape), *grid) / scale  # voxels of its own grid
        energies.append(
            lddmm.energy(losses.lddmm_operator(v[0], alpha / scale**2, gamma, beta)[None], scale).item()
        )
        grid = [-(-s // 2) for s in grid]
    assert energies[1] == pytest.approx(energies[0], rel=0.03)


def test_a_disc_becomes_a_c_without_folding_and_back():
    moving, fixed = shapes.disc_and_c(48)
    result, history = lddmm.register(moving, fixed, iterations=40)
    assert losses.mse(result.warped, fixed) < 0.01 * history[0]["mse"]
    assert metrics.folding_percent(result.displacement) == 0
    assert losses.mse(fields.warp(fixed, result.inverse()), moving) < 0.05 * history[0]["mse"]


def test_a_heavier_energy_gives_a_smaller_deformation():
    moving, fixed = shapes.disc_and_c(32)
    size = [
        lddmm.register(moving, fixed, weight=weight, iterations=25)[0].displacement.norm()
        for weight in (1e2, 1e9)
    ]
    assert size[1] < 0.8 * size[0]


@pytest.mark.parametrize(
    "shape, scales", [((41, 36), (1,)), ((41, 36), (2, 1)), ((25, 28, 27), (4, 2))], ids=str
)
def test_a_translation_along_each_axis_comes_back(shape, scales):
    for axis in range(len(shape)):
        shift = along(axis, (-4.0, 6.0, 5.0)[axis], len(shape))
        moving, fixed = blobs(shape, shift, radius=4.5)
        result, _ = lddmm.register(moving, fixed, steps=4, iterations=15, scales=scales)
        assert torch.allclose(displacement_at_the_blob(result, fixed), torch.tensor(shift), atol=0.5)
        assert result.velocity.shape[3:] == (fixed if scales[-1] == 1 else fields.halve(fixed)).shape[2:]
        error = metrics.inverse_consistency_error(result.displacement, result.inverse())
        # Further out, phi leaves the grid of its inverse.
        assert error[(0, *[slice(6, -6)] * len(shape))].max() < 0.1


@pytest.mark.parametrize("shape, radius", [((63, 49), 3.0), ((31, 27, 33), 2.0)], ids=str)
def test_several_scales_find_a_larger_shift_than_one_with_as_many_evaluations(shape, radius):
    """The objects lie four radii apart. On the finest grid alone the gradient hardly shows the way, and LBFGS
    stops in a wrong place even with as many iterations as several scales need evaluations."""
    moving, fixed = blobs(shape, along(0, 4 * radius, len(shape)), radius)
    several, history = lddmm.register(
        moving, fixed, steps=4, iterations=8, scales=(8, 4, 2), integrator="heun"
    )
    one, _ = lddmm.register(moving, fixed, steps=4, iterations=len(history), scales=(2,), integrator="heun")
    before = losses.mse(moving, fixed)
    assert losses.mse(several.warped, fixed) < 0.05 * before
    assert losses.mse(one.warped, fixed) > 0.3 * before
    assert displacement_at_the_blob(several, fixed)[0].item() == pytest.approx(4 * radius, rel=0.1)


def test_the_history_says_which_scale_each_evaluation_belongs_to():
    moving, fixed = blobs((20, 23), (2.0, 1.0), radius=3.0)
    _, history = lddmm.register(moving, fixed, iterations=(2, 3, 1), scales=(8, 2, 1))
    assert all(set(row) == {"pair", "scale", "mse", "energy"} for row in history)
    order = [row["scale"] for row in history]
    assert order == sorted(order, reverse=True) and set(order) == {8, 2, 1}


@pytest.mark.parametrize("shape", [(21, 18), (8, 9, 7)], ids=str)
@pytest.mark.parametrize("similarity, weight", [(None, 100.0), ("mse", 100.0), ("lncc", 1e3)])
def test_on_one_grid_it_is_lbfgs_on_the_written_objective_bit_for_bit(
    shape, similarity, weight, smooth_image
):
    """Without a name of a similarity it is the mean squared difference."""
    dim, iterations = len(shape), 6
    moving, fixed = smooth_image(shape, seed=0), smooth_image(shape, seed=1)
    w, values = torch.zeros(1, 3, dim, *shape, requires_grad=True), []
    mismatch = losses.lncc if similarity == "lncc" else losses.mse
    optimizer = torch.optim.LBFGS([w], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        v = lddmm.smooth(w * 0.1**2, dim, alpha=0.3, gamma=0.1, beta=2)
        image = mismatch(fields.warp(moving, integrate.flow(v, "heun")), fixed)
        energy = weight * (w * 0.1**2).square().sum(2).mean()
        values.append((image.item(), energy.item()))
        total = (image + energy) * moving.numel()
        total.backward()
        return total

    optimizer.step(closure)
    settings = {} if similarity is None else {"similarity": similarity}
    settings |= dict(steps=3, alpha=0.3, gamma=0.1, weight=weight, iterations=iterations, integrator="heun")
    result, history = lddmm.register(moving, fixed, **settings)
    assert torch.equal(result.velocity, lddmm.smooth(w.detach() * 0.1**2, dim, 0.3, 0.1, 2))
    assert [(row[similarity or "mse"], row["energy"]) for row in history] == values
    assert sum(values[-1]) < sum(values[0]) and result.displacement.abs().max() > 0.1


@pytest.mark.parametrize("shape", [(33, 28), (14, 17, 15)], ids=str)
@pytest.mark.parametrize("scales", [(2, 1), (4, 2)], ids=str)
@pytest.mark.parametrize("similarity, weight", BY_SIMILARITY)
def test_the_result_has_the_objective_that_the_history_tells(shape, scales, similarity, weight, smooth_image):
    """Mismatch and energy of the result by their literal versions; LBFGS keeps one of its evaluations."""
    moving, fixed = smooth_image(shape, seed=2), smooth_image(shape, seed=3)
    alpha, gamma, beta, last = 0.3, 0.1, 2, scales[-1]
    result, history = lddmm.register(
        moving,
        fixed,
        steps=2,
        alpha=alpha,
        gamma=gamma,
        weight=weight,
        iterations=5,
        scales=scales,
        similarity=similarity,
    )
    assert all(set(row) == {"pair", "scale", similarity, "energy"} for row in history)
    warped = literal.warp(moving[0].double().numpy(), result.displacement[0].double().numpy())
    mismatch = getattr(literal, similarity)(warped, fixed[0].double().numpy())
    energy = literal.energy(result.velocity[0].double().numpy(), alpha / last**2, gamma, beta) * last**2
    objective = mismatch + weight * energy
    kept = [row[similarity] + row["energy"] for row in history if row["scale"] == last]
    # On the half grid the optimiser doubles the map; the result's is the flow on the image's grid.
    close = {1: 1e-4, 2: 0.01}[last] * abs(objective)
    assert min(abs(value - objective) for value in kept) < close
    assert energy > 0 and objective < kept[0]


@pytest.mark.parametrize("shape, scales", [((48, 41), (4, 2)), ((25, 22, 24), (2,))], ids=str)
@pytest.mark.parametrize("change", [lambda x: 1 - x, lambda x: x**3], ids=["inverted", "gamma"])
def test_local_ncc_aligns_images_of_other_contrast_and_squared_differences_do_not(
    shape, scales, change, smooth_image
):
    """The fixed image is the moving one, moved by a known map, then of other contrast. On coarser grids of
    the 3D image every window reaches outside, where the zeros are not inverted."""
    dim, moving = len(shape), smooth_image(shape)
    known = torch.zeros(1, dim, *shape)
    bump = (fields.identity_grid(shape) / (torch.tensor(shape) - 1).view(1, -1, *[1] * dim) * torch.pi).sin()
    known[:, 0], known[:, 1] = 2.5 * bump.square().prod(1), -1.5 * bump.square().prod(1)
    fixed = change(fields.warp(moving, known))
    inside = (..., *[slice(5, -5)] * dim)
    before, error = known[inside].norm(dim=1).mean(), {}
    for similarity, weight in BY_SIMILARITY:
        result, _ = lddmm.register(
            moving,
            fixed,
            steps=2,
            alpha=0.1,
            gamma=0.01,
            weight=weight,
            iterations=15,
            scales=scales,
            integrator="heun",
            similarity=similarity,
        )
        error[similarity] = (result.displacement - known)[inside].norm(dim=1).mean()
    assert error["lncc"] < 0.35 * before and error["mse"] > before


@pytest.mark.parametrize("shape", [(21, 18), (12, 11, 10)], ids=str)
@pytest.mark.parametrize("similarity, weight", BY_SIMILARITY)
def test_a_batch_gives_what_its_pairs_give_alone(shape, similarity, weight):
    """One optimisation of the whole batch would choose its steps by the pair that moves most."""
    shifts = [along(0, 3.0, len(shape)), along(1, -0.5, len(shape)), along(0, 0.0, len(shape))]
    moving, fixed = (torch.cat(images) for images in zip(*[blobs(shape, s, radius=2.5) for s in shifts]))
    settings = dict(steps=2, iterations=4, scales=(4, 2), similarity=similarity, weight=weight)
    together, history = lddmm.register(moving, fixed, **settings)
    for k in range(len(shifts)):
        alone, evaluations = lddmm.register(moving[k : k + 1], fixed[k : k + 1], **settings)
        for name in ("displacement", "warped", "velocity"):
            assert torch.equal(getattr(together, name)[k : k + 1], getattr(alone, name)), name
        assert {row["pair"] for row in evaluations} == {0}
        assert [row for row in history if row["pair"] == k] == [{**row, "pair": k} for row in evaluations]
    assert [row["pair"] for row in history] == sorted(row["pair"] for row in history)


@pytest.mark.parametrize("similarity, weight", BY_SIMILARITY)
def test_images_of_every_small_size_are_registered(similarity, weight):
    """Also those that are smaller than the window of local NCC."""
    for shape in [(n,) * dim for dim in (2, 3) for n in range(1, 9)] + [(1, 9), (11, 10, 1), (2, 10, 9)]:
        shift = along(shape.index(max(shape)), 0.4, len(shape))
        moving, fixed = blobs(shape, shift, radius=max(shape) / 4)
        settings = dict(similarity=similarity, weight=weight, steps=2, iterations=3, scales=(8, 4, 2))
        result, history = lddmm.register(moving, fixed, **settings)
        assert result.displacement.shape == (1, len(shape), *shape)
        assert result.velocity.shape[3:] == tuple(-(-s // 2) for s in shape)
        assert torch.isfinite(result.displacement).all() and torch.isfinite(result.velocity).all(), shape
        assert torch.isfinite(result.inverse()).all() and {row["scale"] for row in history} == {8, 4, 2}
        if similarity == "mse" and (len(set(shape)) > 1 or shape[0] > 4):
            assert losses.mse(result.warped, fixed) < 0.5 * losses.mse(moving, fixed), shape


@pytest.mark.parametrize("shape", [(40, 1), (1, 40), (2, 1, 40), (1, 36, 30), (36, 30, 3)], ids=str)
@pytest.mark.parametrize("similarity, weight", BY_SIMILARITY)
def test_a_translation_comes_back_from_a_stack_of_few_slices(shape, similarity, weight):
    axis = shape.index(max(shape))
    shift = along(axis, 3.0, len(shape))
    moving, fixed = blobs(shape, shift, radius=3.5)
    settings = dict(similarity=similarity, weight=weight, steps=2, iterations=15, scales=(8, 4, 2))
    result, _ = lddmm.register(moving, fixed, **settings)
    found = displacement_at_the_blob(result, fixed)
    assert torch.allclose(found, torch.tensor(shift), atol=0.3), found
    for a in (a for a, s in enumerate(shape) if s == 1):
        assert result.displacement[:, a].abs().max() < 1e-3  # nothing moves along an axis of one voxel


@pytest.mark.parametrize(
    "scales", [(), (4,), (8, 4), (3, 1), (0,), (2, 4, 1), (2, 2, 1), (2.5,), (-2, 1)], ids=str
)
def test_scales_that_make_no_pyramid_are_refused(scales):
    moving, fixed = blobs((20, 23), (2.0, 1.0), radius=3.0)
    with pytest.raises(ValueError, match="scales: expected falling powers of two that end in 1 or 2"):
        lddmm.register(moving, fixed, scales=scales)


@pytest.mark.parametrize("dim", [2, 3])
def test_bright_images_smaller_than_the_window_all_look_alike_to_local_ncc(dim):
    """The docstring warns of it; the zeros around the image are the reason."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for n in (4, 30):
        a, b = (0.7 + 0.3 * torch.rand(1, 1, *[n] * dim, generator=generator) for _ in range(2))
        found[n] = lddmm.SIMILARITIES["lncc"](a, b).item()
    assert found[4] < -0.9 < -0.75 < found[30]


def test_a_similarity_that_is_not_known_is_refused():
    moving, fixed = blobs((20, 23), (2.0, 1.0), radius=3.0)
    with pytest.raises(ValueError, match="unknown similarity of LDDMM 'ncc'; known: lncc, mse"):
        lddmm.register(moving, fixed, similarity="ncc")


def test_iterations_for_other_scales_are_refused():
    moving, fixed = blobs((20, 23), (2.0, 1.0), radius=3.0)
    with pytest.raises(ValueError, match="iterations: expected one number or one for each scale"):
        lddmm.register(moving, fixed, scales=(2, 1), iterations=(5, 5, 5))


@pytest.mark.parametrize("shape", [(40, 37), (26, 25, 28)], ids=str)
def test_solve_uses_the_settings_of_the_tables(shape):
    moving, fixed = blobs(shape, along(0, 3.0, len(shape)), radius=4.0)
    result = lddmm.solve(moving, fixed)
    assert result.integrator == lddmm.DEFAULTS[len(shape)]["integrator"]
    assert losses.mse(result.warped, fixed) < 0.02 * losses.mse(moving, fixed)
    assert metrics.folding_percent(result.displacement) == 0
