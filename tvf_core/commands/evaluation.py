"""``tvf evaluate``, ``tvf compare`` and ``tvf export-l2r``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from ..data import load
from ..evaluation import evaluate as evaluation
from ..evaluation.results import read_result, title, unscored
from ..evaluation.scores import METRICS
from ..training import profiles
from .app import app


@app.command
def evaluate(
    method: str,
    data: str,
    name: str = "",
    weights: Path | None = None,
    profile: str = "",
    split: str = "test",
    limit: int = 0,
    image_size: int = 0,
    out: Path | None = None,
    replace: bool = False,
) -> None:
    """Score a method on a data set and write a row per pair (CSV) and a summary (JSON).

    An evaluation that was stopped continues with the same command. The files are called after the result's
    name, its split and, where only some pairs are evaluated, their number: tm.json, tm.val.json,
    tm.2-pairs.json.

    Args:
        method: one of `tvf methods`.
        data: a data set: a name (python -m data_download list), or the folder of your own.
        name: name of the result, default the method's. Under names of their own, several trainings of one
            method can be kept and compared. It may have letters, digits, dashes, dots and underscores.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        profile: use the constants that this profile names for a method without a network (lddmm, convexadam);
            default the method's own.
        split: train, val or test.
        limit: evaluate only so many pairs, evenly spread over the split; 0 is all.
        image_size: edge of the images, as in training; 0 is the data set's own size.
        out: results folder; default runs/results.
        replace: replace a result of this name that was made with other weights, image size or constants.
    """
    print_summary(
        evaluation.evaluate(
            method,
            data,
            name=name,
            weights=weights,
            constants=profiles.to_register(profile, method),
            split=split,
            limit=limit,
            image_size=image_size,
            out=out,
            replace=replace,
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
    """Test whether result A differs from result B: paired t-test, Wilcoxon, and a t-test over persons.

    Args:
        a: a result on the data set: a method's name, or the name that `tvf evaluate --name` gave. Where there
            are several of a name, the one on the most pairs is taken; tm.2-pairs is the one on two pairs.
        b: the result to compare it with, of another method or of the same.
        data: the data set: a name, or the folder of your own.
        metric: a column of their CSV files; default dice, without labels ssim.
        split: on which both were evaluated.
        results: folder of results; default runs/results. Those that come with the book are in book/results.
    """
    from ..evaluation.compare import compare as test  # SciPy's statistics are slow to import

    found = test(a, b, data, metric, results, split)
    one, two = (title(read_result(name, data, results, split)) for name in (a, b))
    about = f"{found['data']}, {found['metric']}, {found['n']} pairs"
    print(f"{about}: {one} {found['a']:.4f}, {two} {found['b']:.4f}")
    print(
        f"difference {found['difference']:+.4f} +- {found['std']:.4f} over pairs; "
        f"above 0 on {100 * found['higher']:.0f} % of them"
        + f"; {found['left_out']} of {found['n'] + found['left_out']} pairs without a finite value left out"
        * bool(found["left_out"])
    )
    print(
        f"paired t-test p = {found['t_test']:.2g}, Wilcoxon p = {found['wilcoxon']:.2g} "
        "(pairs share persons: both too small)"
    )
    if found["subjects"]:
        print(f"t-test over {found['subjects']} persons p = {found['subject_t_test']:.2g}")
    else:
        print("no test over persons: these rows do not tell them; tvf evaluate makes new ones")


@app.command(name="export-l2r")
def export_l2r(
    method: str, data: str, out: Path, weights: Path | None = None, profile: str = "", split: str = "val"
) -> None:
    """Write the submission folder of Learn2Reg's OASIS task of 2021 (half-resolution float16), and score it.

    Args:
        method: one of `tvf methods`.
        data: a 3D data set, e.g. oasis, or the folder of your own.
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
    if load(data, split).label_numbers:
        found = learn2reg.scores(out, data, split)
        values = [
            f"{title} {found['summary'][name]['mean']:.4f}{unscored(found, name)}"
            for name, title in {"dice": "Dice", "hd95": "HD95", "sdlogj": "SDlogJ"}.items()
        ]
        print(f"as written: {', '.join(values)}")


def print_summary(summary: dict) -> None:
    """Print what a result is of, the mean of each metric, and which pairs the means leave out."""
    values = [
        f"{m} {summary['summary'][m]['mean']:.4f}{unscored(summary, m)}"
        for m in METRICS
        if m in summary["summary"]
    ]
    n, total = summary["n_pairs"], summary["of_pairs"]
    pairs = f"{n} of {total} pairs, evenly spread" if n < total else f"{n} pair{'s' * (n > 1)}"
    called = f", {summary['name']}" * (summary["name"] != summary["method"])
    print(f"{summary['dataset']} {summary['title']}{called} ({pairs}): " + ", ".join(values))
    if lost := dict.fromkeys(pair for names in summary.get("not_scored", {}).values() for pair in names):
        more = f" and {len(lost) - 4} more" * (len(lost) > 4)
        print(f"pairs that at least one metric could not score: {', '.join([*lost][:4])}{more}")
