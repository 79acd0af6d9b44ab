"""``tvf bench``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional

from ..checks import one_of
from ..training import profiles
from .app import app


@app.command
def bench(
    operation: Positional[Annotated[str, tyro.conf.arg(metavar="OPERATION")]],
    profile: str = "",
    size: tuple[int, ...] | None = None,
    labels: int | None = None,
    network: str | None = None,
    time_steps: tuple[int, ...] = (),
    batch: int | None = None,
    device: str = "",
    repeats: int = 5,
    variants: tuple[str, ...] = (),
    growth: bool = False,
    compiled: bool = False,
    out: Path | None = None,
) -> None:
    """Time an operation and its memory: this package, the released form, other packages if installed.

    Args:
        operation: lncc, label-dice, attention, decoder, flow, forward, train-step, loading, or all.
        profile: take size, labels, network, batch and N from a profile, e.g. paper_oasis; its data need not
            be here. N is then measured as in the profile and as in the released scripts, 12.
        size: voxels of the image along each axis; default 96 96 128.
        labels: number of labels, background among them; default 36.
        network: size of TM-TVF: demo, tiny, small, base (the default), large or huge.
        time_steps: N of TM-TVF; several are measured one after the other. Default 8.
        batch: images at once; default 1.
        device: cpu or cuda; default cuda where there is one.
        repeats: timed runs of each form, after one to warm up; 0 times that one.
        variants: only these forms, e.g. ours literal.
        growth: measure also how the cost grows with voxels, labels and N (a few minutes).
        compiled: measure the forward pass compiled, too (on a processor minutes, and a C++ compiler).
        out: JSON file to write.
    """
    from .. import bench as benchmark  # no other command needs it

    one_of(operation, [*benchmark.OPERATIONS, "all"], "operation")
    names = list(benchmark.OPERATIONS) if operation == "all" else [operation]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting, known = benchmark.of_profile(profiles.read(profile)) if profile else (benchmark.Setting(), ())
    given = {"shape": size, "labels": labels, "network": network, "batch": batch}
    given = {key: value for key, value in given.items() if value is not None}
    if not growth:  # which measures other operations, too
        benchmark.check_used([*given, *["time_steps"] * bool(time_steps), *["compiled"] * compiled], names)
    setting = replace(setting, device=device, compiled=compiled, **given)
    result = benchmark.run(names, setting, repeats, variants, growth, out, time_steps=time_steps or known)
    _print(result, setting)
    if out:
        print(out)


def _print(result: dict, setting) -> None:
    """Print the machine, then a line per row and per case of growth."""
    print(
        f"{result['device']}, torch {result['versions']['torch']}; "
        f"{' x '.join(map(str, setting.shape))} voxels, batch {setting.batch}, network {setting.network}"
    )
    print(
        f"{'operation':11} {'variant':34} {'seconds':>9} {'x ours':>7} {'peak MB':>9} {'difference':>10}"
        "   floor: seconds"
    )
    several = len({row["time_steps"] for row in result["rows"]}) > 1
    for row in result["rows"]:
        ours = next(
            (
                r["seconds"]
                for r in result["rows"]
                if (r["op"], r["variant"], r["time_steps"]) == (row["op"], "ours", row["time_steps"])
            ),
            None,
        )
        times = f"{row['seconds'] / ours:7.2f}" if ours and row["seconds"] is not None else f"{'-':>7}"
        form = row["variant"] + f", N = {row['time_steps']}" * several
        if row["seconds"] is None:
            print(f"{row['op']:11} {form:34} does not fit into the memory")
            continue
        print(
            f"{row['op']:11} {form:34} {row['seconds']:9.4f} {times} {row['peak_mb']:9.1f} "
            + (f"{row['max_rel_diff']:10.1e}" if row["max_rel_diff"] is not None else f"{'-':>10}")
            + (f"   {row['floor_seconds']:.4f}" if row["floor_seconds"] is not None else "   -")
        )
    for row in result.get("growth", ()):
        print(
            f"{row['along']:10} {row['value']:>8} {row['op']:11} {row['variant']:24} "
            f"{row['seconds']:9.4f} s {row['peak_mb']:9.1f} MB"
        )
