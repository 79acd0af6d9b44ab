"""The training notebooks run from a profile, as papermill users run them; the README shows stored results."""

import contextlib
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import standins
import yaml

from data_download import __main__ as data_download
from tvf_core import checkpoints, commands, integrate
from tvf_core.data import DATASETS, PairData, load
from tvf_core.evaluation.evaluate import load_model
from tvf_core.evaluation.results import read_results
from tvf_core.fields import identity_grid
from tvf_core.losses.objectives import LABEL_TERMS
from tvf_core.methods import METHODS, available
from tvf_core.paths import RESULTS, ROOT, WEIGHTS, sha256
from tvf_core.reporting import claims, figures, tables
from tvf_core.training import profiles
from tvf_core.training.sampling import PairSampler


@pytest.mark.parametrize("name", ["03_train_faces", "04_train_brains"])
def test_the_smoke_profile_runs_the_notebook(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TVF_RUNS", str(tmp_path / "runs"))
    profile = yaml.safe_load(
        (ROOT / "notebooks" / "profiles" / f"smoke_{name.rsplit('_')[-1]}.yaml").read_text()
    )
    chosen = [
        "identity",
        "vm-2",
        "lddmm",
        "tm-tvf",
    ]  # a displacement, pair by pair, a velocity; the strict comparison runs them all
    done = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        tmp_path / "out.ipynb",
        parameters=profile | {"methods": " ".join(chosen)},
        cwd=tmp_path,
        kernel_name="python3",
        progress_bar=False,
    )
    assert any("injected-parameters" in cell.metadata.tags for cell in done.cells)
    written = read_results(tmp_path / "runs" / "results", profile["data"])
    assert {m: s["n_pairs"] for m, s in written.items()} == dict.fromkeys(chosen, profile["test_pairs"])


