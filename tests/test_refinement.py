"""Refinement of v_t: maps that are known, starts that are kept, masks, early ends, and the objective."""

import itertools

import literal
import numpy as np
import pytest
import torch
from conftest import lively
from scipy import linalg

from tvf_core import fields, integrate, losses, metrics
from tvf_core.losses.masked_ncc import MaskedNCC
from tvf_core.methods import NetworkConfig
from tvf_core.model import Model
from tvf_core.pairwise import refinement

FEW = dict(steps=3, iterations=6, scales=(4, 2))


def known_pair(shape, smooth_image, smooth_velocity, amplitude=3.0, seed=0):
    """A textured image, the same image moved by the flow of a known v_t, and the map of that flow."""
    moving = smooth_image(shape, sigma=1.5, seed=seed)
    true = integrate.flow(smooth_velocity(shape, amplitude, sigma=6.0, seed=seed, fade=6), "rk4", substeps=4)
    return moving, fields.warp(moving, true), true


def masked_lncc(warped, fixed, inside, window, eps=1e-5):
    """The literal mismatch of two images (*S): voxel by voxel, from the voxels of its window in the mask."""
    total, radius = 0.0, window // 2
    for voxel in itertools.product(*map(range, fixed.shape)):
        if inside[voxel]:
            here = tuple(slice(max(0, i - radius), i + radius + 1) for i in voxel)
            a, b = warped[here][inside[here]], fixed[here][inside[here]]
            a, b = a - a.mean(), b - b.mean()
            total += (a * b).sum() ** 2 / ((a * a).sum() * (b * b).sum() + eps)
    return -total / fixed.size


def literal_objective(result, fixed, inside, similarity, weight, window):
    """Mismatch and weighted energy of a registration of one pair, from its public fields alone."""
    warped, image = (x[0, 0].double().numpy() for x in (result.warped, fixed))
    if similarity == "lncc":
        mismatch = masked_lncc(warped, image, inside, window)
    else:
        mismatch = (((warped - image) * inside) ** 2).mean()
    velocities = result.velocity[0].double().numpy()
    return mismatch + weight * np.mean([literal.diffusion(v) for v in velocities])


def everywhere(image):
    return np.ones(image.shape[2:], bool)


