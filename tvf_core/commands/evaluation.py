"""``tvf evaluate``, ``tvf compare`` and ``tvf export-l2r``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from ..data import load
from ..evaluation import evaluate as evaluation
from ..methods import METHODS
from ..training import profiles
from .app import app


@app.command
def evaluate(
    method: str,
    data: str,
    weights: Path | None = None,
    profile: str = "",
    split: str = "test",
    limit: int = 0,
    image_size: int = 0,
    out: Path | None = None,
) -> None:
    """Score a method on a data set: a row per pair (CSV) and a summary (JSON); continues by itself if it was stopped.

    Args:
        method: one of `tvf methods`.
        data: a data set, e.g. demo_faces, demo_brains or anatomies; python -m data_download list tells which are here.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        profile: use the constants that this profile names for a method without a network (lddmm, convexadam);
            default the method's own.
        split: train, val or test.
        limit: evaluate only so many pairs; 0 is all.
        image_size: edge of the images, as in training; 0 is the data set's own size.
        out: results folder; default runs/results.
    """
    print_summary(
        evaluation.evaluate(
            method,
            data,
            weights=weights,
            constants=profiles.to_register(profile, method),
            split=split,
            limit=limit,
            image_size=image_size,
            out=out,
        )
    )


@app.command
def compare(
    a: Positional[Annotated[str, tyro.conf.arg(metavar="A")]],
    b: Positional[Annotated[str, tyro.conf.arg(metavar="B")]],
    data: str,
    metric: str = "",
    split: str = "test",
    results: Path | None = None,
) -> None:
    """Test whether method A scores otherwise than B: paired t-test, Wilcoxon, and a t-test over persons.

    Args:
        a: a method that has been evaluated on the data set.
        b: the one to compare it with.
        data: the data set.
        metric: a column of their CSV files; default dice, without labels ssim.
        split: on which both were evaluated.
        results: folder of results; default runs/results. Those that come with the book are in book/results.
    """
    from ..evaluation.compare import compare as test  # SciPy's statistics are slow to import

    found = test(a, b, data, metric, results, split)
    print(
        f"{data}, {found['metric']}, {found['n']} pairs: {METHODS[a].title} {found['a']:.4f}, {METHODS[b].title} {found['b']:.4f}"
    )
    print(
        f"difference {found['difference']:+.4f} +- {found['std']:.4f} over pairs; above 0 on {100 * found['higher']:.0f} % of them"
        + f"; {found['left_out']} pairs without a finite value left out" * bool(found["left_out"])
    )
    print(
        f"paired t-test p = {found['t_test']:.2g}, Wilcoxon p = {found['wilcoxon']:.2g} (pairs share persons: both too small)"
    )
    print(f"t-test over {found['subjects']} persons p = {found['subject_t_test']:.2g}")


@app.command(name="export-l2r")
def export_l2r(
    method: str, data: str, out: Path, weights: Path | None = None, profile: str = "", split: str = "val"
) -> None:
    """Write the submission folder of Learn2Reg's OASIS task of 2021 (half-resolution float16 displacements), and score it.

    Args:
        method: one of `tvf methods`.
        data: a 3D data set, e.g. oasis.
        out: folder; the files go to task_03 in it. A stopped export continues.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        profile: use the constants that this profile names for a method without a network (lddmm, convexadam);
            default the method's own.
        split: val, the challenge's 19 pairs, or test.
    """
    from ..evaluation import learn2reg  # no other command needs it

    files = learn2reg.export(
        method, data, out, weights=weights, constants=profiles.to_register(profile, method), split=split
    )
    print(f"{files[0].parent}: {len(files)} displacements, {files[0].name} first")
    if load(data, split).classes:
        found = learn2reg.scores(out, data, split)
        print(f"as written: Dice {found['dice']:.4f}, HD95 {found['hd95']:.4f}, SDlogJ {found['sdlogj']:.4f}")


def print_summary(summary: dict) -> None:
    values = [
        f"{m} {summary['summary'][m]['mean']:.4f}" for m in evaluation.METRICS if m in summary["summary"]
    ]
    print(
        f"{summary['dataset']} {summary['title']} ({summary['n_pairs']} pair{'s' * (summary['n_pairs'] > 1)}): "
        + ", ".join(values)
    )
