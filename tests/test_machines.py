"""Odd machines: folders that cannot be written, odd paths, ignored signals, a home that is not there."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import usual_signals

from data_download import __main__ as data_download
from data_download import fetch
from tvf_core import bench, commands, data
from tvf_core.data import demo_faces, prepared
from tvf_core.data import pairs as pairs_of_data
from tvf_core.model import Model
from tvf_core.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
NBVAL = "--nbval --nbval-current-env"


@pytest.fixture
def no_folder(tmp_path):
    """A place where nobody can make a folder, not even root: below a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "folder"


@pytest.fixture
def read_only(monkeypatch):
    """Every folder can be looked into, and none can be written."""

    def refuse(**where):
        raise OSError(30, "Read-only file system", str(where["dir"]))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


def stopped(main, arguments, monkeypatch):
    """The one line with which a command ends."""
    words = arguments.split() if isinstance(arguments, str) else arguments
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert "\n" not in str(stop.value.code)
    return str(stop.value.code)


def no_work(*args, **kwargs):
    pytest.fail("it worked before it looked whether the folder can be written")


def test_a_cache_that_cannot_be_written_is_told_before_the_faces_are_drawn(no_folder, monkeypatch):
    monkeypatch.setenv("TVF_CACHE", str(no_folder))
    monkeypatch.setattr(demo_faces, "render_all", no_work)
    with pytest.raises(
        OSError, match=rf"^{no_folder} cannot be written \(Not a directory\); .*TVF_CACHE=FOLDER$"
    ):
        data.load("demo_faces", "test")


def test_without_a_home_the_cache_is_told_in_one_line(no_folder, monkeypatch):
    monkeypatch.delenv("TVF_CACHE", raising=False)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(no_folder))
    monkeypatch.setattr(demo_faces, "render_all", no_work)
    told = stopped(commands.main, "draw --method identity --data demo_faces", monkeypatch)
    assert told.startswith(f"tvf: {no_folder}") and "TVF_CACHE=FOLDER" in told


