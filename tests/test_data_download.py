"""The command ``python -m data_download``: its list, its options, and when data are prepared again."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from data_download import __main__ as command
from data_download import building
from tvf_core.data import prepared


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["data_download", *map(str, arguments)])
    command.main()


def data_set(folder, **write):
    images = np.zeros((3, 8, 9), np.uint8)
    return prepared.write(folder, images, {"val": [(0, 1)], "test": [(1, 2)]}, **write)


def states(text):
    return [line.split("state:")[1].strip() for line in text.splitlines() if "state:" in line]


@pytest.mark.parametrize(
    "content, told",
    [
        ("{}", "ready in {folder}"),
        ("[]", "damaged: {folder}/dataset.json is damaged"),
        ('{"names"', "damaged: {folder}/dataset.json is damaged"),
        ('{"sha256": 5}', "damaged: {folder}/dataset.json: sha256 is no JSON object"),
        ('{"sha256": {"labels.npy": "0"}}', "damaged: {folder} has no labels.npy"),
    ],
)
def test_the_list_is_whole_whatever_one_dataset_json_says(content, told, tmp_path, monkeypatch, capsys):
    rafd, oasis = data_set(tmp_path / "rafd"), data_set(tmp_path / "oasis")
    (rafd / "dataset.json").write_text(content)
    call(monkeypatch, "list", "--root", tmp_path)
    found = states(capsys.readouterr().out)
    assert found[-1] == f"ready in {oasis}" and found[-2].startswith(told.format(folder=rafd))


def test_the_list_tells_of_missing_images_also_without_hashes(tmp_path, monkeypatch, capsys):
    folder = data_set(tmp_path / "oasis")
    (folder / "dataset.json").write_text("{}")
    (folder / "images.npy").unlink()
    call(monkeypatch, "list", "--root", tmp_path)
    assert states(capsys.readouterr().out)[-1] == f"damaged: {folder} has no images.npy"


def test_the_numbers_of_a_data_set_are_those_of_its_arrays(tmp_path):
    folder = data_set(tmp_path / "rafd")
    (folder / "dataset.json").write_text("{}")
    (folder / "._pairs_val.csv").write_bytes(b"\0\xff")  # as some systems leave beside a file
    (folder / "notes.csv").write_text("no list of pairs\n")
    assert command.counts(folder) == "3 images of 8 x 9; 1/1 ordered pairs (val/test)"
    prepared.write_pairs(folder, {"train": [("0", "1"), ("1", "0")], "test": []}, ["0", "1"], "both_ways")
    assert command.counts(folder) == (
        "3 images of 8 x 9; 1/1 ordered pairs (val/test); both_ways: 2/0 ordered pairs (train/test)"
    )


def test_a_damaged_dataset_json_does_not_keep_a_data_set_from_being_prepared_again(tmp_path):
    folder, recipe = tmp_path / "x", {"way": 1}

    def prepare():
        made = building.Building(folder, recipe, ["a", "b"], (4, 5))
        for k in made.missing():
            made.put(k, np.full((4, 5), k, np.uint8))
        made.finish("x", "x", {"test": [("a", "b")]})

    prepare()
    whole = (folder / "dataset.json").read_text()
    assert building.same_recipe(folder, recipe) and not building.same_recipe(folder, {"way": 2})
    (folder / "dataset.json").write_text(whole[:-9])
    assert not building.same_recipe(folder, recipe)
    prepare()
    assert json.loads((folder / "dataset.json").read_text()) == json.loads(whole)


@pytest.mark.parametrize("source", [True, False])
def test_the_terms_are_accepted_only_for_a_download(source, tmp_path, monkeypatch):
    arguments = ["oasis", "--accept-terms", "--root", tmp_path, *(["--source", tmp_path] if source else [])]
    monkeypatch.setattr(command.oasis, "prepare", lambda *a: pytest.fail("began to prepare"))
    with pytest.raises(SystemExit, match="--accept-terms has no effect without --download") as error:
        call(monkeypatch, *arguments)
    assert "\n" not in str(error.value)


SOURCE = '''"""Draws."""
import math

def radius(x, y):
    """Distance."""
    return math.hypot(x, y)  # of two numbers
'''
ALIKE = {
    "docstring": SOURCE.replace("Distance.", "Distance from the origin.\n\n    Of a point.\n    "),
    "no docstrings": SOURCE.replace('"""Draws."""', "").replace('    """Distance."""\n', ""),
    "comment": SOURCE.replace("# of two numbers", "# Euclidean"),
    "layout": SOURCE.replace("(x, y):", "(\n    x, y\n):").replace("import math\n", "import math\n\n\n"),
}
OTHER = {
    "operation": SOURCE.replace("hypot(x, y)", "atan2(x, y)"),
    "order": SOURCE.replace("hypot(x, y)", "hypot(y, x)"),
    "import": SOURCE.replace("import math", "import cmath as math"),
}


def module(file, source):
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"data_download.{file.stem}", file)
    return importlib.util.module_from_spec(spec)


@pytest.mark.parametrize("kind, source", [*ALIKE.items(), *OTHER.items()])
def test_data_are_prepared_again_after_a_change_of_code_only(kind, source, tmp_path):
    assert source != SOURCE
    first, edited = module(tmp_path / "first.py", SOURCE), module(tmp_path / "edited.py", source)
    assert (building.recipe_hash(edited) == building.recipe_hash(first)) == (kind in ALIKE)


def test_every_module_of_a_recipe_counts(tmp_path):
    modules = [module(tmp_path / f"{name}.py", source) for name, source in (("a", SOURCE), ("b", "x = 1\n"))]
    hashes = {building.recipe_hash(*part) for part in (modules, modules[:1], modules[1:])}
    assert len(hashes) == 3
    assert building.recipe_hash(building) != building.recipe_hash(*modules)  # relative imports are read too
