"""Every public function of fields, metrics and losses, swept over sizes, batches, types, labels and NaN.

Each is compared with a slow literal version (``literal.py``) on every pair alone, or it refuses what it is
given in the package's own words.
"""

import inspect
import itertools
import linecache
import math
import re
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
    "landmark_error": Call("field points points", metrics.landmark_error, literal.landmark_error),
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
def test_a_metric_refuses_a_batch(name):
    call = CALLS[name]
    for shape, size in itertools.product([(13, 12), (12, 11, 13)], (2, 3)):
        if not call.refuses(shape):
            words = (
                f"{call.public.__name__}: expected one pair (1, ...), got a batch of {size}; score the pairs"
            )
            with pytest.raises(ValueError, match=f"^{re.escape(words)} one by one$") as refused:
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
