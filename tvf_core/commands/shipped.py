"""``tvf train-all`` and ``tvf evaluate-all``: everything whose weights and results come with the book."""

from __future__ import annotations

import shutil
import sys

from .. import checkpoints
from ..data import load
from ..evaluation import evaluate as evaluation
from ..evaluation.results import read_results
from ..methods import METHODS, available
from ..paths import RESULTS, ROOT, runs
from ..reporting import tables
from ..training import profiles
from ..training import train as training
from .app import app
from .evaluation import print_summary
from .reporting import draw

DEMO_PROFILES = ("demo_faces", "demo_brains")  # of Table 1 and Table 2
ANATOMY_METHODS = (
    "identity",
    "convexadam",
    "lapirn",
    "lddmm",
    "tm",
    "tm-tvf-lddmm",
    "tm-tvf",
)  # the paper's Table 2, and LDDMM
README_PAIR = 30


@app.command(name="train-all")
def train_all() -> None:
    """Train every shipped network in runs/ (finished ones are kept), round it into book/weights; evaluate.

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
    """Evaluate every shipped network on its test split into book/results; renew what the README shows.

    On the anatomies as well, where these are prepared.
    """
    blocks = {}
    for name, profile, rows in _shipped():
        for method in rows:
            print_summary(
                evaluation.evaluate(
                    method,
                    profile.data,
                    constants=profile.to_register(method),
                    limit=evaluation.enough(method),
                    out=RESULTS,
                )
            )
        if name in DEMO_PROFILES:
            table = f"table{1 + DEMO_PROFILES.index(name)}"
            blocks[table] = tables.comparison(
                table, read_results(RESULTS, profile.data), "book/results", beyond=False
            )
    tables.update_readme(blocks)
    draw("tm-tvf", "demo_faces", pair=README_PAIR, out=ROOT / "book" / "_static" / "faces.png")


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
