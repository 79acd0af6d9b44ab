"""The ``tvf`` command."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from accelerate import PartialState
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from . import checkpoints
from . import evaluate as evaluation
from . import profiles, tables
from . import train as training
from .checks import one_of
from .data import load
from .methods import METHODS, SIZES, available
from .paths import RESULTS, ROOT, runs, write_then_rename
from .run_folder import elapsed, list_runs

app = SubcommandApp()
DEMO_PROFILES = ("demo_faces", "demo_brains")  # of Table 1 and Table 2
ANATOMY_METHODS = ("identity", "convexadam", "lapirn", "lddmm", "tm", "tm-tvf-lddmm", "tm-tvf")  # the paper's Table 2, and LDDMM
README_PAIR = 30


@app.command
def methods(size: str = "demo", sources: bool = False) -> None:
    """List the methods: dimensions, parameters, field they predict, inverse, losses, whose code, source.

    Args:
        size: of the networks whose parameters are counted: demo, tiny, small, base, large or huge.
        sources: list instead every number of their training, with where it is from.
    """
    one_of(size, SIZES, "network size")
    print(tables.plain(*(tables.sources() if sources else tables.methods(size))))


@app.command
def train(method: str, profile: str, steps: int | None = None, batch: int | None = None, lr: float | None = None, seed: int | None = None,
          losses: dict[str, float] | None = None, precision: str | None = None, recompute: bool = False, accumulate: int | None = None,
          auto_fit: bool = False, resume: str = "auto", on_nonfinite: str = "stop", save_minutes: float = 2.0,
          workers: int | None = None, tensorboard: bool = False, out: Path | None = None) -> None:
    """Train a method; continues by itself if it was stopped, by Ctrl-C, SIGTERM or worse.

    Args:
        method: one of `tvf methods`.
        profile: a name in notebooks/profiles, or the path of a YAML file; the options down to auto-fit replace its values.
        steps: optimiser steps.
        batch: pairs per optimiser step, on all devices together.
        lr: initial learning rate.
        seed: of weights, pair order and stochastic depth.
        losses: terms and weights instead of the method's own, e.g. ssim 1 diffusion 1; see `tvf methods --sources`.
        precision: fp32, bf16 or fp16 for the network; default what accelerate is set to, else fp32.
        recompute: keep fewer activations, in less memory and somewhat more time.
        accumulate: parts of a batch that go through the network one after the other, in less memory.
        auto_fit: find recompute and accumulate such that a step fits into the memory.
        resume: auto continues an unfinished run, new puts it aside and starts afresh.
        on_nonfinite: stop, or skip a step whose loss or gradient is not finite.
        save_minutes: how often the state is saved.
        workers: processes that load batches ahead; default up to 4 beside a GPU, else none.
        tensorboard: log for TensorBoard, too, into the run's folder.
        out: folder of the run; default runs/<data>/<method>.
    """
    chosen = profiles.read(profile).change(
        steps=steps, batch=batch, lr=lr, seed=seed, losses=None if losses is None else {method: losses}, precision=precision,
        recompute=recompute or None, accumulate=accumulate, auto_fit=auto_fit or None)
    card = training.train(method, chosen, out=out, resume=resume, on_nonfinite=on_nonfinite, save_minutes=save_minutes,
                          workers=workers, tensorboard=tensorboard)
    best = card["validation"]
    if PartialState().is_main_process:
        print(f"{card['weights']}: validation {best['metric']} {best['score']:.4f} in {elapsed(card['seconds'])}")


@app.command(name="runs")
def list_all_runs(folder: Path | None = None) -> None:
    """List training runs, the last changed first: finished, running or stopped, how far, best validation score.

    Args:
        folder: where to look; default runs/.
    """
    found = list_runs(folder)
    rows = [[entry["run"], entry["state"], f"{entry['step']:,} of {entry['steps']:,}",
             f"{entry['metric']} {entry['best']:.4f}" if entry["best"] == entry["best"] else "-", elapsed(entry["seconds"]),
             f"{elapsed(time.time() - entry['changed'])} ago"] for entry in found]
    print(tables.plain(["run", "state", "steps", "best validation", "trained for", "changed"], rows) if rows
          else f"no runs in {folder or runs()}; start one with: tvf train")


@app.command
def evaluate(method: str, data: str, weights: Path | None = None, split: str = "test", limit: int = 0,
             image_size: int = 0, out: Path | None = None) -> None:
    """Score a method on a data set: a row per pair (CSV) and a summary (JSON); continues by itself if it was stopped.

    Args:
        method: one of `tvf methods`.
        data: a data set, e.g. demo_faces, demo_brains or anatomies; python -m data_download list tells which are here.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        split: train, val or test.
        limit: evaluate only so many pairs; 0 is all.
        image_size: edge of the images, as in training; 0 is the data set's own size.
        out: results folder; default runs/results.
    """
    _print_summary(evaluation.evaluate(method, data, weights=weights, split=split, limit=limit, image_size=image_size, out=out))


@app.command
def compare(a: Positional[Annotated[str, tyro.conf.arg(metavar="A")]], b: Positional[Annotated[str, tyro.conf.arg(metavar="B")]],
            data: str, metric: str = "", split: str = "test", results: Path | None = None) -> None:
    """Test whether method A scores otherwise than B: paired t-test, Wilcoxon, and a t-test over persons.

    Args:
        a: a method that has been evaluated on the data set.
        b: the one to compare it with.
        data: the data set.
        metric: a column of their CSV files; default dice, without labels ssim.
        split: on which both were evaluated.
        results: folder of results; default runs/results. Those that come with the book are in book/results.
    """
    from .compare import compare as test  # SciPy's statistics are slow to import, and no other command needs them

    found = test(a, b, data, metric, results, split)
    print(f"{data}, {found['metric']}, {found['n']} pairs: {METHODS[a].title} {found['a']:.4f}, {METHODS[b].title} {found['b']:.4f}")
    print(f"difference {found['difference']:+.4f} +- {found['std']:.4f} over pairs; above 0 on {100 * found['higher']:.0f} % of them"
          + f"; {found['left_out']} pairs without a finite value left out" * bool(found["left_out"]))
    print(f"paired t-test p = {found['t_test']:.2g}, Wilcoxon p = {found['wilcoxon']:.2g} (pairs share persons: both too small)")
    print(f"t-test over {found['subjects']} persons p = {found['subject_t_test']:.2g}")


@app.command(name="claims")
def list_claims(results: Path | None = None) -> None:
    """List every claim of the paper that can be measured, with what was measured and the verdict; chapter 7 has its numbers too.

    Args:
        results: folder of results; default book/results, for data that is not there runs/results.
    """
    from . import claims  # SciPy's statistics again

    for entry in tables.ledger()["claims"]:
        print(f"{entry['id']}: {entry['says']} ({entry['where']})")
        for finding in claims.claim(entry, results):
            print(f"    {finding.data or '-':12s} {finding.verdict:17s} " + "; ".join(t for t in (finding.measured, finding.why) if t not in ("", "–")))


@app.command(name="export-l2r")
def export_l2r(method: str, data: str, out: Path, weights: Path | None = None, split: str = "val") -> None:
    """Write the submission folder of Learn2Reg's OASIS task of 2021 (half-resolution float16 displacements), and score it.

    Args:
        method: one of `tvf methods`.
        data: a 3D data set, e.g. oasis.
        out: folder; the files go to task_03 in it. A stopped export continues.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        split: val, the challenge's 19 pairs, or test.
    """
    from . import learn2reg  # no other command needs it

    files = learn2reg.export(method, data, out, weights=weights, split=split)
    print(f"{files[0].parent}: {len(files)} displacements, {files[0].name} first")
    if load(data, split).classes:
        found = learn2reg.scores(out, data, split)
        print(f"as written: Dice {found['dice']:.4f}, HD95 {found['hd95']:.4f}, SDlogJ {found['sdlogj']:.4f}")


@app.command
def convert(released: Positional[Annotated[Path, tyro.conf.arg(metavar="RELEASED")]],
            out: Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]], method: str = "", window: tuple[int, ...] = ()) -> None:
    """Read a checkpoint of the released TransMorph code safely and write it as .safetensors.

    Args:
        released: a released .pth.tar file or a bare state dict of TM, TM-TVF, VM-2, VM-diff, CycleMorph or LapIRN.
        out: .safetensors file to write; every bit of the weights is kept.
        method: what it is, where its layers leave it open: tm-tvf-lddmm, lapirn-diff.
        window: attention window, where the file leaves it open; you are told.
    """
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"{out}: the output must be a file whose name ends in .safetensors")
    if released.suffix == ".safetensors":
        raise ValueError(f"{released} is a .safetensors file already")
    model = checkpoints.load(released, window or None, method)
    checkpoints.save(out, model.network.state_dict(), model.config)
    config, what = model.config, []
    if config.method.startswith("tm"):
        what = [config.size if isinstance(config.size, str) else ", ".join(f"{k} {v}" for k, v in config.size.items()),
                f"{config.time_steps} velocity fields" if METHODS[config.method].has_velocity else f"{config.head}-resolution head"]
    what += [f"{sum(p.numel() for p in model.network.parameters()):,} parameters"] + ["released rules"] * (config.integrator == "released")
    print(f"{out}: {config.method} in {config.dim}D, {', '.join(what)}")


@app.command(name="train-all")
def train_all() -> None:
    """Train every shipped network in runs/ (finished ones are kept), round it into book/weights, evaluate into book/results.

    Those for the anatomies as well, where these are prepared.
    """
    for name, profile, rows in _shipped():
        for method in [m for m in rows if METHODS[m].build]:
            out = runs() / profile.data / method
            training.train(method, profile, out=out)
            model = checkpoints.load(out / "weights.safetensors")
            target = checkpoints.shipped(method, profile.data)
            checkpoints.save(target, model.network.state_dict(), model.config, compact=True)
            shutil.copyfile(out / "weights.json", target.with_suffix(".json"))
    evaluate_all()


@app.command(name="evaluate-all")
def evaluate_all() -> None:
    """Evaluate every shipped network on its test split into book/results; renew the README's tables and picture.

    On the anatomies as well, where these are prepared.
    """
    blocks = {}
    for name, profile, rows in _shipped():
        for method in rows:
            _print_summary(evaluation.evaluate(method, profile.data, limit=evaluation.enough(method), out=RESULTS))
        if name in DEMO_PROFILES:
            table = f"table{1 + DEMO_PROFILES.index(name)}"
            blocks[table] = tables.comparison(table, evaluation.read_results(RESULTS, profile.data), "book/results", beyond=False)
    tables.update_readme(blocks)
    draw("tm-tvf", "demo_faces", pair=README_PAIR, out=ROOT / "book" / "_static" / "faces.png")


@app.command
def bench(operation: Positional[Annotated[str, tyro.conf.arg(metavar="OPERATION")]], profile: str = "", size: tuple[int, ...] | None = None,
          labels: int | None = None, network: str | None = None, time_steps: tuple[int, ...] = (), batch: int | None = None, device: str = "", repeats: int = 5,
          variants: tuple[str, ...] = (), growth: bool = False, compiled: bool = False, out: Path | None = None) -> None:
    """Time an operation and its memory: this package, the released form, other packages if they are installed.

    Args:
        operation: lncc, label-dice, attention, decoder, flow, forward, train-step, loading, or all.
        profile: take size, labels, network, batch and N from a profile, e.g. paper_oasis; its data need not be here. N is then
            measured as in the profile and as in the released scripts, 12.
        size: voxels of the image along each axis; default 96 96 128.
        labels: number of classes, background among them; default 36.
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
    from . import bench as benchmark  # no other command needs it

    names = list(benchmark.OPERATIONS) if operation == "all" else [operation]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    setting, known = benchmark.of_profile(profiles.read(profile)) if profile else (benchmark.Setting(), ())
    given = {"shape": size, "labels": labels, "network": network, "batch": batch}
    setting = replace(setting, device=device, compiled=compiled, **{key: value for key, value in given.items() if value is not None})
    result = benchmark.run(names, setting, repeats, variants, growth, out, time_steps=time_steps or known)
    print(f"{result['device']}, torch {result['versions']['torch']}; {' x '.join(map(str, setting.shape))} voxels, batch {setting.batch}, network {setting.network}")
    print(f"{'operation':11} {'variant':34} {'seconds':>9} {'x ours':>7} {'peak MB':>9} {'difference':>10}   floor: seconds")
    several = len({row["time_steps"] for row in result["rows"]}) > 1
    for row in result["rows"]:
        ours = next((r["seconds"] for r in result["rows"] if (r["op"], r["variant"], r["time_steps"]) == (row["op"], "ours", row["time_steps"])), None)
        times = f"{row['seconds'] / ours:7.2f}" if ours and row["seconds"] is not None else f"{'-':>7}"
        form = row["variant"] + f", N = {row['time_steps']}" * several
        if row["seconds"] is None:
            print(f"{row['op']:11} {form:34} does not fit into the memory")
            continue
        print(f"{row['op']:11} {form:34} {row['seconds']:9.4f} {times} {row['peak_mb']:9.1f} "
              + (f"{row['max_rel_diff']:10.1e}" if row["max_rel_diff"] is not None else f"{'-':>10}")
              + (f"   {row['floor_seconds']:.4f}" if row["floor_seconds"] is not None else "   -"))
    for row in result.get("growth", ()):
        print(f"{row['along']:10} {row['value']:>8} {row['op']:11} {row['variant']:24} {row['seconds']:9.4f} s {row['peak_mb']:9.1f} MB")
    if out:
        print(out)


