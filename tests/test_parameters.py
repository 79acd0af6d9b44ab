"""Parameters of notebooks: unknown names and wrong types are errors, however they are given."""

import subprocess
import sys
from dataclasses import fields

import nbformat
import papermill
import pytest
import yaml

from tvf_core.paths import ROOT
from tvf_core.reporting import parameters
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_checks_its_parameters_right_after_them(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    [k] = [k for k, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    assert "parameters.check(globals())" in cells[k + 1].source.splitlines()[0]


@pytest.mark.parametrize("number", ["03", "04"])
def test_the_training_notebooks_take_every_key_of_a_profile(number):
    [path] = [path for path in NOTEBOOKS if path.name.startswith(number)]
    inferred = papermill.inspect_notebook(path)
    assert set(inferred) == {f.name for f in fields(Profile)} | {"data_root"}
    assert {name: p["inferred_type_name"] for name, p in inferred.items() if name != "data_root"} == {
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
