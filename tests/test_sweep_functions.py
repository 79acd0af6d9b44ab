"""Every public function of fields, metrics and losses, swept over sizes, batches, types, labels and NaN.

Each is compared with a slow literal version (``literal.py``) on every pair alone, or it refuses what it is
given in the package's own words.
"""

import inspect
import itertools
import linecache
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import literal
import numpy as np
import pytest
import torch

import tvf_core
from tvf_core import fields, losses, metrics

PACKAGE = str(Path(tvf_core.__file__).parent)
SIZES = range(1, 18)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WHOLE = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
NUMBERS = (1, 2, 127, 255, 1000, 2035, 65_535, 20_000_000, 614_454_277, 2**31 + 5, 2**53 + 1, 2**63 - 1)


@dataclass(frozen=True)
class Call:
    """A public function, what it takes for each pair, and its literal version.

    ``gives``: "each", a result per pair; "mean", the mean over pairs; "one", it takes one pair only.
    ``refuses``: sizes for which it raises a ValueError.
    """

    takes: str
    function: Callable
    literal: Callable
    gives: str = "each"
    refuses: Callable = lambda shape: False
    part_of: Callable | None = None  # the public function, where ``function`` only calls it

    @property
    def public(self):
        return self.part_of or self.function


def few(shape):
    return min(shape) < 5


def thin(shape):
    return sum(n >= 11 for n in shape) < 2


def no_picture(shape):
    return len(shape) == 3 or math.prod(shape) == 1


def larger(shape):
    return [n + 2 for n in shape]


def fine(shape):
    return [2 * n - 1 for n in shape]


def sample(mode, padding):
    order = {"linear": 1, "nearest": 0}[mode]
    return Call(
        "image places",
        lambda image, places: fields.sample(image, places, mode, padding),
        lambda image, places: literal.read(image, places, order, padding),
        part_of=fields.sample,
    )


def field_metric(function, literally, refuses=Call.refuses, **options):
    return Call("field", lambda u: function(u, **options), literally, "one", refuses, function)


LDDMM = (0.3, 0.2, 2)
CALLS = {
    **{f"sample {m} {p}": sample(m, p) for m in ("linear", "nearest") for p in ("zeros", "border")},
    "warp": Call("image field", fields.warp, literal.warp),
    "warp_labels": Call("labels field", fields.warp_labels, literal.warp_labels),
    "compose": Call("field field", fields.compose, literal.compose),
    "transform_points": Call("points field", fields.transform_points, literal.transform_points),
    "resize": Call(
        "field",
        lambda u: fields.resize(u, larger(u.shape[2:])),
        lambda u: literal.resize(u, larger(u.shape[1:])),
        part_of=fields.resize,
    ),
    "double": Call(
        "field",
        lambda u: fields.double(u, fine(u.shape[2:])),
        lambda u: literal.double(u, fine(u.shape[1:])),
        part_of=fields.double,
    ),
    "halve": Call("image", fields.halve, literal.halve),
    "average_down": Call("image", fields.average_down, literal.average_down),
    "pool": Call("image", lambda a: fields.pool(a, 3, 1), literal.pool, part_of=fields.pool),
    "jacobian": Call("field", fields.jacobian, literal.jacobian),
    "jacobian_determinant": Call("field", fields.jacobian_determinant, literal.jacobian_determinant),
    "determinant": Call("matrix", fields.determinant, literal.determinant),
    "invert": Call("field", fields.invert, literal.invert),
    "inverse_consistency_error": Call(
        "field field", metrics.inverse_consistency_error, literal.inverse_consistency_error
    ),
    "dice": Call(
        "labels labels labels",
        lambda *maps: metrics.dice(*maps, [1, 2, 3]),
        lambda *maps: literal.dice(*maps, [1, 2, 3]),
        "one",
        part_of=metrics.dice,
    ),
    "hd95 of equal maps": Call(
        "labels",
        lambda labels: metrics.hd95(labels, labels, labels, [1, 2, 3]),
        lambda labels: np.array([0.0 if (labels == k).any() else np.nan for k in (1, 2, 3)]),
        "one",
        part_of=metrics.hd95,
    ),
    "ssim": Call("image image", metrics.ssim, literal.ssim, "one", thin),
    "fsim of equal images": Call(
        "image", lambda a: metrics.fsim(a, a), lambda a: 1.0, "one", no_picture, metrics.fsim
    ),
    "sdlogj": field_metric(metrics.sdlogj, literal.sdlogj, few),
    "sdlogj textbook": field_metric(metrics.sdlogj, literal.sdlogj_textbook, few, kind="textbook"),
    **{
        f"folding {c}": field_metric(
            metrics.folding_percent,
            lambda u, c=c: literal.folding(u, c),
            few if c == "inner" else Call.refuses,
            convention=c,
        )
        for c in ("one-sided", "inner", "replicated")
    },
    "ndv of a mirrored axis": Call(
        "mirror", metrics.ndv_percent, lambda u: 100 * (u.shape[1] - 1) / u.shape[1], "one"
    ),
    "mse": Call("image image", losses.mse, literal.mse, "mean"),
    "ssim loss": Call("image image", losses.ssim, lambda a, b: -literal.ssim(a, b), "mean", thin),
    "lncc": Call("image image", losses.lncc, literal.lncc, "mean"),
    "multiscale_lncc": Call("image image", losses.multiscale_lncc, literal.multiscale_lncc, "mean"),
    "soft_dice": Call("labels field labels", losses.soft_dice, literal.soft_dice, "mean"),
    "label_mse": Call("labels field labels", losses.label_mse, literal.label_mse, "mean"),
    "label_mse of named labels": Call(
        "labels field labels",
        lambda *pair: losses.label_mse(*pair, labels=(9, 3, 2, 1, 0)),
        literal.label_mse,
        "mean",
        part_of=losses.label_mse,
    ),
    "diffusion": Call("field", losses.diffusion, literal.diffusion, "mean"),
    "lddmm_operator": Call(
        "field",
        lambda v: losses.lddmm_operator(v, *LDDMM),
        lambda v: literal.operator(v, *LDDMM),
        part_of=losses.lddmm_operator,
    ),
    "lddmm_energy": Call(
        "velocity",
        lambda v: losses.lddmm_energy(v, *LDDMM),
        lambda v: literal.energy(v, *LDDMM),
        "mean",
        part_of=losses.lddmm_energy,
    ),
    "velocity_kl": Call(
        "field field",
        lambda mean, spread: losses.velocity_kl(mean, spread, 3.0),
        lambda mean, spread: literal.velocity_kl(mean, spread, 3.0),
        "mean",
        part_of=losses.velocity_kl,
    ),
}
# They take no pair: a grid, and the types that sums and coordinates have.
WITHOUT_PAIRS = {fields.identity_grid, fields.at_least_float32, fields.for_sums}
each_call = pytest.mark.parametrize("name", CALLS)


