"""Every method, swept over sizes, batches and types of images: it registers and trains, or says why not."""

import importlib.util
import math

import pytest
import torch
from conftest import lively
from test_sweep_functions import ours

from tvf_core import fields
from tvf_core.methods import METHODS, NetworkConfig, available
from tvf_core.model import Model, objective

# Methods and the integrators of their networks; the rules of released code are methods of their own here.
EVERY = [
    (method, dim, integrator)
    for dim in (2, 3)
    for method in available(dim)
    for integrator in dict.fromkeys(("", *["released"] * METHODS[method].released))
    if method != "convexadam" or importlib.util.find_spec("convexAdam")
]
each_method = pytest.mark.parametrize("method, dim, integrator", EVERY)
QUICK = {
    "lddmm": dict(iterations=3, steps=2, scales=(4, 2)),
    "convexadam": dict(grid_sp=3, disp_hw=2, selected_niter=2),
}
# Every method works from images of one voxel on, but for the authors' package.
REFUSES = {"convexadam": lambda shape: min(shape) < 7}


def small(method, dim, integrator, dtype=torch.float32):
    """A method with the smallest network that it can have, which moves images visibly."""
    one = (1, 1, 1, 1)
    size = {"start": 2} if "lapirn" in method else dict(embed=4, depths=one, heads=one, window=(2,) * dim)
    torch.manual_seed(0)
    config, _ = NetworkConfig.fitting(method, dim, size=size, time_steps=2, integrator=integrator)
    model = Model(config, constants=QUICK.get(method))
    if model.network is not None:
        lively(model).network.to(dtype)
    return model


def images(shape, size=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.rand(size, 1, *shape, generator=generator).to(dtype) for _ in range(2)]


