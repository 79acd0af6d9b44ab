"""Text is read, written and printed in whatever locale: files are UTF-8, and no character ends a command."""

import ast
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_download import __main__ as data_download
from data_download import originals
from tvf_core import commands, console
from tvf_core.commands import app
from tvf_core.data import prepared

ROOT = Path(__file__).resolve().parents[1]
FILES = [f for folder in ("tvf_core", "data_download", "book") for f in sorted((ROOT / folder).rglob("*.py"))]


def without_encoding(source):
    """Lines that open a text file, or read what a program says, in whatever encoding the machine has."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if "encoding" in words or (owner in ("os", "tarfile", "Image") and name == "open"):
            continue
        if name == "read_text" and not texts:
            yield call.lineno
        if name == "write_text" and len(call.args) < 2:
            yield call.lineno
        if name in ("open", "NamedTemporaryFile", "TemporaryFile", "fdopen"):
            default = "r" if name in ("open", "fdopen") else "w+b"
            place = 1 if ast.unparse(call.func) in ("open", "os.fdopen") else 0
            given = words.get("mode", call.args[place] if len(call.args) > place else ast.Constant(default))
            modes = [
                n.value for n in ast.walk(given) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            if not modes or not all("b" in mode for mode in modes):
                yield call.lineno
        if "text" in words or "universal_newlines" in words:
            yield call.lineno


@pytest.mark.parametrize(
    "source, found",
    [
        ("open(f)", 1),
        ("open(f, 'w', newline='')", 1),
        ("open(f, mode)", 1),
        ("p.open('a')", 1),
        ("p.read_text()", 1),
        ("p.write_text('ä')", 1),
        ("p.read_text(errors='replace')", 1),
        ("NamedTemporaryFile('w')", 1),
        ("subprocess.run(c, text=True)", 1),
        ("open(f, 'rb')", 0),
        ("open(f, encoding='utf-8')", 0),
        ("open(f, 'ab' if n == 2 else 'wb')", 0),
        ("p.open('wb')", 0),
        ("p.read_text('utf-8')", 0),
        ("p.write_text('ä', 'utf-8')", 0),
        ("NamedTemporaryFile()", 0),
        ("subprocess.run(c, text=True, encoding='utf-8')", 0),
    ],
)
def test_the_search_for_missing_encodings_finds_them(source, found):
    assert len(list(without_encoding(source))) == found


def test_every_text_file_is_read_and_written_as_utf_8():
    assert len(FILES) > 80
    wrong = {
        str(file.relative_to(ROOT)): lines
        for file in FILES
        if (lines := list(without_encoding(file.read_text("utf-8"))))
    }
    assert not wrong


@pytest.fixture
def printed(monkeypatch):
    """``printed(main, *arguments)``: the bytes that a command prints on a stdout of an encoding."""

    def call(main, *arguments, encoding="ascii"):
        out = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert "codec can't encode" not in str(stop.code)
        out.flush()
        return out.buffer.getvalue()

    return call


@pytest.mark.parametrize("text", [*app._subcommands, "methods --size tiny", "methods --sources", "claims -"])
def test_every_command_prints_on_an_ascii_terminal(text, printed):
    words = [*text.split(), "--help"] if " " not in text else text.strip("- ").split()
    assert printed(commands.main, *words).isascii()


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["oasis"], ["rafd"], ["anatomies", "--help"], ["london", "--help"]]
)
def test_the_data_commands_print_on_an_ascii_terminal(words, printed, tmp_path):
    root = [] if "--help" in words else ["--root", str(tmp_path / "größe")]
    assert printed(data_download.main, *words, *root).isascii()


def test_signs_that_an_encoding_lacks_are_written_plainly(printed):
    def main():
        console.print_any_text()
        print("1 ± 2 – ü ẞ 日 \udcc3\udcbc")

    assert printed(main) == b"1 +- 2 - \\xfc \\u1e9e \\u65e5 \xc3\xbc\n"
    assert printed(main, encoding="latin-1") == "1 ± 2 - ü \\u1e9e \\u65e5 Ã¼\n".encode("latin-1")
    assert printed(main, encoding="utf-8") == "1 ± 2 – ü ẞ 日 ü\n".encode()  # the name's bytes, as they were


IN_ASCII = """
import sys
from tvf_core.commands import main
from tvf_core.training import profiles
folder, other, profile = sys.argv[1:]
for data in (folder, other, profiles.read(profile).data):
    sys.argv[1:] = ["evaluate", "--method", "identity", "--data", data]
    main()
"""


@pytest.mark.skipif(
    not sys.prefix.isascii(),
    reason="PyTorch itself cannot be imported from a folder with umlauts on a machine that knows ASCII only",
)
def test_names_with_umlauts_are_the_same_on_a_machine_that_knows_ascii_only(smooth_image, tmp_path):
    """Of images in the rows, and of folders: an argument, a name in a text file, a path in a text file."""
    images = np.stack([255 * smooth_image((32, 32), seed=k)[0, 0].numpy() for k in range(2)]).astype(np.uint8)
    for folder, name in (("größe x", ""), ("other", "bäume"), ("prüfung", "")):
        pairs = {"train": [(0, 1)], "val": [(1, 0)], "test": [(0, 1)]}
        prepared.write(tmp_path / folder, images, pairs, names=["ü", "ß"], subjects=["a", "b"], name=name)
    profile = tmp_path / "profil ä.yaml"
    profile.write_text(f'data: "{tmp_path / "prüfung"}"\nsteps: 2\n', "utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", IN_ASCII, tmp_path / "größe x", tmp_path / "other", profile],
        env=os.environ | ascii_only | {"TVF_RUNS": str(tmp_path / "läufe")},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    for name in ("größe x", "bäume", "prüfung"):
        results = tmp_path / "läufe" / "results" / name
        with open(results / "identity.csv", newline="", encoding="utf-8") as file:
            assert [row["pair"] for row in csv.DictReader(file)] == ["ü->ß"]
        assert json.loads((results / "identity.json").read_text("utf-8"))["n_pairs"] == 1
        assert f"{name} Before registration (1 pair)" in done.stdout.decode("utf-8")


def test_originals_whose_names_are_no_text_have_a_hash(tmp_path):
    """Older cameras and disks wrote names in other encodings than this machine's."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xf6\xdfe"))
    odd.write_bytes(b"content")
    assert originals.digest([odd], progress=False) != originals.digest([], progress=False)
