"""Google Colab without being there: its packages against our requirements, its cells against stand-ins."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tvf_core
from tvf_core import card
from tvf_core.paths import ROOT
from tvf_core.reporting import colab

COLAB = json.loads((ROOT / "tests" / "colab.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def name_of(requirement):
    return Requirement(requirement).name.lower()


def code_cells(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_colabs_own_packages_are_within_our_ranges():
    assert SpecifierSet(PROJECT["requires-python"]).contains(COLAB["python"] + ".0")
    for requirement in map(Requirement, PROJECT["dependencies"]):
        name = requirement.name.lower()
        assert (name in COLAB["packages"]) != (name in COLAB["absent"]), f"{name}: is it on Colab?"
        if name in COLAB["packages"]:
            assert requirement.specifier.contains(COLAB["packages"][name]), requirement
    assert {name.lower() for name in colab.KEPT} <= COLAB["packages"].keys()


def test_only_what_colab_lacks_is_installed_and_what_it_has_is_pinned(monkeypatch):
    monkeypatch.setattr(colab, "_version", lambda name: COLAB["packages"].get(name.lower()))
    calls = []

    def pip(command, **kwargs):
        calls.append(command)
        constraints = open(command[command.index("--constraint") + 1]).read().split()
        assert constraints == [
            f"{name}=={COLAB['packages'][name]}" for name in ("torch", "numpy", "matplotlib")
        ]
        return subprocess.CompletedProcess(command, len(calls) - 1, "", "ERROR: Cannot install")

    monkeypatch.setattr(subprocess, "run", pip)
    wanted = colab.install_missing()
    assert [name_of(r) for r in wanted] == ["nilearn", "tyro", "convexadam", "surface-distance"] and calls[0][
        -4:
    ] == wanted
    with pytest.raises(RuntimeError, match="nilearn.*Cannot install"):
        colab.install_missing()


def test_where_all_is_there_nothing_is_installed(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("pip was called"))
    assert colab.install_missing() == []


def test_notebooks_import_nothing_that_neither_colab_nor_our_requirements_have():
    ours = {name_of(r).replace("-", "_") for r in PROJECT["dependencies"]} | {
        "skimage",
        "PIL",
        "yaml",
        "IPython",
        "tvf_core",
        "data_download",
        "google",
    }
    for path in NOTEBOOKS:
        for node in ast.walk(ast.parse("\n".join(code_cells(path)))):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                root = name.split(".")[0]
                assert root in ours or root in sys.stdlib_module_names, f"{path.name} imports {root}"


def test_what_the_setup_uses_is_there_before_anything_is_installed():
    """``tvf_core.reporting.colab`` comes first: all that it imports must be in the standard library."""
    used = card.closure("from tvf_core.reporting import colab")
    assert "tvf_core.reporting.colab" in used
    for source, _ in used.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] in sys.stdlib_module_names for a in node.names)
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] in {*sys.stdlib_module_names, "google", "tvf_core"}


def test_every_notebook_opens_with_the_same_setup_at_this_version():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert cells[0].cell_type == "markdown" and cells[1].source == setup(), path.name
        assert "remove-cell" in cells[1].metadata["tags"] and cells[1].outputs == []
    assert f'tag = "v{tvf_core.__version__}"\n' in setup()
    for number in ("03", "04"):
        assert "keep_on_drive" in code_cells(next(p for p in NOTEBOOKS if p.name.startswith(number)))[1]


def setup():
    return code_cells(NOTEBOOKS[0])[0]


def on_colab(tmp_path, *cells, **environment):
    """Run cells in a folder of their own, away from this package, with a stand-in for Colab's module.

    Gives the finished process with what it printed.
    """
    folder, package = tmp_path / "content", tmp_path / "site" / "google" / "colab"
    folder.mkdir(exist_ok=True)
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    lines = ["from tvf_core.reporting import colab", f"colab.DRIVE = {str(tmp_path / 'drive')!r}"]
    (package / "drive.py").write_text("\n    ".join(["def mount(place):", *lines]) + "\n")
    lines = [
        "import google.colab, sys",
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]",
        *cells,
        "import tvf_core",
        "print(tvf_core.__file__)",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TVF_RUNS")} | environment
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=folder,
        capture_output=True,
        text=True,
        input="",
        env=environment | {"PYTHONPATH": str(tmp_path / "site"), "COLAB_JUPYTER_IP": "127.0.0.1"},
    )


def git(place, *args):
    command = ["git", "-C", str(place), "-c", "user.name=x", "-c", "user.email=x@y", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The package as a repository: a commit with the tag of its version, then one on the default branch."""
    place = tmp_path_factory.mktemp("origin")
    for name in ["pyproject.toml", *(str(f.relative_to(ROOT)) for f in (ROOT / "tvf_core").rglob("*.py"))]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes((ROOT / name).read_bytes())
    git(place, "init", "--quiet")
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", "x")
    git(place, "tag", f"v{tvf_core.__version__}")
    git(place, "commit", "--quiet", "--allow-empty", "-m", "later")
    return place


