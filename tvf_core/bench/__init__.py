"""``tvf bench``: time and memory of the expensive operations in several forms, side by side.

The forms are ours, the literal one, and those of other packages. ``operations`` defines the operations and
their inputs, ``literal`` the slow forms that ours must equal, ``peers`` those of other packages, ``measure``
the measuring of time and memory. Seconds depend on the machine, so that only those of one run can be
compared.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from ..card import code_hash, run_card
from ..checks import one_of
from ..data import load
from ..paths import must_be_writable, write_json
from ..training.profiles import Profile
from . import measure, peers
from .loading import loading
from .operations import OPERATIONS as COMPUTATIONS
from .operations import Setting

__all__ = ["GROWTH", "OPERATIONS", "Setting", "compare", "growth", "of_profile", "renew", "run"]

CODE = code_hash(f"import {__name__}")
OPERATIONS = {**COMPUTATIONS, "loading": loading}

# Option of a setting -> the operations on which it has an effect; an option that is not here has one on all.
USED_BY = {
    "labels": ("lncc", "label-dice", "decoder", "forward", "train-step", "loading"),
    "network": ("attention", "decoder", "forward", "train-step"),
    "time_steps": ("decoder", "flow", "forward", "train-step"),
    "batch": tuple(COMPUTATIONS),
    "compiled": ("forward",),
}

# Cases that show how the cost grows: operation, forms, and the settings that vary.
_CUBES = [dict(shape=(n, n, n)) for n in (32, 48, 64, 96, 128)]
GROWTH = {
    "voxels": [
        ("lncc", ("ours",), _CUBES),
        ("label-dice", ("ours",), _CUBES),
        ("flow", ("ours",), _CUBES),
        ("forward", ("ours",), _CUBES),
    ],
    "labels": [
        (
            "label-dice",
            ("ours", "literal, one warp"),
            [dict(shape=(64, 64, 64), labels=n) for n in (2, 9, 18, 36, 72)],
        )
    ],
    "time steps": [
        ("forward", ("ours", "literal"), [dict(shape=(64, 64, 64), time_steps=n) for n in (1, 2, 4, 8, 12)])
    ],
}


# Shape, and number of classes with background, of the data sets that cannot be downloaded freely.
RELEASES = {"rafd": ((256, 256), 2), "oasis": ((160, 192, 224), 36)}
RELEASED_TIME_STEPS = 12  # N of the released scripts, more than the paper's 8
DEFAULT = Setting()


def of_profile(profile: Profile) -> tuple[Setting, tuple[int, ...]]:
    """Setting of a training step of a profile, and the N to measure: its own and the released scripts'.

    For RaFD and OASIS the data need not be present.
    """
    if profile.data in RELEASES:
        shape, labels = RELEASES[profile.data]
    else:
        data = load(profile.data, "train", profile.image_size or None)
        shape, labels = data.shape, max(len(data.label_numbers), 2)
    shape = (profile.image_size,) * len(shape) if profile.image_size else shape
    time_steps = tuple(dict.fromkeys((profile.time_steps, RELEASED_TIME_STEPS)))
    return Setting(shape, labels, profile.size, profile.time_steps, profile.batch), time_steps


def check_used(options: list[str], operations: list[str]) -> None:
    """Refuse an option of a setting that has no effect on any of these operations."""
    for option in options:
        users = USED_BY.get(option, operations)
        if not set(users) & set(operations):
            raise ValueError(f"{option}: no effect on {', '.join(operations)}; used by {', '.join(users)}")


def run(
    operations: list[str],
    setting: Setting = DEFAULT,
    repeats: int = 5,
    forms: tuple[str, ...] = (),
    with_growth: bool = False,
    out: Path | None = None,
    progress: bool = True,
    time_steps: tuple[int, ...] = (),
) -> dict:
    """Measure operations: rows of ``{op, variant, seconds, peak_mb, max_rel_diff, ...}``.

    Parameters
    ----------
    operations : names of ``OPERATIONS``.
    setting : image size, labels, network, N, batch, device.
    repeats : number of timed runs of each form, after a warm-up run; with 0, the warm-up run is timed.
    forms : names of the variants to measure, where an operation has them; by default all.
    with_growth : also measure how the cost grows with voxels, labels and N.
    out : JSON file to which the result is also written.
    time_steps : several N to measure one after the other, instead of the setting's.

    Returns
    -------
    Device, versions, the machine's rates, ``rows``, and with ``with_growth`` also ``growth``.
    ``max_rel_diff`` is the difference from the literal form (for local NCC, label Dice and flow in double
    precision), relative to the largest value. ``floor_seconds`` is the least time in which this machine can
    move the operation's data or do its arithmetic in single precision. If a GPU's memory is too small for a
    form, its numbers are None.
    """
    if repeats < 0:
        raise ValueError(f"repeats: expected at least 0, got {repeats}")
    if out is not None and out.suffix != ".json":
        raise ValueError(f"{out}: the output must be a file whose name ends in .json")
    for name in operations:
        one_of(name, OPERATIONS, "operation")
    if forms:
        known = dict.fromkeys(form for name in operations for form in OPERATIONS[name](setting).forms)
        for form in forms:
            one_of(form, known, "variant of these operations")
    if out is not None:
        must_be_writable(out.parent, "choose another out file")
    start = time.time()
    machine, rows = measure.rates(setting.device), []
    for name in operations:
        for n in time_steps or (setting.time_steps,):
            rows += compare(name, replace(setting, time_steps=n), repeats, forms, machine, progress)
    versions = {"python": platform.python_version(), "torch": torch.__version__, **peers.versions()}
    result = {"device": _device(setting.device), "versions": versions, "rates": machine, "rows": rows}
    if with_growth:
        result["growth"] = growth(setting, repeats, progress)
    settings = {
        "operations": operations,
        **asdict(setting),
        "repeats": repeats,
        "forms": forms,
        "with_growth": with_growth,
    }
    settings |= {"time_steps": list(time_steps)} if time_steps else {}
    result["card"] = run_card(settings, time.time() - start, setting.device, CODE)
    result = json.loads(json.dumps(result))  # as it is read back from the file, where tuples are lists
    if out is not None:
        write_json(out, result)
    return result


def renew(file: Path, progress: bool = True) -> bool:
    """Measure again what a file of :func:`run` holds, with its card's settings; False if that is not due.

    It is due where the code has changed since. ValueError where the settings need a GPU that is not there.
    """
    card = json.loads(file.read_text("utf-8"))["card"]
    if card["code"] == CODE:
        return False
    known = dict(card["settings"])
    if known["device"] == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{file.name} was measured on a GPU, and PyTorch finds none here")
    several = known["time_steps"] if isinstance(known["time_steps"], list) else []
    values = known | {"shape": tuple(known["shape"])} | ({"time_steps": several[0]} if several else {})
    setting = Setting(**{field.name: values[field.name] for field in fields(Setting) if field.name in values})
    run(
        known["operations"],
        setting,
        known["repeats"],
        tuple(known["forms"]),
        known["with_growth"],
        file,
        progress,
        tuple(several),
    )
    return True


def compare(
    name: str,
    setting: Setting,
    repeats: int = 5,
    forms: tuple[str, ...] = (),
    machine: dict | None = None,
    progress: bool = True,
    exact: bool = True,
) -> list[dict]:
    """Measure one operation: one row for each of its forms, or for those in ``forms``.

    Rows hold None for ``max_rel_diff`` if ``exact`` is False or the form ``literal`` is not measured, and
    None for ``floor_seconds`` in half precision, or if ``machine`` is not given or the form ``ours`` is not
    measured.
    """
    operation = OPERATIONS[name](setting)
    chosen = {form: work for form, work in operation.forms.items() if not forms or form in forms}
    floor, differences = None, dict.fromkeys(chosen)
    flops = _if_it_fits(operation.flops) if machine and "ours" in chosen else None
    if flops is not None:
        floor = max(operation.moved / machine["bytes_per_second"], flops / machine["flops_per_second"])
    if exact and "literal" in chosen:
        expected = _if_it_fits(operation.reference or operation.forms["literal"])
        for form, work in chosen.items():
            found = _if_it_fits(work)
            if expected and found:
                differences[form] = measure.largest_difference(found, expected)
        del expected, found
    fitting = {form: work for form, work in chosen.items() if setting.device == "cpu" or _if_it_fits(work)}
    seconds = measure.seconds(fitting, repeats, setting.device, progress, name)
    peaks = {form: measure.peak_bytes(work, setting.device) / 2**20 for form, work in fitting.items()}
    return [
        {
            "op": name,
            "variant": form,
            "seconds": seconds.get(form),
            "peak_mb": peaks.get(form),
            "max_rel_diff": differences[form],
            "floor_seconds": None if "16" in form else floor,
            "shape": list(setting.shape),
            "time_steps": setting.time_steps,
        }
        for form in chosen
    ]


def growth(setting: Setting, repeats: int = 3, progress: bool = True) -> list[dict]:
    """Measure the cases of ``GROWTH``: rows of ``{along, value, op, variant, seconds, peak_mb}``."""
    rows = []
    for along, cases in GROWTH.items():
        for name, forms, changes in cases:
            for change in changes:
                here = replace(setting, **change)
                value = {
                    "voxels": torch.Size(here.shape).numel(),
                    "labels": here.labels,
                    "time steps": here.time_steps,
                }[along]
                for row in compare(name, here, repeats, forms, progress=progress, exact=False):
                    rows.append(
                        {"along": along, "value": value}
                        | {k: row[k] for k in ("op", "variant", "seconds", "peak_mb")}
                    )
    return rows


def _if_it_fits(work: Callable):
    """Result of ``work()``, or None if the GPU's memory is too small for it."""
    try:
        return work()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _device(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return []