@pytest.mark.parametrize("name", ["rafd", "oasis"])
def test_the_papers_experiment_runs_from_the_originals_to_the_table(name, tmp_path, monkeypatch):
    """On stand-ins of the same form, cut to a few steps of a tiny network; the profile decides all else."""
    if name == "rafd":
        source = ["--source", str(standins.rafd(tmp_path / "original"))]
    else:
        source = [
            "--source",
            str(standins.neurite(tmp_path / "original", [1, 2, 3, 438, 439, 440])),
            "--partial",
        ]
    monkeypatch.setattr(
        sys, "argv", ["data_download", name, "--root", str(tmp_path / "data"), "--no-progress", *source]
    )
    data_download.main()
    monkeypatch.setenv("TVF_RUNS", str(tmp_path / "runs"))
    profile = yaml.safe_load((ROOT / "notebooks" / "profiles" / f"paper_{name}.yaml").read_text())
    cut = {
        "size": "tiny",
        "steps": 2,
        "batch": 1,
        "test_pairs": 2,
        "validation_pairs": 2,
        "methods": "vm-2 tm-tvf-lddmm tm-tvf",
    }
    notebook = ROOT / "notebooks" / {"rafd": "03_train_faces.ipynb", "oasis": "04_train_brains.ipynb"}[name]
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", "--no-progress-bar"]
    command += ["-k", "python3", "-f", str(ROOT / "notebooks" / "profiles" / f"paper_{name}.yaml")]
    command += ["-y", yaml.safe_dump(cut), "-p", "data_root", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    settings = json.loads((tmp_path / "runs" / name / "tm-tvf-lddmm" / "weights.json").read_text())[
        "settings"
    ]
    assert (settings["steps"], settings["lr"], settings["flip"], settings["epoch_of"]) == (
        2,
        1e-4,
        profile.get("flip", 0.0),
        profile["epoch_of"],
    )
    assert (
        settings["network"]["integrator"] == "euler"
        and settings["constants"] == profile["constants"]["tm-tvf-lddmm"]
    )
    written_split = profile.get("split", "test")
    written = read_results(tmp_path / "runs" / "results", name, written_split)
    assert {m: s["n_pairs"] for m, s in written.items()} == dict.fromkeys(
        ("identity", "vm-2", "tm-tvf-lddmm", "tm-tvf"), 2
    )
    assert {s["split"] for s in written.values()} == {written_split}
    assert all(s["card"]["settings"]["origin"] for s in written.values())
    notebook, table, metric = {
        "rafd": ("05_table1", "table1", "ssim"),
        "oasis": ("06_table2", "table2", "dice"),
    }[name]
    done = papermill.execute_notebook(
        ROOT / "notebooks" / f"{notebook}.ipynb",
        tmp_path / "table.ipynb",
        parameters={"data": name, "split": written_split},
        cwd=tmp_path,
        kernel_name="python3",
        progress_bar=False,
    )
    shown = "".join(
        o["data"].get("text/markdown", "")
        for cell in done.cells
        for o in cell.get("outputs", ())
        if "data" in o
    )
    printed = tables.ledger()["tables"][table]["values"]["tm-tvf"][metric]
    part = " (2 pairs)" * (written["tm-tvf"]["of_pairs"] > 2)  # the stand-in of OASIS has no others
    assert f"| TM-TVF{part} | {tables.plus_minus(printed)} |" in shown
    last = claims.number(table, "tm-tvf", metric)[-1]
    assert last.data == name and last.measured == tables.plus_minus(written["tm-tvf"]["summary"][metric])
    assert last.verdict == claims.NOT_TESTABLE and "2 of the paper's" in last.why


@pytest.mark.parametrize("name", ["paper_rafd", "paper_oasis"])
def test_a_paper_profile_says_the_recipe_that_the_methods_have(name):
    profile = profiles.read(name)
    dim = {"paper_rafd": 2, "paper_oasis": 3}[name]
    assert (profile.epochs, profile.lr, profile.time_steps, profile.steps) == (500, 1e-4, 8, 0)
    assert {"tm", "tm-tvf", "tm-tvf-lddmm"} == set(profile.losses) and set(profile.methods.split()) <= set(
        available(dim)
    )
    for method, weights in profile.losses.items():
        assert weights == {
            t: w for t, w in METHODS[method].weights(dim).items() if dim == 3 or t not in LABEL_TERMS
        }  # faces have none
    assert profile.constants == {
        "tm-tvf-lddmm": {k: v.value for k, v in METHODS["tm-tvf-lddmm"].constants[dim].items()}
    }
    pairs = {2: list(itertools.permutations(range(8), 2)), 3: list(itertools.permutations(range(394), 2))}[
        dim
    ]
    data = PairData("dots", "train", np.zeros((394, 1, 1), np.uint8), pairs)
    sampler = PairSampler(data, profile.batch, epoch_of=profile.epoch_of)
    if dim == 3:
        assert sampler.steps(500) == 394_000  # what the profile says
    else:
        assert sampler.epoch * 53 == 2968 and -(-500 * 2968 // profile.batch) == 46_375


def execute(number, **given):
    """Run the cells of a notebook in this process, which is quicker than a kernel; give what they printed."""
    [path] = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    names, printed = {"In": [], "display": lambda *args, **kwargs: None}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]:
            sources = [cell.source]
            if "parameters" in cell.metadata.get("tags", []):
                sources.append("# Parameters\n" + "".join(f"{k} = {v!r}\n" for k, v in given.items()))
            for source in sources:
                names["In"].append(source)
                exec(compile(source, path.name, "exec"), names)
    return printed.getvalue()


@pytest.fixture
def quick(toy_data, monkeypatch):
    """Parameters of a run of seconds, on tiny data."""
    monkeypatch.setenv("TVF_DATA", "")  # what a notebook sets is undone
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setattr(figures.LiveCurve, "draw", lambda self: None)
    with plt.rc_context():  # a notebook sets the book's style
        yield {
            "size": "tiny",
            "image_size": 0,
            "time_steps": 2,
            "steps": 2,
            "batch": 1,
            "validations": 1,
            "live_steps": 1,
            "test_pairs": 1,
            "weights": "train",
            "constants": {"lddmm": {"steps": 2, "integrator": "heun", "scales": [8, 4, 2], "iterations": 2}},
        }
    plt.close("all")


def test_other_settings_of_a_notebook_are_another_run(quick, tmp_path):
    """A second seed, rate, batch and live training just run, and what was there stays."""
    quick |= {"data": "toy2d", "methods": "vm-2 tm"}
    execute("03", **quick)
    before = {f: f.read_bytes() for f in tmp_path.rglob("weights.safetensors")}
    assert {str(f.parent.relative_to(tmp_path)) for f in before} == {"live/toy2d", "toy2d/vm-2", "toy2d/tm"}
    told = execute("03", **quick | {"seed": 1, "lr": 0.01, "batch": 2, "live_steps": 2, "methods": "tm"})
    [trained] = [file for file in (tmp_path / "toy2d").glob("tm-*/weights.safetensors")]
    assert f"TM: {trained}" in told
    execute("03", **quick)  # and the first settings find their runs again
    after = {f: f.read_bytes() for f in tmp_path.rglob("weights.safetensors")}
    assert len(after) == len(before) + 2 and all(after[file] == before[file] for file in before)


@pytest.mark.parametrize(
    "number, data, methods, words",
    [
        ("03", "toy2d", "vm-2 tm", ["the live training shows TM\n", "the figure shows TM\n"]),
        ("03", "toy_plain", "identity", ["without the live training", "without the figure"]),
        ("03", "toy_plain", "lddmm", ["without the live training", "the figure shows LDDMM"]),
        (
            "04",
            "toy3d_plain",
            "vm-2",
            ["has no labels: this page shows SSIM", "the live training shows VM-2"],
        ),
        ("04", "toy3d_plain", "identity", ["no method registers here", "without the live training"]),
    ],
)
def test_a_notebook_runs_any_methods_on_any_data(number, data, methods, words, quick, monkeypatch, tmp_path):
    toy = DATASETS["toy3d"]
    monkeypatch.setitem(
        DATASETS,
        "toy3d_plain",
        lambda *args: replace(toy(*args), name="toy3d_plain", labels=None, label_names={}),
    )
    told = execute(number, **quick | {"data": data, "methods": methods, "split": "val"})
    assert all(word in told for word in words), told
    assert set(read_results(tmp_path / "results", data, "val")) == {"identity", *methods.split()}


@pytest.mark.parametrize(
    "number, given, words",
    [
        (
            "03",
            dict(data="toy2d", methods="vm-3"),
            "methods names 'vm-3', which is no method; known: identity",
        ),
        ("03", dict(data="toy2d", methods="convexadam"), "convexadam is not for 2D images"),
        ("03", dict(data="toy2d", methods="tm", weights="shipped"), "no weights of tm for toy2d"),
        ("03", dict(data="toy3d"), "this page is for 2D images.*04_train_brains is the page for 3D"),
        ("04", dict(data="toy2d"), "this page is for 3D images.*03_train_faces is the page for 2D"),
        ("04", dict(data="toy3d", data_root="nowhere"), "nowhere is no folder"),
        ("02", dict(real="rafd"), "real must be anatomies or"),
        ("05", dict(results="nowhere"), "results: nowhere is no folder"),
        ("05", dict(data="demo_brains"), "have no fsim"),
        ("05", dict(split="tset"), "split must be train or val or test, got 'tset'"),
        ("06", dict(data="demo_faces"), "have no dice"),
        ("07", dict(results="nowhere"), "results: nowhere is no folder"),
        ("08", dict(pair=392), "pair must be at most 391"),
        ("08", dict(data="toy2d", pair=0), "no weights of tm-tvf for toy2d"),
        ("09", dict(brains="toy3d"), "brains: the book has no weights of tm-tvf-lddmm, .* for toy3d"),
        ("10", dict(processor="none.json"), "processor: no file 'none.json'"),
        ("11", dict(faces="toy3d"), "faces: this page is for 2D images"),
    ],
)
def test_a_notebook_refuses_at_its_start_what_it_cannot_show(number, given, words, quick, tmp_path):
    known = quick if number in ("03", "04") else {}
    with pytest.raises(ValueError, match=words) as error:
        execute(number, **known | given)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.rglob("*.json"))  # nothing was done yet