def test_the_setup_brings_the_repository_once_and_puts_it_on_the_path(repository, tmp_path):
    package = str(tmp_path / "content" / "tmtvf-companion" / "tvf_core" / "__init__.py")
    told = f"tmtvf-companion: version v{tvf_core.__version__}"
    for printed in ([told, package], [package]):  # the second time, nothing is cloned
        done = on_colab(tmp_path, setup(), TVF_REPOSITORY=str(repository))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == printed
    cloned = tmp_path / "content" / "tmtvf-companion"
    assert git(cloned, "log", "-1", "--format=%s") == "x"  # the tag, not what came later


def test_without_the_tag_of_its_version_the_setup_takes_the_default_branch_and_says_so(repository, tmp_path):
    untagged = tmp_path / "untagged"
    subprocess.run(["git", "clone", "--quiet", "--no-tags", str(repository), str(untagged)], check=True)
    done = on_colab(tmp_path, setup(), TVF_REPOSITORY=str(untagged))
    assert done.returncode == 0, done.stderr
    tag = f"v{tvf_core.__version__}"
    assert done.stdout.splitlines()[0] == f"tmtvf-companion: no tag {tag}, so the default branch"
    assert git(tmp_path / "content" / "tmtvf-companion", "log", "-1", "--format=%s") == "later"


def test_an_address_without_a_repository_stops_the_setup(tmp_path):
    done = on_colab(tmp_path, setup(), TVF_REPOSITORY=str(tmp_path / "nothing"))
    assert done.returncode and "nothing" in done.stderr and "no tag" not in done.stdout


def test_the_setup_asks_for_the_address_where_colab_does_not_tell_it(tmp_path):
    done = on_colab(tmp_path, setup())
    assert (
        "Address of the book's repository" in done.stdout and "EOFError" in done.stderr
    )  # nobody is there to answer


def test_the_address_is_read_from_what_colab_says_of_the_session():
    pattern = re.search(r're\.search\(\s*r"(.*?)",', setup())[1]
    file = "https://github.com/some-one/a.book/blob/main/notebooks/03_train_faces.ipynb"
    session = f'[{{"path":"fileId={file}","name":"03"}}]'
    assert re.search(pattern, session)[0] == "https://github.com/some-one/a.book"
    assert re.search(pattern, '[{"path":"fileId=1aBcD","name":"Copy of 03"}]') is None


def test_runs_are_kept_on_the_drive(repository, tmp_path):
    drive = code_cells(next(p for p in NOTEBOOKS if p.name.startswith("03")))[1]
    done = on_colab(tmp_path, setup(), drive, "print(os.environ['TVF_RUNS'])", TVF_REPOSITORY=str(repository))
    assert done.returncode == 0, done.stderr
    place = tmp_path / "drive" / "MyDrive" / "tvf" / "runs"
    assert done.stdout.splitlines()[1:3] == [f"runs are kept in {place}", str(place)] and place.is_dir()


def test_the_launch_button_has_its_address():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["launch_buttons"]["colab_url"] == "https://colab.research.google.com"
    assert (
        re.fullmatch(r"https://github\.com/[\w.-]+/tmtvf-companion", config["repository"]["url"])
        and config["repository"]["branch"]
    )
    assert "path_to_book" not in config["repository"]  # the notebooks' paths count from the root
