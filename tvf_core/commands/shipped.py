"""``tvf train-all``, ``evaluate-all`` and ``bench-all``: all weights and results that come with the book."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from .. import checkpoints
from ..data import load
from ..evaluation import evaluate as evaluation
from ..evaluation.results import read_json, read_results
from ..methods import METHODS, available
from ..paths import RESULTS, ROOT, runs, write_json
from ..reporting import tables
from ..training import profiles
from ..training import train as training
from ..training.profiles import Profile
from .app import app
from .evaluation import print_summary
from .reporting import draw

# Profile -> methods that are trained and measured by it; None is all that work in its dimension.
PROFILES = {
    # The methods of the paper's Table 1, LapIRN, LDDMM and VM-TVF.
    "london": (
        *("identity", "vm-2", "vm-diff", "cyclemorph", "lapirn", "lddmm"),
        *("tm", "tm-tvf-lddmm", "tm-tvf", "vm-tvf"),
    ),
    "demo_faces": None,
    "demo_brains": None,
    # The methods of the paper's Table 2, and LDDMM.
    "anatomies": ("identity", "convexadam", "lapirn", "lddmm", "tm", "tm-tvf-lddmm", "tm-tvf"),
}
# Further trainings: profile -> method -> seeds. Their results are called tm-seed1 and so on.
SEEDS = {"london": {"tm": (1, 2), "tm-tvf": (1, 2)}}
# Trainings that show what more steps would bring: profile -> method -> steps. Only their curves are kept.
LONGER = {"london": {"tm": 10_000}}
# Further results of methods without a network: profile -> result -> method, and the profile of its constants.
VARIANTS = {"london": {"lddmm-lncc": ("lddmm", "london_lncc"), "lddmm-smooth": ("lddmm", "london_smooth")}}
SAMPLED = ("demo_faces",)  # data with more pairs than methods that take seconds for each are scored on
README_TABLES = {"table1": "london", "table2": "demo_brains"}
README_PAIR = 16


@app.command(name="train-all")
def train_all() -> None:
    """Train every shipped network, round it into book/weights, and evaluate it into book/results.

    The training takes place in runs/, where finished networks are kept. Networks for data that a command
    prepares (real faces, anatomies) are trained where these are prepared.
    """
    for profile, name, method in _shipped():
        if METHODS[method].build:
            ship(training.train(method, profile, out=runs() / profile.data / name, resume="beside"), name)
    for profile, name, method in _longer():
        ship_card(training.train(method, profile, out=runs() / profile.data / name, resume="beside"), name)
    evaluate_all()


def ship(run: dict, name: str) -> None:
    """Round the weights of a finished training into book/weights, with its card and validation curve.

    Parameters
    ----------
    run : what :func:`tvf_core.training.train.train` has returned.
    name : of the result that the weights are for.
    """
    model = checkpoints.load(run["weights"])
    target = checkpoints.shipped(name, run["settings"]["data"])
    checkpoints.save(target, model.network.state_dict(), model.config, compact=True)
    ship_card(run, name)


def ship_card(run: dict, name: str) -> None:
    """Write the card and the validation curve of a finished training into book/weights; see :func:`ship`."""
    # Steps done, and the score of the weights then.
    curve = [[row["step"] + 1, round(row["validation"], 5)] for row in run["history"] if "validation" in row]
    target = checkpoints.shipped(name, run["settings"]["data"]).with_suffix(".json")
    write_json(target, read_json(run["weights"].with_suffix(".json")) | {"curve": curve})


@app.command(name="evaluate-all")
def evaluate_all() -> None:
    """Evaluate every shipped network on its test split into book/results; renew what the README shows.

    Data that a command prepares (real faces, anatomies) are among the data where they are prepared. A result
    that this code has made with the shipped weights is kept.
    """
    for profile, name, method in _shipped():
        for data in filter(None, (profile.data, profile.more_pairs)):
            before = read_results(RESULTS, data)
            summary = evaluation.evaluate(
                method,
                data,
                name=name,
                weights=checkpoints.shipped(name, data) if METHODS[method].build else None,
                constants=profile.to_register(method),
                limit=evaluation.enough(method) if data in SAMPLED else 0,
                out=RESULTS,
                replace=True,
            )
            kept = name in before and before[name]["card"] == summary["card"]
            print("kept:" if kept else "measured:", end=" ")
            print_summary(summary)
    shown = {}
    for table, data in README_TABLES.items():
        results = {name: r for name, r in read_results(RESULTS, data).items() if "-seed" not in name}
        shown[table] = tables.comparison(table, results, "book/results", beyond=False)
    tables.update_readme(shown)
    try:
        draw("tm-tvf", "london", pair=README_PAIR, out=ROOT / "book" / "_static" / "faces.png")
    except FileNotFoundError as error:
        print(f"the picture of the README stays as it is: {error}", file=sys.stderr)


@app.command(name="bench-all")
def bench_all() -> None:
    """Measure again, with its card's settings, every file in book/results/bench that older code has made.

    So is the trial of the affine registration (book/results/scans/affine.json), if its data are here.
    """
    from .. import bench  # no other command here needs these
    from ..scans import affine_trial

    if json.loads(affine_trial.OUT.read_text("utf-8"))["card"]["code"] == affine_trial.CODE:
        print(f"kept: {affine_trial.OUT.name}")
    else:
        try:
            affine_trial.main([])
        except FileNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)

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


def _longer() -> Iterator[tuple[Profile, str, str]]:
    """Profile, name and method of the trainings whose curves alone are kept, where their data are here."""
    for name in dict.fromkeys(profile.data for profile, *_ in _shipped()):
        for method, steps in LONGER.get(name, {}).items():
            yield profiles.read(name).change(steps=steps), f"{method}-{steps}-steps", method


def _shipped() -> Iterator[tuple[Profile, str, str]]:
    """Profile, name of the result, and method, of all that comes with the book and whose data are here."""
    for name, methods in PROFILES.items():
        profile = profiles.read(name)
        try:
            dim = load(profile.data, "val").dim
        except FileNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for method in methods or available(dim):
            yield profile, method, method
            for seed in SEEDS.get(name, {}).get(method, ()):
                yield profile.change(seed=seed), f"{method}-seed{seed}", method
        for result, (method, constants) in VARIANTS.get(name, {}).items():
            yield profiles.read(constants), result, method