@pytest.mark.parametrize("number, data, table", [("05", "demo_faces", "5.2"), ("06", "demo_brains", "6.3")])
@pytest.mark.parametrize("kept", [["vm-2", "tm"], ["identity"]])
def test_the_tables_show_whatever_results_there_are(number, data, table, kept, quick, tmp_path):
    (tmp_path / data).mkdir()
    for file in [RESULTS / data / f"{m}.{kind}" for m in kept for kind in ("json", "csv")]:
        shutil.copy(file, tmp_path / data)
    told = execute(number, data=data, results=str(tmp_path))
    assert f"section {table}" in told and ("shows TM\n" in told) == ("tm" in kept)


def test_a_mistyped_parameter_stops_the_notebook(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="steps must be int"):
        papermill.execute_notebook(
            ROOT / "notebooks" / "03_train_faces.ipynb",
            tmp_path / "out.ipynb",
            parameters={"steps": "many"},
            kernel_name="python3",
            progress_bar=False,
        )


@pytest.mark.parametrize("table, data", [("table1", "london"), ("table2", "demo_brains")])
def test_the_readme_shows_the_stored_results(table, data):
    block = re.search(
        rf"<!-- {table} -->\n(.*?)\n<!-- end {table} -->", (ROOT / "README.md").read_text(), re.S
    )[1]
    results = {name: r for name, r in read_results(RESULTS, data).items() if "-seed" not in name}
    assert block == tables.comparison(table, results, "book/results", beyond=False)
    links = re.findall('href="(.*?)"', block)
    assert len(links) == len(results) and all((ROOT / link).is_file() for link in links)