def test_every_public_function_is_swept():
    here = {f for _, f in inspect.getmembers(fields, inspect.isfunction) if f.__module__ == fields.__name__}
    here = {f for f in here if not f.__name__.startswith("_")}
    here |= {getattr(room, name) for room in (metrics, losses) for name in room.__all__}
    assert here == {call.public for call in CALLS.values()} | WITHOUT_PAIRS


def make(kind, shape, rng):
    """An array of one pair."""
    rank = len(shape)
    if kind == "image":
        return rng.uniform(size=(1, *shape))
    if kind == "labels":
        return rng.integers(0, 4, (1, *shape))
    if kind == "matrix":
        return rng.uniform(-1, 1, (rank, rank, *shape))
    if kind == "mirror":  # phi(x) = -x along the first axis
        return -2 * literal.grid(shape) * (np.arange(rank) == 0).reshape(-1, *[1] * rank)
    moved = rng.uniform(-0.4, 0.4, (rank, *shape))
    if kind == "velocity":
        return np.stack([moved, moved[::-1]])
    if kind == "places":
        return literal.grid(shape) + moved
    return (literal.grid(shape) + moved).reshape(rank, -1).T if kind == "points" else moved


def batch_of(call, shape, size, dtype, seed=0):
    """Tensors for a call, those that have a floating point of the type ``dtype``."""
    rng = np.random.default_rng([seed, *shape])
    each = [[make(kind, shape, rng) for kind in call.takes.split()] for _ in range(size)]
    return [
        torch.from_numpy(np.stack(arrays)).to(torch.int64 if arrays[0].dtype == int else dtype)
        for arrays in zip(*each)
    ]


