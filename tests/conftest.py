"""What the tests share: smooth random fields, golden values, tiny data sets, a run folder per test."""

import contextlib
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    """Whatever a test trains or evaluates lands in its own folder, never in the repository."""
    monkeypatch.setenv("TVF_RUNS", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def usual_signals():
    """SIGINT and SIGTERM as in a terminal, in this process and in those that it starts within the block.

    A shell that starts ``make test &`` lets it and all its children ignore SIGINT.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, usual)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def signals():
    """Every test finds the signals as they usually are, however the tests were started."""
    with usual_signals():
        yield


def _smooth(shape, sigma, seed, lead):
    noise = np.random.default_rng(seed).standard_normal((*lead, *shape))
    smooth = ndimage.gaussian_filter(noise, [0] * len(lead) + [sigma] * len(shape), mode="reflect")
    return smooth / np.abs(smooth).max()


@pytest.fixture
def smooth_image():
    """``smooth_image(shape)``: (1, 1, *shape) in [0, 1]."""

    def make(shape, sigma=2.0, seed=0, dtype=torch.float32):
        return torch.tensor((1 + _smooth(shape, sigma, seed, (1, 1))) / 2, dtype=dtype)

    return make


@pytest.fixture
def smooth_velocity():
    """``smooth_velocity(shape)``: (1, steps, D, *shape), largest component ``amplitude``, zero at the border.

    Half of it stays the same in time, so that it carries points away, and half changes."""

    def make(shape, amplitude=2.0, sigma=5.0, steps=4, seed=0, fade=8, dtype=torch.float32):
        field = _smooth(shape, sigma, seed, (1, steps + 1, len(shape)))
        field = field[:, 1:] + field[:, :1]
        for axis, n in enumerate(shape):
            depth = np.minimum(np.arange(n), np.arange(n)[::-1])
            field *= (np.sin(np.pi / 2 * np.minimum(depth / fade, 1)) ** 2).reshape(
                [-1 if a == axis else 1 for a in range(len(shape))]
            )
        return torch.tensor(amplitude * field / np.abs(field).max(), dtype=dtype)

    return make


@pytest.fixture
def smooth_field(smooth_velocity):
    """``smooth_field(shape)``: (1, D, *shape) displacement, like one step of :func:`smooth_velocity`."""
    return lambda shape, **kwargs: smooth_velocity(shape, steps=1, **kwargs)[:, 0]


class Golden:
    """Golden values: ``golden(name)[array]``; what is not there skips the rest of the test."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, name):
        file = self.folder / f"{name}.npz"
        if not file.is_file():
            pytest.skip(f"{NO_GOLDEN} {name}: no such file in {self.folder}")
        return GoldenFile(name, np.load(file, allow_pickle=False))


class GoldenFile:
    """The arrays of one file, of which the small files in ``tests/golden`` lack some."""

    def __init__(self, name, arrays):
        self.name, self.arrays, self.files = name, arrays, arrays.files

    def __getitem__(self, key):
        if key not in self.files:
            pytest.skip(f"{NO_GOLDEN} {self.name}: it has no {key}")
        return self.arrays[key]


NO_GOLDEN = "no golden value:"


@pytest.fixture
def golden():
    """Golden values of ``$TVF_GOLDEN``, or of ``tests/golden`` where that is not set."""
    folder = Path(os.environ.get("TVF_GOLDEN") or Path(__file__).parent / "golden")
    if not folder.is_dir():
        pytest.fail(f"TVF_GOLDEN: {folder} is no folder")
    return Golden(folder)


def pytest_terminal_summary(terminalreporter):
    """Show how far from the golden values each array came, and which golden values were not there."""
    lines = [
        report.capstdout
        for report in terminalreporter.stats.get("passed", [])
        if "test_golden" in report.nodeid
    ]
    if any(lines):
        terminalreporter.section("golden values: worst differences")
        terminalreporter.write("".join(lines))
    lacking = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if NO_GOLDEN in reason:
            lacking[reason.split(NO_GOLDEN)[1].split(":")[0].strip()] += 1
    if lacking:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(lacking.items()))
        terminalreporter.write_line(
            f"golden values: {len(lacking)} files are not there or not whole, "
            f"so {lacking.total()} tests stopped before or at a comparison: {listed}"
        )


def lively(model, scale=0.05):
    """Give the layers that predict fields, which start at nearly zero, weights that move the image."""
    torch.manual_seed(1)
    last = [
        m
        for m in model.network.modules()
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)) and m.out_channels == model.config.dim
    ]
    assert last
    if not model.config.method.startswith(("tm", "vm-tvf")):  # without normalisation features are small
        scale *= 10
    for layer in last:
        torch.nn.init.normal_(layer.weight, std=scale)
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias, std=scale)
    model.network.eval()
    return model


@pytest.fixture
def toy_data(monkeypatch):
    """Register tiny data sets: ``toy2d``, ``toy3d``, ``toy3d_long`` with labels, ``toy_plain`` (2D) without.

    They show ellipsoids of two tissues at slightly different places. Images 0 to 3 train, 4 and 5 validate,
    6 and 7 test. In ``toy3d_long`` no level of a network has two voxels along the first axis, where bf16 on a
    processor goes wrong. ``toy_data(name, shape, labelled)`` registers one more.
    """
    from tvf_core.data import pairs

    def register(name, shape, labelled):
        rng = np.random.default_rng(0)
        x = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        images, labels = [], []
        reach = np.minimum(1, np.array(shape) / 10)  # in a stack of few slices all of them show something
        for _ in range(8):
            centre = np.array(shape) / 2 + reach * rng.uniform(-2, 2, len(shape))
            radius = np.sqrt(
                (
                    (
                        (x.T - centre).T
                        / (np.maximum(shape, 4) * rng.uniform(0.25, 0.35)).reshape(-1, *[1] * len(shape))
                    )
                    ** 2
                ).sum(0)
            )
            labels.append(((radius < 1).astype(np.uint8) + (radius < 0.5)).astype(np.uint8))
            images.append(np.round(255 * ndimage.gaussian_filter(labels[-1] / 2.5, 1.0)).astype(np.uint8))

        def load(split, size, progress):
            first = {"train": 0, "val": 4, "test": 6}[split]
            chosen = [(first, first + 1), (first + 1, first)] + ([(2, 3), (3, 2)] if split == "train" else [])
            return pairs.PairData(
                name,
                split,
                np.stack(images),
                chosen,
                [f"i{k}" for k in range(8)],
                np.stack(labels) if labelled else None,
                {1: "outer", 2: "inner"} if labelled else {},
            )

        monkeypatch.setitem(pairs.DATASETS, name, load)

    register("toy2d", (32, 29), True)
    register("toy_plain", (32, 29), False)
    register("toy3d", (20, 18, 17), True)
    register("toy3d_long", (36, 12, 11), True)
    return register
