"""The parts around the library agree with each other: requirements, book, notebooks, profiles, Makefile."""

import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from test_rooms import FLOORS

from data_download.__main__ import parser as data_download_parser
from tvf_core.commands import app

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted((ROOT / "notebooks" / "profiles").glob("*.y*ml"))
PARAMETER = re.compile(r"(?P<name>\w+): (?P<type>[\w\[\], |]+) = (?P<value>[^#=]+?)  # (?P<help>\S.*)")
EXEMPT_COMMENT = re.compile(r"^\s*#\s*NBVAL_(IGNORE_OUTPUT|SKIP)\b", re.MULTILINE)
EXEMPT_TAGS = {"nbval-ignore-output", "nbval-skip"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


def toc_files():
    toc = load("_toc.yml")
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def parameter_lines(path):
    """The lines of the one cell tagged ``parameters``."""
    cells = [c for c in code_cells(path) if "parameters" in tags(c)]
    assert len(cells) == 1, f"{path.name} has {len(cells)} cells tagged 'parameters'"
    return [line for line in cells[0].source.splitlines() if line.strip() and not line.startswith("#")]


def parameters(path):
    """Name -> name of the type."""
    found = [PARAMETER.fullmatch(line) for line in parameter_lines(path)]
    return {match["name"]: match["type"] for match in found if match}


def test_conda_environment_has_the_requirements_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    [pip] = [entry["pip"] for entry in load("environment.yml")["dependencies"] if isinstance(entry, dict)]
    assert pip == [*project["dependencies"], *extras["book"], *extras["test"]]
    assert "python" + project["requires-python"] in load("environment.yml")["dependencies"]


def test_public_address_stands_in_one_place():
    spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    address = load("_config.yml")["repository"]["url"].removeprefix("https://github.com/").encode()
    assert [str(f) for f in build.project_files() if address in (ROOT / f).read_bytes()] == ["_config.yml"]


def test_every_page_exists_and_every_notebook_is_a_page():
    files = toc_files()
    missing = [f for f in files if not any((ROOT / f"{f}{suffix}").is_file() for suffix in (".md", ".ipynb"))]
    assert not missing
    assert {f"notebooks/{path.stem}" for path in NOTEBOOKS} == {
        f for f in files if f.startswith("notebooks/")
    }


def test_mathjax_comes_with_the_book():
    config = load("_config.yml")["sphinx"]["config"]
    assert (ROOT / config["html_static_path"][0] / config["mathjax_path"]).is_file()


def test_help_lists_every_target():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\w+) ", shown, re.MULTILINE) == targets


def spoken_of(name):
    """What stands in backticks, in blocks of code and behind links of a page."""
    text = (ROOT / name).read_text()
    code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL)
    return code + re.findall(r"\]\(([^):#]+)\)", text)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_paths_modules_and_commands_on_the_pages_for_people_exist(name):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"_build", "runs", "data", ".venv"}
    commands = set(app._subcommands)
    data_sets = set(data_download_parser()._subparsers._group_actions[0].choices)
    wrong, seen = [], 0
    for code in spoken_of(name):
        for path in re.findall(r"(?<![\w/:.])[\w.-]+/[\w./-]*|\b[\w-]+\.(?:md|toml|cff)\b", code):
            if path.split("/")[0] in folders or path.endswith((".py", ".md", ".yml", ".toml", ".cff")):
                seen += 1
                wrong += [path] * (not (ROOT / path).exists())
        for module in re.findall(r"\b(?:tvf_core|data_download)(?:\.\w+)+", code):
            seen += 1
            try:
                pkgutil.resolve_name(module)
            except (ImportError, AttributeError):
                wrong.append(module)
        for pattern, known in (
            (r"\bmake ([a-z]+)", targets),
            (r"(?<![\w-])tvf ([a-z][a-z0-9-]+)", commands),
            (r"-m tvf_core ([a-z][a-z0-9-]+)", commands),
            (r"-m data_download ([a-z]+)", data_sets),
        ):
            found = re.findall(pattern, code)
            seen += len(found)
            wrong += [word for word in found if word not in known]
    assert not wrong
    assert seen > 20  # the test sees them