def ours(error):
    """Whether a line ``raise`` of this package has raised an exception, and its message is one line."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    file, message = trace.tb_frame.f_code.co_filename, str(error)
    raised = linecache.getline(file, trace.tb_lineno).strip().startswith("raise ")
    return raised and file.startswith(PACKAGE) and "\n" not in message and len(message) < 400


def expected(call, tensors):
    """What the literal version gives for every pair alone, stacked or averaged."""
    arrays = [t.double().numpy() if t.is_floating_point() else t.numpy() for t in tensors]
    found = [call.literal(*pair) for pair in zip(*arrays)]
    return torch.tensor(np.mean(found) if call.gives == "mean" else np.stack(found), dtype=torch.float64)


def shapes(n):
    """2D and 3D shapes with an axis of n voxels, or with nothing else."""
    for rank in (2, 3):
        other = (13, 12)[: rank - 1]
        where = n % rank
        yield (*other[:where], n, *other[where:])
        if n**rank < 1000:
            yield (n,) * rank


def as_tensor(found):
    return torch.as_tensor(found, dtype=torch.float64)


TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


@each_call
def test_every_size_batch_and_type_gives_what_each_pair_gives_alone(name):
    call, dtypes, batches = CALLS[name], itertools.cycle(FLOATS), itertools.cycle((1, 2, 3))
    for shape in itertools.chain.from_iterable(map(shapes, SIZES)):
        dtype, size = next(dtypes), 1 if call.gives == "one" else next(batches)
        tensors = batch_of(call, shape, size, dtype)
        where = f"{name}: {shape}, {dtype}, a batch of {size}"
        if call.refuses(shape):
            with pytest.raises(ValueError) as refused:
                call.function(*tensors)
            assert ours(refused.value), where
            continue
        found, wanted = as_tensor(call.function(*tensors)), expected(call, tensors)
        close = TOLERANCE[dtype if call.takes != "labels" else torch.float64]
        torch.testing.assert_close(
            found,
            wanted.squeeze(0) if call.gives == "one" else wanted,
            rtol=close,
            atol=close,
            equal_nan=True,
            msg=lambda m, w=where: f"{w}: {m}",
        )


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.gives == "one"])
@pytest.mark.parametrize("shape", [(13, 12), (12, 11, 13)], ids=str)
def test_a_metric_refuses_a_batch(name, shape):
    call = CALLS[name]
    if call.refuses(shape):
        pytest.skip("it takes no such images")
    for size in (2, 3):
        message = (
            rf"^{call.public.__name__}: expected one pair \(1, \.\.\.\), got a batch of {size}; score the"
        )
        with pytest.raises(ValueError, match=message) as refused:
            call.function(*batch_of(call, shape, size, torch.float32))
        assert ours(refused.value)


FLAWS = [
    (name, which)
    for name, call in CALLS.items()
    for which, kind in enumerate(call.takes.split())
    if kind not in ("labels", "mirror")
]


def flawed(tensors, which, value, position):
    """Copies, the last pair with one value of one tensor that is not finite."""
    tensors = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
    tensors[which][-1].view(-1)[position] = value
    return tensors


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name, which", FLAWS)
def test_what_is_not_finite_shows_and_changes_nothing_else(name, which, value):
    """Every number of a result is the right one or not finite; a metric is NaN; labels are refused."""
    call = CALLS[name]
    for number, shape in enumerate([(13, 12), (11, 12, 6), (11, 5, 12)]):
        if call.refuses(shape):
            continue
        tensors = batch_of(call, shape, 1 if call.gives == "one" else 2, FLOATS[number % 2])
        last = tensors[which][-1].numel() - 1
        for position in (0, last // 3, last):
            bad = flawed(tensors, which, value, position)
            where = f"{name}: {shape}, {value} at {position}"
            if call.function is fields.warp_labels:
                with pytest.raises(ValueError) as refused:
                    call.function(*bad)
                assert ours(refused.value), where
                continue
            clean, found = as_tensor(call.function(*tensors)), as_tensor(call.function(*bad))
            if call.gives == "one":
                assert found.isnan(), where
                continue
            good = found.isfinite()
            assert not (good.all() if call.gives == "mean" else good[-1].all()), where
            torch.testing.assert_close(found[good], clean[good], msg=lambda m, w=where: f"{w}: {m}")
            if call.gives == "each":
                assert good[:-1].all(), f"{where}: another pair of the batch is not finite"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_voxel_that_a_broken_map_cannot_place_is_nan(rank, value):
    """In both paddings and modes, and only that voxel; likewise a point."""
    shape = (7, 9, 6)[:rank]
    image, u = (batch_of(CALLS["warp"], shape, 2, torch.float32)[k] for k in (0, 1))
    for position in itertools.product(*[(0, n // 2, n - 1) for n in shape]):
        for component in range(rank):
            bad = u.clone()
            bad[(1, component, *position)] = value
            broken = torch.zeros(2, 1, *shape, dtype=torch.bool)
            broken[(1, 0, *position)] = True
            for mode, padding in itertools.product(("linear", "nearest"), ("zeros", "border")):
                assert torch.equal(fields.warp(image, bad, mode, padding).isnan(), broken)
            assert torch.equal(fields.compose(u, bad).isnan().any(1, keepdim=True), broken)
            points = torch.tensor([position, [1.5] * rank]).expand(2, 2, rank).clone()
            points[1, 0, component] = value
            lost = fields.transform_points(points, u).isnan()
            assert lost[1, 0, component] and not lost[:, 1].any() and not lost[0].any()


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