def test_what_is_in_a_cache_is_read_where_nothing_can_be_written(tmp_path, monkeypatch, read_only):
    monkeypatch.setenv("TVF_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="Read-only file system.*TVF_CACHE"):
        pairs_of_data._cached("toy", demo_faces.MODULES, no_work)
    with monkeypatch.context() as writable:
        writable.setattr(pairs_of_data, "must_be_writable", lambda *args: None)
        pairs_of_data._cached("toy", demo_faces.MODULES, lambda: {"x": np.arange(3)})
    assert pairs_of_data._cached("toy", demo_faces.MODULES, no_work)["x"].tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with two data sets: ``flat`` and ``deep``, which is 3D."""
    folder = tmp_path_factory.mktemp("images")
    numbers = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 16), np.uint8)
    listing = {split: [(0, 1)] for split in ("train", "val", "test")}
    prepared.write(folder / "flat", numbers[:, 0], listing, subjects=["a", "b"])
    prepared.write(folder / "deep", numbers, listing, subjects=["a", "b"])
    (folder / "toy.yaml").write_text(f"data: {folder / 'flat'}\nsteps: 2\n", "utf-8")
    return folder


@pytest.mark.parametrize(
    "arguments, remedy",
    [
        ("train --method vm-2 --profile {images}/toy.yaml --out {out}", "TVF_RUNS=FOLDER"),
        ("evaluate --method identity --data {images}/flat --out {out}", "TVF_RUNS=FOLDER"),
        ("draw --method identity --data {images}/flat --out {out}/a.png", "choose another out file"),
        ("export-l2r --method identity --data {images}/deep --out {out}", "choose another out folder"),
        ("bench lncc --out {out}/a.json", "choose another out file"),
    ],
)
@pytest.mark.parametrize("kind", ["below a file", "read only"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    arguments, remedy, kind, images, no_folder, tmp_path, monkeypatch, request
):
    out = no_folder
    if kind == "read only":
        (out := tmp_path / "there").mkdir()
        request.getfixturevalue("read_only")
    for owner, work in ((Model, "register"), (Trainer, "prepare"), (bench.measure, "rates")):
        monkeypatch.setattr(owner, work, no_work)
    told = stopped(commands.main, arguments.format(out=out, images=images), monkeypatch)
    assert told.startswith(f"tvf: {out}") and " cannot be written (" in told and told.endswith(remedy)
    assert not list(tmp_path.rglob("*.part"))


def test_a_data_root_that_cannot_be_written_is_told_before_anything_is_fetched(no_folder, monkeypatch):
    monkeypatch.setattr(fetch, "_bring", no_work)
    told = stopped(data_download.main, f"anatomies --root {no_folder}", monkeypatch)
    assert told.startswith(f"data_download: {no_folder}") and "--root" in told and "TVF_DATA=FOLDER" in told


def test_the_command_that_is_offered_for_data_can_be_pasted(tmp_path, monkeypatch, capsys):
    root = tmp_path / "it's ünï cödé"
    told = stopped(data_download.main, ["rafd", "--root", str(root)], monkeypatch)
    words = shlex.split(told[told.index("python -m") :])
    assert words == [
        "python",
        "-m",
        "data_download",
        "rafd",
        "--source",
        "FOLDER_OR_ARCHIVE",
        "--root",
        str(root),
    ]
    monkeypatch.setenv("TVF_DATA", str(root))
    told = stopped(data_download.main, ["rafd"], monkeypatch)
    assert told.endswith("python -m data_download rafd --source FOLDER_OR_ARCHIVE")


def test_the_tests_have_the_usual_signals_however_they_were_started(request):
    assert "signals" in request.fixturenames  # of every test, without being asked for
    ask = [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT).__name__)"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with usual_signals():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            child = subprocess.run(ask, capture_output=True, encoding="utf-8")
            assert child.stdout.strip() == "default_int_handler"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


FAKE = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/ruff"; fi
if [ "$1 $2" = "-m venv" ]; then cp "$0" "$3/bin/tvf"; fi
printf '%s|' "$PWD" "$HOME" "$TVF_RUNS" "${0##*/}" "$@" >> "$LOG"; echo >> "$LOG"
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("home", ["a folder", "read only", "none"])
@pytest.mark.parametrize("name", ["ünï cödé dir", 'it\'s "new" & $HOME; (1) #2'])
def test_every_target_of_make_works_in_a_folder_of_any_name(name, home, tmp_path):
    """A stand-in for Python writes down how it is called; the file with the targets is the real one."""
    work, log, python = tmp_path / name, tmp_path / "log", tmp_path / "my töols" / "python"
    python.parent.mkdir()
    (work / "_build" / "html").mkdir(parents=True)
    (work / "_build" / "html" / "index.html").touch()
    for folder in ("runs", "tvf_core/__pycache__", "tvf_core/.ipynb_checkpoints", ".venv/x/__pycache__"):
        (work / folder).mkdir(parents=True)
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / file, work)
    python.write_text(FAKE, "utf-8")
    python.chmod(0o755)
    homes = {"a folder": str(tmp_path), "read only": "/proc", "none": str(work / "Makefile")}
    settings = {"HOME": homes[home], "LOG": str(log), "TVF_RUNS": "", "MAKEFLAGS": ""}

    def make(target):
        log.unlink(missing_ok=True)
        command = ["make", target, f"PYTHON={python}", "ARGS=--only 03"]
        done = subprocess.run(command, cwd=work, env=os.environ | settings, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        lines = log.read_text("utf-8").splitlines() if log.is_file() else []
        calls = [line.removeprefix(f"{work}|").split("|")[:-1] for line in lines]
        return [(*call[:2], " ".join(call[2:])) for call in calls]

    assert [call for *_, call in make("env")][-2:] == [
        "python -m pip --disable-pip-version-check install --quiet torch==2.13.0",
        "python -m pip --disable-pip-version-check install --quiet -e .[book,test]",
    ]
    assert [call for *_, call in make("lint")] == ["ruff format --check .", "ruff check ."]
    kept = homes[home] if home == "a folder" else str(work / "_build" / "home")
    for target, calls in {
        "test": [
            ("", "python -m pytest"),
            (f"{work}/_build/test-runs", f"python -m pytest {NBVAL} notebooks"),
        ],
        "book": [("", "python book/build.py --only 03")],
        "notebooks": [("", "python book/build.py --store --only 03")],
        "train": [("", "tvf train-all")],
        "results": [("", "tvf evaluate-all"), ("", "tvf bench-all")],
    }.items():
        assert make(target) == [(kept, *call) for call in calls]
        assert Path(kept).is_dir()
    assert [call for *_, call in make("data")] == [
        f"python -m data_download {name}" for name in ("anatomies", "london")
    ]
    assert [call for *_, call in make("serve")] == [
        "python -m http.server 8000 --bind 127.0.0.1 --directory _build/html"
    ]
    make("clean")
    left = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_dir()}
    assert left == {"tvf_core", ".venv", ".venv/bin", ".venv/x", ".venv/x/__pycache__"}
