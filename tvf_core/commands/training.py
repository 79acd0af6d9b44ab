"""``tvf train`` and ``tvf runs``."""

from __future__ import annotations

import time
from pathlib import Path

import tyro
from accelerate import PartialState

from ..paths import runs
from ..reporting import tables
from ..training import profiles
from ..training import train as training
from ..training.run_list import elapsed, list_runs
from .app import app


@app.command
def train(
    method: str,
    profile: str,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    losses: dict[str, float] | None = None,
    precision: str | None = None,
    recompute: tyro.conf.DisallowNone[bool | None] = None,
    accumulate: int | None = None,
    auto_fit: tyro.conf.DisallowNone[bool | None] = None,
    resume: str = "auto",
    on_nonfinite: str = "stop",
    save_minutes: float = 2.0,
    workers: int | None = None,
    tensorboard: bool = False,
    out: Path | None = None,
) -> None:
    """Train a method; continues by itself if it was stopped, by Ctrl-C, SIGTERM or worse.

    Args:
        method: one of `tvf methods`.
        profile: a name in notebooks/profiles, or the path of a YAML file; the options down to auto-fit
            replace its values.
        steps: optimiser steps, instead of the profile's steps or epochs.
        batch: pairs per optimiser step, on all devices together.
        lr: initial learning rate.
        seed: of weights, pair order and stochastic depth.
        losses: terms and weights instead of the method's own, e.g. ssim 1 diffusion 1; see
            `tvf methods --sources`.
        precision: fp32, bf16 or fp16 for the network; default what accelerate is set to, else fp32.
        recompute: keep fewer activations, in less memory and somewhat more time; --no-recompute keeps all.
        accumulate: parts of a batch that go through the network one after the other, in less memory.
        auto_fit: find recompute and accumulate, from the given ones on, such that a step fits into the
            memory; --no-auto-fit takes them as given.
        resume: auto continues an unfinished run; beside does so, too, and where the folder holds a run with
            other settings it takes a folder beside it; new puts a run aside and starts afresh.
        on_nonfinite: stop, or skip a step whose loss or gradient is not finite.
        save_minutes: how often the state is saved.
        workers: processes that load batches ahead; default up to 4 beside a GPU, else none.
        tensorboard: log for TensorBoard, too, into the run's folder.
        out: folder of the run; default runs/<data>/<method>.
    """
    chosen = profiles.read(profile).change(
        steps=steps,
        batch=batch,
        lr=lr,
        seed=seed,
        losses=None if losses is None else {method: losses},
        precision=precision,
        recompute=recompute,
        accumulate=accumulate,
        auto_fit=auto_fit,
    )
    card = training.train(
        method,
        chosen,
        out=out,
        resume=resume,
        on_nonfinite=on_nonfinite,
        save_minutes=save_minutes,
        workers=workers,
        tensorboard=tensorboard,
    )
    best = card["validation"]
    if PartialState().is_main_process:
        print(
            f"{card['weights']}: validation {best['metric']} {best['score']:.4f} "
            f"in {elapsed(card['seconds'])}"
        )


@app.command(name="runs")
def list_all_runs(folder: Path | None = None) -> None:
    """List training runs, the last changed first: their state, how far they are, best validation score.

    Args:
        folder: where to look; default runs/.
    """
    found = list_runs(folder)
    rows = [
        [
            entry["run"],
            entry["state"],
            f"{entry['step']:,} of {entry['steps']:,}",
            f"{entry['metric']} {entry['best']:.4f}" if entry["best"] == entry["best"] else "-",
            elapsed(entry["seconds"]),
            f"{elapsed(time.time() - entry['changed'])} ago",
            entry["unlike"],
        ]
        for entry in found
    ]
    header = ["run", "state", "steps", "best validation", "trained for", "changed", "unlike its neighbour"]
    print(tables.plain(header, rows) if rows else f"no runs in {folder or runs()}; start one with: tvf train")
