"""Parameters of notebooks: unknown names and wrong types are errors, however they are given."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields

import nbformat
import papermill
import pytest
import yaml

from tvf_core.data import load
from tvf_core.methods import available
from tvf_core.paths import RESULTS, ROOT
from tvf_core.reporting import parameters
from tvf_core.training import profiles
from tvf_core.training.profiles import Profile

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DECLARED = {"steps": int, "lr": float, "full": bool, "name": str, "losses": dict}


def namespace(cell="", **values):
    return (
        {"__annotations__": DECLARED, "In": ["", "import os", cell]}
        | dict(steps=3, lr=0.1, full=True, name="x", losses={})
        | values
    )


def test_right_parameters_are_returned():
    assert parameters.check(namespace("# Parameters\nsteps = 4\n", steps=4)) == dict(
        steps=4, lr=0.1, full=True, name="x", losses={}
    )
    assert parameters.check(namespace(lr=1))["lr"] == 1
    assert parameters.check(namespace("# Parameters\nPAPERMILL_OUTPUT_PATH = 'out.ipynb'\n"))["steps"] == 3
    assert parameters.check({}) == {}


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(cell="# Parameters\nstepz = 4\n"), ["'stepz'", "steps, lr, full"]),
        (dict(steps="4"), ["steps must be int", "'4'"]),
        (dict(steps=True), ["steps must be int", "True"]),
        (dict(lr="1e-4"), ["lr must be float", "1.0e-4"]),
        (dict(full="false"), ["full must be bool", "'false'"]),
        (dict(name=3), ["name must be str"]),
        (dict(losses="tm"), ["losses must be dict"]),
    ],
)
def test_wrong_parameters_are_named(values, words):
    with pytest.raises(ValueError) as error:
        parameters.check(namespace(**values))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "limits, values, words",
    [
        (dict(at_least={"steps": 1}), dict(steps=0), "parameter steps must be at least 1, got 0"),
        (dict(at_least={"lr": 0.1}), dict(lr=float("nan")), "parameter lr must be at least 0.1, got nan"),
        (dict(at_least={"lr": 0.1}), dict(lr=float("inf")), "parameter lr must be at least 0.1, got inf"),
        (dict(at_most={"steps": 3}), dict(steps=4), "parameter steps must be at most 3, got 4"),
        (dict(choices={"name": ("x", "y")}), dict(name="z"), "parameter name must be x or y, got 'z'"),
    ],
)
def test_values_that_are_not_allowed_are_named(limits, values, words):
    with pytest.raises(ValueError) as error:
        parameters.check(namespace(**values), **limits)
    assert str(error.value) == words
    assert parameters.check(namespace(lr=0.1), **limits)["steps"] == 3


def test_a_page_runs_the_methods_that_are_named(toy_data):
    profile, data = Profile("toy2d", steps=1, weights="train"), load("toy2d", "test")
    assert parameters.methods(profile, data) == available(2)
    assert parameters.methods(profile.change(methods="tm vm-2 tm"), data) == ["identity", "vm-2", "tm"]
    assert parameters.methods(profile.change(methods="identity"), data) == ["identity"]


def test_without_weights_of_the_book_networks_are_left_out_with_a_line(toy_data, capsys):
    profile, data = Profile("toy2d", steps=1), load("toy2d", "test")
    assert parameters.methods(profile, data) == ["identity", "lddmm"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "no weights of them for toy2d: vm-2, vm-diff" in said
    assert parameters.methods(profile.change(methods="lddmm"), data) == ["identity", "lddmm"]
    faces = load("demo_faces", "test")
    assert parameters.methods(profile.change(data="demo_faces"), faces) == available(2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(methods="convexadam"), "convexadam is not for 2D images; known for them: identity, vm-2"),
        (
            dict(methods="lddmm tm"),
            "no weights of tm for toy_plain; train them.*choose among: identity, lddmm",
        ),
        (dict(weights="train", losses={"tm": {"dice": 1.0}}), "toy_plain has no labels for dice"),
        (dict(weights="train", recompute=True), "recompute: vm-2 has no part"),
    ],
)
def test_methods_that_cannot_run_are_refused(changes, words, toy_data):
    with pytest.raises(ValueError, match=words) as error:
        parameters.methods(Profile("toy_plain", steps=1).change(**changes), load("toy_plain", "test"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("methods", ["vm-3", "vm-2,tm", "TM", "vm-2 tmtvf"])
def test_unknown_methods_are_refused_in_a_line_that_lists_the_known(methods):
    with pytest.raises(
        ValueError, match="methods names .*, which is no method; known: identity, vm-2"
    ) as error:
        profiles.check({"data": "demo_faces", "steps": 1, "methods": methods}, "notebook")
    assert "\n" not in str(error.value)


def test_a_seed_that_no_generator_takes_is_refused():
    with pytest.raises(ValueError, match="seed must be below 2\\*\\*63"):
        profiles.check({"data": "demo_faces", "steps": 1, "seed": 2**63})


def test_another_method_stands_in_and_a_line_says_so(capsys):
    assert parameters.stand_in("tm-tvf", ["tm", "tm-tvf", "vm-tvf"], "the figure") == "tm-tvf"
    assert capsys.readouterr().out == ""
    assert parameters.stand_in("tm-tvf", ["vm-2", "wide"], "the figure") == "wide"
    assert capsys.readouterr().out == "TM-TVF is not among the methods: the figure shows wide\n"
    assert parameters.stand_in("tm-tvf", [], "the figure") == ""
    assert "without the figure" in capsys.readouterr().out


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: parameters.use_data_root("nowhere"), "data_root: .*nowhere is no folder"),
        (lambda: parameters.check_images(load("toy2d", "test"), 3, chapter="03"), "3D .* 2D; 03 is the page"),
        (lambda: parameters.check_images(load("toy2d", "test"), 2, least=30), "at least 30 .* have 32 x 29"),
        (lambda: parameters.check_shipped(["tm"], load("toy2d", "test"), "faces"), "faces: .*tm for toy2d"),
        (lambda: parameters.results_folder("nowhere"), "results: nowhere is no folder"),
        (lambda: parameters.results("toy2d", "test", "", ()), "no results on toy2d .*tvf evaluate --method"),
        (lambda: parameters.results("demo_brains", "test", "", ("fsim",)), "demo_brains have no fsim"),
        (lambda: parameters.measured("gpu.json", "gpu"), "gpu: no file 'gpu.json' .*: cpu.json"),
        (lambda: parameters.measured("../demo_faces/tm.json", "gpu"), "is not what tvf bench --out writes"),
        (
            lambda: parameters.measured("loading.json", "gpu", "lncc"),
            "loading.json has no measurement of lncc",
        ),
    ],
)
def test_what_a_parameter_names_must_be_there(call, words, toy_data):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_split_without_pairs_is_refused(toy_data):
    data = load("toy2d", "test")
    data.pairs.clear()
    with pytest.raises(ValueError, match="the split 'test' of toy2d has no pairs"):
        parameters.check_images(data, 2)


def test_results_are_found_where_the_parameter_says(tmp_path):
    (tmp_path / "demo_faces").mkdir()
    for kind in ("json", "csv"):
        shutil.copy(RESULTS / "demo_faces" / f"vm-2.{kind}", tmp_path / "demo_faces")
    folder, found = parameters.results("demo_faces", "test", str(tmp_path), ("ssim",))
    assert folder == tmp_path and list(found) == ["vm-2"]
    folder, found = parameters.results("demo_faces", "test", "", ("ssim",))
    assert folder == RESULTS and "tm-tvf" in found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_checks_its_parameters_right_after_them(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    [k] = [k for k, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    assert re.match(r"(values = )?parameters\.check\(\s*globals\(\)", cells[k + 1].source)


@pytest.mark.parametrize("number", ["03", "04"])
def test_the_training_notebooks_take_every_key_of_a_profile(number):
    [path] = [path for path in NOTEBOOKS if path.name.startswith(number)]
    inferred = papermill.inspect_notebook(path)
    of_page = {"data_root"} | ({"real"} if number == "03" else set())
    assert set(inferred) == {f.name for f in fields(Profile)} | of_page
    assert {name: p["inferred_type_name"] for name, p in inferred.items() if name not in of_page} == {
        f.name: f.type for f in fields(Profile)
    }
    assert all(p["help"] for p in inferred.values())
    profile = {"03": "demo_faces", "04": "demo_brains"}[number]
    demo = yaml.safe_load((ROOT / "notebooks" / "profiles" / f"{profile}.yaml").read_text())
    assert (
        demo.pop("constants") and inferred["constants"]["default"] == f'profiles.read("{profile}").constants'
    )
    for name, value in demo.items():
        if name != "test_pairs":  # the page evaluates fewer pairs
            assert yaml.safe_load(inferred[name]["default"]) == value


def test_help_of_a_notebook_lists_its_parameters():
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "--help-notebook",
            str(ROOT / "notebooks" / "04_train_brains.ipynb"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "accumulate: int (default 1)" in shown and "parts in which a batch goes through" in shown


@pytest.mark.parametrize(
    "given, words",
    [
        ({"batch_size": 2}, "unknown parameter 'batch_size'; known: data"),
        ({"size": 5}, "parameter size must be int"),
    ],
)
def test_papermill_ends_with_the_error(given, words, tmp_path):
    name = "05_table1" if "batch_size" in given else "01_lddmm_background"
    given = given if "batch_size" in given else {"size": "5"}
    with pytest.raises(papermill.PapermillExecutionError, match=words):
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            tmp_path / "out.ipynb",
            parameters=given,
            kernel_name="python3",
            progress_bar=False,
        )