@pytest.mark.parametrize("data, metric, margin", [("demo_faces", "ssim", 0.02), ("demo_brains", "dice", 0.1)])
def test_the_stored_results_clearly_beat_no_registration(data, metric, margin):
    stored = {m: s["summary"] for m, s in read_results(RESULTS, data).items()}
    assert list(stored) == available({"ssim": 2, "dice": 3}[metric])
    for method in stored:
        assert (
            method == "identity"
            or stored[method][metric]["mean"] > stored["identity"][metric]["mean"] + margin
        )
    assert stored["identity"]["folding_percent"]["mean"] == 0


def test_results_on_real_faces_are_those_of_the_shipped_weights():
    """Every method and every further seed and variant, on both lists of pairs, from weights of one budget."""
    shipped = commands.shipped
    names = [*shipped.PROFILES["london"], *shipped.VARIANTS["london"]]
    names += [f"{m}-seed{seed}" for m, seeds in shipped.SEEDS.get("london", {}).items() for seed in seeds]
    stored = {data: read_results(RESULTS, data) for data in ("london", "london_people")}
    for data, pairs in {"london": 24, "london_people": 132}.items():
        assert sorted(stored[data]) == sorted(names)
        for name, result in stored[data].items():
            assert (result["n_pairs"], result["of_pairs"]) == (pairs, pairs)
            if weights := result["card"]["settings"]["weights"]:
                file = checkpoints.shipped(name, data)
                assert sha256(file).startswith(weights)
                card = json.loads(file.with_suffix(".json").read_text())
                assert card["pairs_seen"] == 20_000 and card["settings"]["more_pairs"] == "london_people"
                assert card["settings"]["origin"] == result["card"]["settings"]["origin"]
                assert len(card["curve"]) == 50
    for method, steps in shipped.LONGER["london"].items():
        card = json.loads((WEIGHTS / "london" / f"{method}-{steps}-steps.json").read_text())
        one = json.loads(checkpoints.shipped(method, "london").with_suffix(".json").read_text())
        assert card["settings"] == one["settings"] | {"steps": steps} and card["curve"][-1][0] == steps
    assert "20,000" in (ROOT / "README.md").read_text()


def test_shipped_weights_stay_small():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*.safetensors")) < 25e6


def test_what_chapter_2_says_about_real_anatomies_is_what_was_measured():
    stored = read_results(RESULTS, "anatomies")
    mean = {
        metric: {m: s["summary"][metric]["mean"] for m, s in stored.items()} for metric in ("dice", "ssim")
    }
    assert list(stored) == [m for m in METHODS if m in commands.shipped.PROFILES["anatomies"]] and {
        s["n_pairs"] for s in stored.values()
    } == {12}
    assert (
        max(mean["dice"], key=mean["dice"].get) == "tm-tvf"
        and max(mean["ssim"], key=mean["ssim"].get) == "lddmm"
    )
    for m, summary in stored.items():
        assert mean["dice"][m] >= mean["dice"]["identity"]
        settings = summary["card"]["settings"]
        if settings["weights"]:
            file = checkpoints.shipped(m, "anatomies")
            assert sha256(file).startswith(settings["weights"])
            card = json.loads(file.with_suffix(".json").read_text())
            assert card["pairs_seen"] == 1200 and card["settings"]["origin"] == settings["origin"]


@pytest.mark.parametrize("data", ["demo_faces", "demo_brains"])
def test_the_flow_of_the_stored_results_inverts_and_the_released_rule_does_not(data):
    stored = {m: s["summary"] for m, s in read_results(RESULTS, data).items()}
    assert stored["tm-tvf-lddmm"]["inverse_error"]["mean"] < 0.02
    # Read between voxels, the inverse map is least exact where it squeezes most: a closing mouth.
    assert (
        stored["tm-tvf-lddmm"]["inverse_error_p999"]["mean"] < {"demo_faces": 0.25, "demo_brains": 0.2}[data]
    )
    assert stored["tm-tvf-released"]["inverse_error"]["mean"] > 5 * stored["tm-tvf"]["inverse_error"]["mean"]


@pytest.mark.parametrize("data", ["demo_faces", "demo_brains"])
def test_points_return_along_the_flow_of_the_shipped_weights(data):
    pairs = load(data, "test")
    model = load_model("tm-tvf-lddmm", pairs)
    grid = identity_grid(pairs.shape)
    for k in pairs.spread(4):
        item = pairs.batch([k])
        result = model.register(item["moving"], item["fixed"])
        there = grid + result.displacement
        error = (
            (integrate.transport(result.velocity, there, t0=1, t1=0, shape=pairs.shape) - grid)
            .norm(dim=1)
            .numpy()
        )
        assert result.displacement.abs().max() > 2
        assert error.mean() < 0.02 and np.quantile(error, 0.999) < 0.2
