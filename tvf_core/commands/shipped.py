"""``tvf train-all``, ``evaluate-all`` and ``bench-all``: all weights and results that come with the book."""

from __future__ import annotations

import json
import shutil
import sys

from .. import checkpoints
from ..data import load
from ..evaluation import evaluate as evaluation
from ..evaluation.results import read_results
from ..methods import METHODS, available
from ..paths import RESULTS, ROOT
from ..reporting import tables
from ..training import profiles
from ..training import train as training
from .app import app
from .evaluation import print_summary
from .reporting import draw

DEMO_PROFILES = ("demo_faces", "demo_brains")  # of Table 1 and Table 2
# The methods of the paper's Table 2, and LDDMM.
ANATOMY_METHODS = ("identity", "convexadam", "lapirn", "lddmm", "tm", "tm-tvf-lddmm", "tm-tvf")
README_PAIR = 30


@app.command(name="train-all")
def train_all() -> None:
    """Train every shipped network, round it into book/weights, and evaluate it into book/results.

    The training takes place in runs/, where finished networks are kept. The networks for the anatomies are
    trained where these are prepared.
    """
    for _, profile, rows in _shipped():
        for method in [m for m in rows if METHODS[m].build]:
            weights = training.train(method, profile, resume="beside")["weights"]
            model = checkpoints.load(weights)
            target = checkpoints.shipped(method, profile.data)
            checkpoints.save(target, model.network.state_dict(), model.config, compact=True)
            shutil.copyfile(weights.with_suffix(".json"), target.with_suffix(".json"))
    evaluate_all()


@app.command(name="evaluate-all")
def evaluate_all() -> None:
    """Evaluate every shipped network on its test split into book/results; renew what the README shows.

    The anatomies are among the data where they are prepared. A result that this code has made with the
    shipped weights is kept.
    """
    blocks = {}
    for name, profile, rows in _shipped():
        before = read_results(RESULTS, profile.data)
        for method in rows:
            summary = evaluation.evaluate(
                method,
                profile.data,
                constants=profile.to_register(method),
                limit=evaluation.enough(method),
                out=RESULTS,
                replace=True,
            )
            kept = method in before and before[method]["card"] == summary["card"]
            print("kept:" if kept else "measured:", end=" ")
            print_summary(summary)
        if name in DEMO_PROFILES:
            table = f"table{1 + DEMO_PROFILES.index(name)}"
            blocks[table] = tables.comparison(
                table, read_results(RESULTS, profile.data), "book/results", beyond=False
            )
    tables.update_readme(blocks)
    draw("tm-tvf", "demo_faces", pair=README_PAIR, out=ROOT / "book" / "_static" / "faces.png")


@app.command(name="bench-all")
def bench_all() -> None:
    """Measure again, with its card's settings, every file in book/results/bench that older code has made."""
    from .. import bench  # no other command here needs it

    for file in sorted((RESULTS / "bench").glob("*.json")):
        card = json.loads(file.read_text("utf-8"))["card"]
        if card["code"] == bench.CODE:
            print(f"kept: {file.name}")
            continue
        print(
            f"measuring {file.name} again (the last time took {card['seconds'] / 60:.0f} minutes)", flush=True
        )
        try:
            bench.renew(file)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)


def _shipped():
    """Profile name, profile and methods of all that comes with the book and whose data are here."""
    for name in (*DEMO_PROFILES, "anatomies"):
        profile = profiles.read(name)
        try:
            dim = load(profile.data, "val").dim
        except FileNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield name, profile, available(dim) if name in DEMO_PROFILES else ANATOMY_METHODS