@pytest.mark.parametrize("shape", [(11, 8), (7, 6, 5)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [3, 5])
def test_masked_ncc_is_its_literal_version(shape, masked, window):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(1, 1, *shape, generator=generator) > 0.4 if masked else None
    inside = mask[0, 0].numpy() if masked else everywhere(a)
    found = MaskedNCC(b, mask, window)(a)
    assert found.item() == pytest.approx(masked_lncc(a[0, 0].numpy(), b[0, 0].numpy(), inside, window))
    assert torch.autograd.gradcheck(MaskedNCC(b, mask, window), a.requires_grad_(True))


@pytest.mark.parametrize("shape", [(24, 21), (15, 16, 17)], ids=str)
def test_inside_an_empty_margin_it_is_the_usual_local_ncc(shape, smooth_image):
    margin = [4, 4] * len(shape)
    a, b = (torch.nn.functional.pad(smooth_image(shape, seed=k), margin) for k in range(2))
    assert MaskedNCC(b, None, 5)(a).item() == pytest.approx(losses.lncc(a, b, 5).item(), rel=1e-4)


@pytest.mark.parametrize("shape", [(48, 44), (47, 41), (24, 26, 24), (25, 22, 23)], ids=str)
@pytest.mark.parametrize("similarity, weight", [("lncc", 0.3), ("mse", 0.01)])
def test_a_known_flow_is_recovered(shape, similarity, weight, smooth_image, smooth_velocity):
    moving, fixed, true = known_pair(shape, smooth_image, smooth_velocity)
    settings = dict(steps=4, similarity=similarity, weight=weight, scales=(4, 2), iterations=(15, 20))
    result, _ = refinement.refine(moving, fixed, **settings)
    inside = (..., *[slice(4, -4)] * len(shape))
    error = (result.displacement - true)[inside].norm(dim=1)
    assert true[inside].norm(dim=1).mean() > 0.6
    assert error.mean() < 0.25 * true[inside].norm(dim=1).mean()
    assert metrics.ndv_percent(result.displacement) == 0


@pytest.mark.parametrize("shape", [(40, 37), (21, 24, 22)], ids=str)
@pytest.mark.parametrize("integrator", ["euler", "heun", "rk4"])
def test_the_inverse_undoes_the_map(shape, integrator, smooth_image, smooth_velocity):
    moving, fixed, _ = known_pair(shape, smooth_image, smooth_velocity)
    result, _ = refinement.refine(moving, fixed, **FEW, weight=0.3, integrator=integrator)
    assert result.integrator == integrator and result.displacement.abs().max() > 1
    inside = (..., *[slice(5, -5)] * len(shape))
    for one, other in itertools.permutations([result.displacement, result.inverse()]):
        left = fields.compose(one, other)[inside].norm(dim=1)
        assert left.mean() < {"euler": 0.15}.get(integrator, 0.05)
    assert torch.equal(result.warped, fields.warp(moving, result.displacement))


@pytest.mark.parametrize("shape", [(22, 19), (11, 10, 9)], ids=str)
@pytest.mark.parametrize("similarity", ["lncc", "mse"])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_start_is_never_made_worse(shape, similarity, scale, smooth_image, smooth_velocity):
    """Wherever it starts and however short it is: by the literal objective, from the maps that come out."""
    settings = dict(similarity=similarity, weight=0.05, window=3, patience=2)
    moving, fixed, _ = known_pair(shape, smooth_image, smooth_velocity, amplitude=1.5)
    grid = [-(-s // scale) for s in shape]
    for seed, iterations in ((1, 1), (2, 6)):
        start = smooth_velocity(grid, amplitude=1.5 / scale, sigma=3.0, steps=2, seed=seed, fade=3)
        before = refinement.Registration(
            None, fields.warp(moving, integrate.flow(start, "heun", shape=shape)), start
        )
        kept = start.clone()
        result, _ = refinement.refine(
            moving, fixed, start, scales=(4, scale), iterations=iterations, **settings
        )
        assert torch.equal(start, kept) and result.velocity.shape == start.shape
        was, now = (
            literal_objective(r, fixed, everywhere(fixed), similarity, 0.05, 3) for r in (before, result)
        )
        assert now <= was + 1e-6
        if iterations == 6:
            assert now < was
            again, _ = refinement.refine(moving, fixed, result.velocity, scales=(scale,), **settings)
            after = literal_objective(again, fixed, everywhere(fixed), similarity, 0.05, 3)
            assert after <= now + 1e-6


@pytest.mark.parametrize("shape", [(22, 19), (11, 10, 9)], ids=str)
def test_the_start_comes_back_where_the_coarse_scales_misled(shape, smooth_image, monkeypatch):
    moving, fixed = smooth_image(shape, seed=0), smooth_image(shape, seed=1)
    start = torch.zeros(1, 2, len(shape), *[-(-s // 2) for s in shape])
    start[:, 0] = 0.1
    wrong = lambda self, base, *_: 50 * torch.rand_like(base)  # noqa: E731
    monkeypatch.setattr(refinement._Refinement, "minimise", wrong)
    assert torch.equal(refinement.refine(moving, fixed, start, weight=1.0)[0].velocity, start)
    assert not refinement.refine(moving, fixed, weight=1.0)[0].displacement.any()


@pytest.mark.parametrize("shape", [(22, 19), (11, 10, 9)], ids=str)
@pytest.mark.parametrize("similarity", ["lncc", "mse"])
def test_the_best_evaluation_is_kept_and_is_what_the_history_says(
    shape, similarity, smooth_image, smooth_velocity
):
    """It ends at the first evaluation that is no better than the one before, so the last is not the best."""
    moving, fixed, _ = known_pair(shape, smooth_image, smooth_velocity, amplitude=1.5)
    settings = dict(similarity=similarity, weight=0.05, window=3, shared=1, scales=(1,), patience=1)
    result, history = refinement.refine(moving, fixed, **settings, iterations=60, tolerance=0)
    values = [row[similarity] + row["energy"] for row in history]
    found = literal_objective(result, fixed, everywhere(fixed), similarity, 0.05, 3)
    assert min(values) < values[-1] and len(values) > 3
    assert found == pytest.approx(min(values), rel=1e-5, abs=1e-8)
    assert abs(found - values[-1]) > abs(found - min(values))


@pytest.mark.parametrize("shape", [(24, 21), (14, 13, 15)], ids=str)
def test_fields_that_share_a_velocity_are_neighbours_in_time(shape, monkeypatch):
    """Of six fields, the first three move as one, then the others; at the end, each by itself."""
    runs = []

    def minimise(self, base, level, scale, iterations):
        runs.append((base.shape[1], scale, iterations))
        steps = torch.arange(1.0, base.shape[1] + 1).view(1, -1, *[1] * (base.dim() - 2))
        return (10.0 if len(runs) == 1 else 1.0) * steps.expand_as(base)

    monkeypatch.setattr(refinement._Refinement, "minimise", minimise)
    image = torch.zeros(1, 1, *shape)  # every velocity is as good as another
    settings = dict(steps=6, shared=9, scales=(2,), iterations=7, finish=5, weight=0.0)
    velocity = refinement.refine(image, image, **settings)[0].velocity
    assert runs == [(2, 2, 7), (6, 2, 5)]
    wanted = torch.tensor([10, 10, 10, 20, 20, 20]) + torch.arange(1, 7)
    assert torch.equal(velocity.flatten(2).amax(2)[0], wanted.float())
    assert torch.equal(velocity.flatten(2).amin(2)[0], wanted.float())


@pytest.mark.parametrize("shape", [(32, 28), (20, 24, 16)], ids=str)
def test_a_halved_velocity_has_the_halved_map(shape, smooth_velocity):
    v = smooth_velocity(shape, amplitude=3.0)
    coarse = refinement.halved(v, 1)
    found, wanted = fields.double(integrate.flow(coarse), shape), integrate.flow(v)
    assert wanted.abs().max() > 1 and (found - wanted).norm(dim=1).mean() < 0.25 * wanted.norm(dim=1).mean()


@pytest.mark.parametrize("dim", [2, 3])
def test_a_network_gives_the_start_and_keeps_its_weights(dim, smooth_image):
    model = lively(Model(NetworkConfig("tm-tvf", dim, size="tiny", time_steps=3)))
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    shape = (32, 28, 30)[:dim]
    moving, fixed = smooth_image(shape, seed=0), smooth_image(shape, seed=1)
    before = model.register(moving, fixed)
    result, history = refinement.refine(moving, fixed, before.velocity, iterations=3, integrator="rk4")
    assert result.velocity.shape == before.velocity.shape and len(history) > 3
    assert not torch.equal(result.velocity, before.velocity)
    assert losses.lncc(result.warped, fixed, 5) < losses.lncc(before.warped, fixed, 5)
    assert all(p.grad is None for p in model.network.parameters())
    after = model.network.state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)
    assert torch.equal(model.register(moving, fixed).velocity, before.velocity)


@pytest.mark.parametrize("shape", [(21, 18), (12, 11, 10)], ids=str)
@pytest.mark.parametrize("started", [False, True])
def test_a_batch_gives_what_its_pairs_give_alone(shape, started, smooth_image, smooth_velocity):
    pairs = [
        known_pair(shape, smooth_image, smooth_velocity, a, seed=k) for k, a in enumerate((2.0, 0.5, 0.0))
    ]
    moving, fixed, _ = (torch.cat(images) for images in zip(*pairs))
    half = [-(-s // 2) for s in shape]
    start = torch.cat([smooth_velocity(half, 0.3, steps=3, seed=k) for k in range(3)]) if started else None
    mask = torch.rand(3, 1, *shape, generator=torch.Generator().manual_seed(0)) > 0.2
    together, history = refinement.refine(moving, fixed, start, mask=mask, **FEW)
    for k in range(3):
        here = slice(k, k + 1)
        own = None if start is None else start[here]
        alone, rows = refinement.refine(moving[here], fixed[here], own, mask=mask[here], **FEW)
        for name in ("displacement", "warped", "velocity"):
            assert torch.equal(getattr(together, name)[here], getattr(alone, name)), name
        assert [row for row in history if row["pair"] == k] == [{**row, "pair": k} for row in rows]
    one_mask = refinement.refine(moving, fixed, start, mask=mask[:1], **FEW)[0]
    assert torch.equal(one_mask.velocity[:1], together.velocity[:1])


@pytest.mark.parametrize("shape", [(40, 37), (22, 23, 20)], ids=str)
@pytest.mark.parametrize("similarity, weight", [("lncc", 0.3), ("mse", 0.01)])
def test_only_the_mask_counts(shape, similarity, weight, smooth_image, smooth_velocity):
    """What the fixed image shows outside has no influence at all, at any scale; without a mask it has."""
    moving, fixed, true = known_pair(shape, smooth_image, smooth_velocity)
    mask = torch.zeros(1, 1, *shape)
    mask[(..., *[slice(5, s - 4) for s in shape])] = 1  # its edge lies within coarse voxels
    other = torch.where(mask > 0, fixed, smooth_image(shape, sigma=1.0, seed=9))
    settings = FEW | dict(similarity=similarity, weight=weight, iterations=15)
    one, two = (refinement.refine(moving, image, mask=mask, **settings)[0] for image in (fixed, other))
    assert torch.equal(one.velocity, two.velocity)
    inside = (mask > 0).expand_as(true)
    before, error = true[inside].abs().mean(), {}
    for name, result in {"mask": two, "none": refinement.refine(moving, other, **settings)[0]}.items():
        error[name] = (result.displacement - true)[inside].abs().mean()
    assert error["mask"] < 0.5 * before and error["mask"] < 0.8 * error["none"]


@pytest.mark.parametrize("shape", [(32, 29), (17, 16, 14)], ids=str)
@pytest.mark.parametrize("similarity", ["lncc", "mse"])
def test_it_stops_where_there_is_nothing_to_gain(shape, similarity, smooth_image):
    image, rows = smooth_image(shape), []
    settings = dict(similarity=similarity, scales=(8, 4, 2), iterations=50, patience=4)
    result, history = refinement.refine(image, image, progress=rows.append, **settings)
    assert not result.displacement.any() and not result.velocity.any()
    assert torch.allclose(result.warped, image, atol=1e-5)
    assert rows == history and len(history) <= 4 * 5
    loose = refinement.refine(image, smooth_image(shape, seed=1), tolerance=10.0, **settings)
    assert len(loose[1]) <= 4 * 5 and not loose[0].velocity.any()


@pytest.mark.parametrize("shape", [(9, 8), (10, 7), (6, 7, 6)], ids=str)
@pytest.mark.parametrize("similarity", ["lncc", "mse"])
@pytest.mark.parametrize("scale", [1, 2])
def test_the_gradient_is_that_of_finite_differences(shape, similarity, scale, smooth_image):
    images = [smooth_image(shape, seed=k, dtype=torch.float64) for k in range(2)]
    mask = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0)) > 0.2
    settings = refinement.DEFAULTS[len(shape)] | dict(
        similarity=similarity, weight=0.2, window=3, scales=(scale,), integrator="rk4"
    )
    problem = refinement._Refinement(*images, mask, None, settings, print)
    generator = torch.Generator().manual_seed(1)
    grid = [-(-s // scale) for s in shape]
    v, step = (
        torch.randn(1, 3, len(shape), *grid, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    v = (0.4 * v).requires_grad_(True)

    def objective(velocity):
        return sum(problem.objective(velocity, images[0], problem.mismatch(images[1], mask)).values())

    objective(v).backward()
    with torch.no_grad():
        h = 1e-7
        slope = (objective(v + h * step) - objective(v - h * step)).item() / (2 * h)
    assert (v.grad * step).sum().item() == pytest.approx(slope, rel=1e-4)


def test_the_smoothing_is_diffusion_with_mirrored_borders():
    w = torch.randn(1, 2, 3, 9, 12, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = w.numpy()
    for axis, size in enumerate(w.shape[3:], start=3):
        steps = np.diff(np.eye(size), axis=0)
        diffused = linalg.expm(-(1.3**2) / 2 * steps.T @ steps)
        wanted = np.moveaxis(np.tensordot(diffused, wanted, (1, axis)), 0, axis)
    kernels = [refinement.gaussian(n, 1.3, w) for n in w.shape[3:]]
    assert np.allclose(refinement.smooth(w, kernels).numpy(), wanted)
    wide = refinement.gaussian(101, 2.0, w)[50]  # far from the borders its spread is that of a Gaussian
    assert ((torch.arange(101) - 50) ** 2 * wide).sum().item() == pytest.approx(4.0)


def test_images_of_every_small_size_are_refined(smooth_image):
    for shape in [(n,) * dim for dim in (2, 3) for n in range(1, 6)] + [(1, 9), (11, 10, 1), (2, 10, 9)]:
        moving, fixed = smooth_image(shape, sigma=0.7, seed=0), smooth_image(shape, sigma=0.7, seed=1)
        result, history = refinement.refine(moving, fixed, steps=2, iterations=3)
        assert result.displacement.shape == (1, len(shape), *shape)
        assert result.velocity.shape[3:] == tuple(-(-s // 2) for s in shape)
        assert torch.isfinite(result.displacement).all() and torch.isfinite(result.inverse()).all()
        assert {row["scale"] for row in history} == {8, 4, 2}


def test_gradients_are_on_whatever_mode_the_caller_is_in(smooth_image):
    moving, fixed = smooth_image((20, 18), seed=0), smooth_image((20, 18), seed=1)
    with torch.inference_mode():
        found, _ = refinement.refine(moving, fixed, **FEW)
    usual, _ = refinement.refine(moving, fixed, **FEW)
    assert torch.equal(found.velocity, usual.velocity) and not usual.velocity.requires_grad
    half, _ = refinement.refine(moving.half(), fixed.half(), **FEW)
    assert half.velocity.dtype == torch.float32


def test_solve_is_the_refinement_from_zero(smooth_image, smooth_velocity):
    moving, fixed, _ = known_pair((32, 30), smooth_image, smooth_velocity)
    assert torch.equal(refinement.solve(moving, fixed).velocity, refinement.refine(moving, fixed)[0].velocity)
    assert refinement.solve(moving, fixed, steps=5).velocity.shape[1] == 5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alpha": 1.0}, "unknown setting of the refinement 'alpha'"),
        ({"steps": 0}, "steps: expected a whole number of at least 1"),
        ({"window": 4}, "window: expected an odd number, got 4"),
        ({"window": 1}, "window: expected a whole number of at least 3"),
        ({"weight": -1.0}, "weight: expected a number of at least 0"),
        ({"weight": float("nan")}, "weight: expected a number of at least 0"),
        ({"tolerance": "small"}, "tolerance: expected a number of at least 0"),
        ({"smoothness": -1}, "smoothness: expected a number of at least 0"),
        ({"patience": 2.5}, "patience: expected a whole number"),
        ({"integrator": "squaring"}, "unknown integrator of the refinement 'squaring'"),
        ({"similarity": "ncc"}, "unknown similarity of the refinement 'ncc'"),
        ({"scales": (2, 4)}, "scales: expected falling powers of two"),
        ({"iterations": (5, 5)}, "iterations: expected one number or one for each scale"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__() if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("dim", [2, 3])
def test_settings_are_checked_in_one_line(settings, message, dim):
    image = torch.zeros(1, 1, *[8] * dim)
    for call in (
        lambda: refinement.check(settings, dim),
        lambda: refinement.refine(image, image, **settings),
        lambda: refinement.solve(image, image, **settings),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dim", [2, 3])
def test_wrong_input_is_refused_before_anything_starts(dim, smooth_image):
    shape = (11, 10, 9)[:dim]
    half = [-(-s // 2) for s in shape]
    image, velocity = smooth_image(shape), torch.zeros(1, 3, dim, *half)
    broken = image.clone()
    broken[(0, 0, *[4] * dim)] = torch.nan
    endless = velocity.clone()
    endless[(0, 1, 0, *[2] * dim)] = torch.inf
    refine, rows = refinement.refine, []
    for wrong, message in [
        (lambda: refine(broken, image), "moving: has NaN"),
        (lambda: refine(image, broken), "fixed: has NaN"),
        (lambda: refine(image, image, endless), "velocity: has NaN or infinite values"),
        (lambda: refine(image, image, velocity[:, 0]), "velocity: expected"),
        (lambda: refine(image, image, velocity[..., :-1]), "velocity: expected"),
        (lambda: refine(image, image, velocity, scales=(2, 1)), "on the grid of the last scale 1"),
        (lambda: refine(image, image, velocity.repeat(2, *[1] * (dim + 2))), "velocity: expected"),
        (
            lambda: refine(image, image, mask=image[..., :-1], progress=rows.append),
            "mask: expected the shape",
        ),
        (lambda: refine(image, image, mask=torch.zeros_like(image)), "mask: no voxel lies inside"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(TypeError, match="velocity: expected a floating-point tensor"):
        refine(image, image, velocity.long())
    assert not rows