def test_the_map_of_the_house_has_the_floors_that_are_checked():
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    told = tuple(tuple(re.findall(r"`(\w+)`", rooms)) for _, rooms in rows)
    assert told == FLOORS and [int(number) for number, _ in rows] == list(range(1, 1 + len(FLOORS)))


def test_ruff_checks_modules_and_notebooks_before_anything_else_runs():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(
        r"^lint: env.*\n\t\S+ruff format --check \.\n\t\S+ruff check \.\n", makefile, re.MULTILINE
    )
    assert re.findall(r"^ *make (\w+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[0] == "lint"
    steps = load(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make lint", "make data", "make test"]
    shown = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-files"], cwd=ROOT, capture_output=True
    )
    files = {
        Path(line).resolve().relative_to(ROOT).as_posix()
        for line in shown.stdout.decode().split("\n")
        if line
    }
    assert {f"notebooks/{path.name}" for path in NOTEBOOKS} <= files
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("*.py")} <= files


@each_notebook
def test_every_code_cell_was_executed(path):
    # nbval compares nothing where a cell has neither an execution count nor outputs.
    assert not [c.source for c in code_cells(path) if c.execution_count is None]


@each_notebook
def test_at_most_a_third_of_the_cells_escapes_the_comparison(path):
    cells = code_cells(path)
    exempt = [c for c in cells if EXEMPT_COMMENT.search(c.source) or tags(c) & EXEMPT_TAGS]
    assert 3 * len(exempt) <= len(cells)


@each_notebook
def test_every_parameter_has_type_default_and_help(path):
    lines = parameter_lines(path)
    assert lines
    assert not [line for line in lines if not PARAMETER.fullmatch(line)]


@each_notebook
def test_every_image_has_an_alternative_text(path):
    for cell in code_cells(path):
        if any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert alt.strip(), f"no mystnb.image.alt for the image of:\n{cell.source}"


def test_references_to_sections_lead_to_sections_that_are_there():
    texts = {
        path.stem: "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        for path in NOTEBOOKS
    }
    headings = dict(re.findall(r"^## (\d+\.\d+) (.+)$", "\n".join(texts.values()), re.MULTILINE))
    texts |= {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
    named = re.compile(r"(?:[Ss]ection|says in) (\d+\.\d+)")
    asked = {(name, number) for name, text in texts.items() for number in named.findall(text)}
    assert asked >= {("06_table2", "6.4"), ("09_paper_versus_code", "11.4")}
    assert not [place for place in asked if place[1] not in headings]
    # Chapter 9 quotes folding at 4 times the velocity; its section on strong deformations measures it.
    quoted = re.findall(r"[^\n]*times 4: [^\n]*", texts["09_paper_versus_code"])
    assert [named.findall(line) for line in quoted] == [["9.2"]]
    assert headings["9.2"] == "When the deformation is strong"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("number", ["03", "04"])
def test_profiles_set_known_parameters_to_values_of_their_type(profile, number):
    [notebook] = [path for path in NOTEBOOKS if path.name.startswith(number)]
    known = parameters(notebook)
    values = yaml.safe_load(profile.read_text()) or {}
    assert not set(values) - set(known)
    # YAML reads 1e-4 as text and papermill would pass it on as such; 1.0e-4 is a number.
    accepted = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}
    wrong = {
        name: value
        for name, value in values.items()
        if known[name] in accepted
        and (
            not isinstance(value, accepted[known[name]]) or isinstance(value, bool) != (known[name] == "bool")
        )
    }
    assert not wrong


def test_a_new_method_takes_under_30_lines():
    """The page that adds one is run by nbval; here only its length."""
    path = ROOT / "notebooks" / "11_methods.ipynb"
    cells = [c for c in code_cells(path) if "add-a-method" in tags(c)]
    assert len(cells) == 1
    assert len([line for line in cells[0].source.splitlines() if line.strip()]) < 30