def shapes(dim):
    """Every size from 1 to 17 along some axis, beside long ones or short ones, and some tiny images."""
    for n in range(1, 18):
        where, other = n % dim, ((17, 9), (5, 4))[n // 2 % 2]
        yield (*other[: dim - 1][:where], n, *other[: dim - 1][where:])
    yield from ((n,) * dim for n in (1, 2, 3))


@each_method
def test_every_size_registers_and_a_batch_is_its_pairs(method, dim, integrator):
    dtype = torch.float32 if method == "convexadam" else torch.float64  # where rounding decides nothing
    model = small(method, dim, integrator, dtype)
    for shape in shapes(dim):
        moving, fixed = images(shape, dtype=dtype)
        if REFUSES.get(method, lambda shape: False)(shape):
            with pytest.raises(ValueError, match="axis") as refused:
                model.register(moving, fixed)
            assert ours(refused.value), shape
            continue
        both = model.register(moving, fixed)
        assert both.displacement.shape == (2, dim, *shape) and both.displacement.isfinite().all()
        assert both.warped.shape == moving.shape and both.warped.isfinite().all()
        assert both.inverse().isfinite().all()
        k = slice(1, 2) if sum(shape) % 2 else slice(0, 1)
        alone = model.register(moving[k], fixed[k]).displacement
        torch.testing.assert_close(both.displacement[k], alone, rtol=1e-4, atol=1e-4, msg=str(shape))
        if method != "identity" and max(shape) > 4:
            assert both.displacement.abs().max() > 1e-4, shape


@pytest.mark.parametrize("method, dim, integrator", [e for e in EVERY if METHODS[e[0]].build])
def test_every_size_trains(method, dim, integrator):
    model = small(method, dim, integrator)
    whole = objective(model.config, model.network, labels=(0, 1, 2035))
    for shape in [s for s in shapes(dim) if min(s) < 4]:
        moving, fixed = images(shape)
        labels = [2035 * (image > 0.7).long() + (image < 0.2) for image in (moving, fixed)]
        batch = dict(zip(("moving", "fixed", "moving_labels", "fixed_labels"), (moving, fixed, *labels)))
        for progress in (0.1, 0.4, 0.9) if "lapirn" in method else (0.5,):
            whole.zero_grad()
            terms = whole(batch, progress)
            assert all(term.isfinite() for term in terms.values()), (shape, terms)
            sum(terms.values()).backward()
            slopes = [p.grad for p in whole.parameters() if p.grad is not None]
            assert slopes and all(slope.isfinite().all() for slope in slopes), shape


def changed(image, value, position):
    image = image.clone()
    image.view(-1)[position] = value
    return image


def bad_pairs(dim):
    """What no method takes: (what it is, moving, fixed, the error)."""
    shape = (17, 18, 19)[:dim]
    good, other = images(shape, 1)
    for value in (math.nan, math.inf, -math.inf):
        for position in (0, good.numel() // 2, good.numel() - 1):
            yield f"{value} at {position} of moving", changed(good, value, position), other, ValueError
            yield f"{value} at {position} of fixed", good, changed(other, value, position), ValueError
    for scaled in (255 * good, 2 * good - 1, good - 0.5, 4000 * good):
        yield "intensities of moving", scaled, other, ValueError
        yield "intensities of fixed", good, scaled, ValueError
    for dtype in (torch.uint8, torch.int16, torch.int64, torch.bool, torch.complex64):
        yield f"{dtype}", (255 * good).to(dtype), (255 * other).to(dtype), TypeError
    yield "two channels", *(x.expand(1, 2, *shape) for x in (good, other)), ValueError
    yield "no channel", good[0], other[0], ValueError
    yield "an axis too many", good[..., None], other[..., None], ValueError
    yield "another size", good, other[..., :-1], ValueError
    yield "another batch", good.expand(3, 1, *shape), other.expand(2, 1, *shape), ValueError
    yield "nothing", good[:0], other[:0], ValueError
    yield "no voxel", good[..., :0], other[..., :0], ValueError
    yield "an array", good.numpy(), other.numpy(), TypeError


@each_method
def test_what_no_method_takes_is_refused_in_one_line(method, dim, integrator):
    model = small(method, dim, integrator)
    for what, moving, fixed, error in bad_pairs(dim):
        with pytest.raises(error) as refused:
            model.register(moving, fixed)
        assert ours(refused.value), (what, refused.value)


@each_method
def test_images_and_networks_of_every_type_register(method, dim, integrator):
    """Half precision changes a registration by its rounding only; the fields are float32 at least."""
    shape = (17, 12, 9)[:dim]
    wanted = small(method, dim, integrator).register(*images(shape)).displacement
    size = wanted.abs().max().clamp_min(1e-6)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        model = small(method, dim, integrator, dtype)
        pairs = [images(shape, dtype=dtype)] + [images(shape)] * (model.network is not None)
        for moving, fixed in pairs:
            found = model.register(moving, fixed)
            assert found.displacement.dtype in (torch.float32, torch.float64)
            assert found.displacement.isfinite().all() and found.inverse().isfinite().all()
            distance = (found.displacement - wanted).abs().mean() / size
            assert method in QUICK or distance < (1e-3 if dtype == torch.float64 else 0.2), (
                dtype,
                float(distance),
            )


class Broken(torch.nn.Module):
    """A network whose field has one value that is not finite."""

    def __init__(self, network, value):
        super().__init__()
        self.network, self.value, self.convention = network, value, network.convention

    def forward(self, moving, fixed):
        displacement, velocity = self.network(moving, fixed)
        field = displacement if velocity is None else velocity
        field = changed(field, self.value, field.numel() - 1)
        return (field, None) if velocity is None else (displacement, field)


@pytest.mark.parametrize("method, dim, integrator", [e for e in EVERY if METHODS[e[0]].build])
def test_a_field_that_is_not_finite_is_an_error(method, dim, integrator):
    model = small(method, dim, integrator)
    network = model.network
    for value in (math.nan, math.inf, -math.inf):
        model.network = Broken(network, value)
        with pytest.raises(FloatingPointError) as refused:
            model.register(*images((17, 12, 9)[:dim]))
        assert ours(refused.value)


@each_method
def test_what_a_registration_carries_is_what_it_was_given(method, dim, integrator):
    """Labels of odd numbers and types come out as they went in; points and images keep their shape."""
    shape = (17, 12, 9)[:dim]
    moving, fixed = images(shape)
    result = small(method, dim, integrator).register(moving, fixed)
    for dtype, number in ((torch.uint16, 40_000), (torch.int64, 2**53 + 1), (torch.uint64, 2**63 + 9)):
        labels = torch.full((2, 1, *shape), number, dtype=dtype)
        for to in ("fixed", "moving"):
            carried = result.transport(labels, "labels", to)
            assert carried.dtype == dtype and set(carried.flatten().tolist()) <= {0, number}
    points = torch.full((2, 4, dim), 3.0)
    points[1, 2, 0] = math.nan
    for to in ("fixed", "moving"):
        carried = result.transport(points, "points", to)
        assert carried[1, 2].isnan().any() and carried[0].isfinite().all() and carried[1, :2].isfinite().all()
    torch.testing.assert_close(
        result.transport(moving), fields.warp(moving, result.displacement), rtol=0, atol=0
    )