@app.command
def draw(method: str, data: str, pair: int = 0, weights: Path | None = None, image_size: int = 0,
         out: Path = Path("registration.png")) -> None:
    """Draw one registered test pair: warped images, deformed grids forward and backward, Jacobian.

    Args:
        method: one of `tvf methods`.
        data: a data set, e.g. demo_faces, demo_brains or anatomies; python -m data_download list tells which are here.
        pair: number of the test pair.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        image_size: edge of the images, as in training; 0 is the data set's own size.
        out: PNG to write.
    """
    from . import figures  # matplotlib is slow to import, and the other commands need none of it

    pairs = load(data, "test", image_size or None, progress=True)
    model = evaluation.load_model(method, pairs, weights)
    if not 0 <= pair < len(pairs):
        raise ValueError(f"pair: expected 0 to {len(pairs) - 1}, got {pair}")
    item = pairs.batch([pair])
    figures.use_style()
    fig = figures.forward_and_backward([("", item["moving"], item["fixed"], model.register(item["moving"], item["fixed"]))])
    with write_then_rename(out) as temporary:
        fig.savefig(temporary, format="png")
    print(f"{out}: {pairs.pair_name(pair)}")


def _shipped():
    """Profile name, profile and methods of everything whose weights and results come with the book and whose data are here."""
    for name in (*DEMO_PROFILES, "anatomies"):
        profile = profiles.read(name)
        try:
            dim = load(profile.data, "val").dim
        except FileNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield name, profile, available(dim) if name in DEMO_PROFILES else ANATOMY_METHODS


def _print_summary(summary: dict) -> None:
    values = [f"{m} {summary['summary'][m]['mean']:.4f}" for m in evaluation.METRICS if m in summary["summary"]]
    print(f"{summary['dataset']} {summary['title']} ({summary['n_pairs']} pair{'s' * (summary['n_pairs'] > 1)}): " + ", ".join(values))


def main() -> None:
    """Entry point: a wrong input ends with one line, not a traceback."""
    try:
        app.cli(prog="tvf", description="Diffeomorphic image registration with time-varying velocity fields.",
                config=(tyro.conf.OmitArgPrefixes,))
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        sys.exit(f"tvf: {error}")
    except KeyboardInterrupt:
        sys.exit("tvf: stopped; a training or an evaluation continues from what it has saved with the same command")


if __name__ == "__main__":
    main()
