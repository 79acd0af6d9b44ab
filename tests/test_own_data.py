"""A folder is a data set, named by its path in every command; a folder that does not fit is refused."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import yaml
from scipy import ndimage

from tvf_core import commands, data
from tvf_core.data import prepared
from tvf_core.evaluation import evaluate, learn2reg
from tvf_core.evaluation.compare import compare
from tvf_core.evaluation.results import read_rows
from tvf_core.paths import ROOT, runs
from tvf_core.training import train
from tvf_core.training.profiles import Profile


def content(shape, labelled, people=6, seed=0):
    """Images, and label maps, of ``people`` persons twice each, and pairs of one person within each split."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    labels = []
    for _ in range(2 * people):
        inside = ((x - np.array(shape) / 2 - rng.uniform(-2, 2, len(shape))) / (np.array(shape) * 0.3)) ** 2
        labels.append((inside.sum(-1) < 1).astype(np.int32) + 4 * (inside.sum(-1) < 0.4))
    images = [ndimage.gaussian_filter(one / 5, 1.0) for one in labels]
    names = [f"visit_{v}_{p}" for p in "UVWXYZ"[:people] for v in (1, 2)]
    pair = lambda p: [(names[2 * p], names[2 * p + 1]), (names[2 * p + 1], names[2 * p])]  # noqa: E731
    pairs = {"train": pair(0) + pair(1), "val": pair(2), "test": pair(3) + pair(4) + pair(5)}
    known = {"names": names, "subjects": [name[-1] for name in names]}
    if labelled:
        known |= {"labels": labels, "label_names": {1: "shell", 5: "core"}, "spacing": 2.0, "axes": "LIA"[:3]}
    return images, pairs, known


@pytest.fixture
def mine(tmp_path):
    """``mine(place, shape, labelled)`` writes a small data set and gives its folder."""

    def make(place="elsewhere/my scans", shape=(33, 28), labelled=False, seed=0):
        images, pairs, known = content(shape, labelled, seed=seed)
        return prepared.write(tmp_path / place, images, pairs, **known)

    return make


def run(capsys, *arguments) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tvf", *map(str, arguments)])
        commands.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("shape, labelled", [((33, 28), False), ((19, 16, 21), True)])
def test_a_folder_is_trained_evaluated_compared_and_drawn_by_its_path(
    shape, labelled, mine, tmp_path, monkeypatch, capsys
):
    folder = mine(shape=shape, labelled=labelled)
    profile = {"data": "./elsewhere/my scans", "size": "tiny", "steps": 2, "validations": 1, "time_steps": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.chdir(tmp_path)
    assert f"{runs() / 'my scans' / 'tm-tvf' / 'weights.safetensors'}: validation" in run(
        capsys, "train", "--method", "tm-tvf", "--profile", "mine.yaml"
    )
    weights = runs() / "my scans" / "tm-tvf" / "weights.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["settings"]["data"] == "my scans" and card["settings"]["labels"] == labelled
    for method, more in (("tm-tvf", ["--weights", weights]), ("identity", [])):
        told = run(capsys, "evaluate", "--method", method, "--data", folder, *more)
        assert told.startswith("my scans ") and "(6 pairs): " + ("dice" if labelled else "ssim") in told
    rows = read_rows("identity", folder)
    assert (
        list(rows["person"]) == ["X", "X", "Y", "Y", "Z", "Z"] and rows["pair"][0] == "visit_1_X->visit_2_X"
    )
    assert ("dice/core" in rows) == labelled and ("fsim" in rows) == (len(shape) == 2)
    told = [
        run(capsys, "compare", "tm-tvf", "identity", "--data", d) for d in (folder, "./elsewhere/my scans")
    ]
    shutil.move(folder, tmp_path / "away")  # results are enough, under the data set's name
    told.append(run(capsys, "compare", "tm-tvf", "identity", "--data", "my scans"))
    assert told[0] == told[1] == told[2] and "6 pairs" in told[0] and "over 3 persons" in told[0]
    shutil.move(tmp_path / "away", folder)
    command = ["--method", "tm-tvf", "--data", folder, "--weights", weights]
    assert "visit_2_X->visit_1_X" in run(capsys, "draw", *command, "--pair", 1, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_volumes_of_even_size_are_exported_by_their_path(mine, tmp_path, capsys):
    folder = mine(shape=(20, 18, 16), labelled=True)
    listing = folder / "pairs_val.csv"
    with pytest.raises(SystemExit, match="name without a number"):
        run(capsys, "export-l2r", "--method", "identity", "--data", folder, "--out", tmp_path / "out")
    about = json.loads((folder / "dataset.json").read_text())
    del about["names"], about["sha256"]  # numbers are names enough
    (folder / "dataset.json").write_text(json.dumps(about))
    for split, pairs in {"train": "0,1\n", "val": "4,5\n5,4\n", "test": "6,7\n"}.items():
        listing.with_name(f"pairs_{split}.csv").write_text("moving,fixed\n" + pairs)
    told = run(capsys, "export-l2r", "--method", "identity", "--data", folder, "--out", tmp_path / "out")
    assert "2 displacements, disp_0005_0004.npz first" in told and "Dice" in told


def test_what_is_written_reads_back(mine, tmp_path):
    images, pairs, known = content((19, 16, 21), True)
    folder = mine("volumes", (19, 16, 21), True)
    part = data.load(folder, "test")
    assert (part.name, part.axes, part.subjects) == ("volumes", "LIA", known["subjects"])
    assert [part.pair_name(k) for k in range(6)] == [f"{m}->{f}" for m, f in pairs["test"]]
    np.testing.assert_array_equal(part.images, np.round(255 * np.array(images)))
    np.testing.assert_array_equal(part.labels, known["labels"])
    assert part.label_names == {1: "shell", 5: "core"} and part.person(2) == "Y"
    assert json.loads((folder / "dataset.json").read_text())["spacing_mm"] == 2.0
    assert prepared.damaged(folder) == [] and not list(tmp_path.glob(".*part"))
    as_bytes = prepared.write(
        tmp_path / "numbers", part.images[:4], {"train": [(0, 1)], "val": [[2, "3"]]}, labels=part.labels[:3]
    )
    other = data.load(str(as_bytes), "train")
    assert other.names == other.subjects == ["0", "1", "2", "3"] and other.label_names == {
        1: "label 1",
        5: "label 5",
    }
    np.testing.assert_array_equal(other.images, part.images[:4])
    assert data.load(as_bytes, "val").labels is None  # image 3 has none


@pytest.mark.parametrize("shape", [(33, 28), (19, 16, 21)])
def test_landmarks_read_back_where_both_images_of_every_pair_have_them(shape, tmp_path):
    images, pairs, known = content(shape, False)
    points = np.random.default_rng(0).uniform(-0.5, np.array(shape) - 0.5, (8, 5, len(shape)))
    folder = prepared.write(
        tmp_path / "points", images, pairs, **known, landmarks=points, landmark_scale=np.array([4, 1])
    )
    for split in ("train", "val", "test"):  # the images of test are those from 6 on, and 8 to 11 have none
        part = data.load(folder, split)
        if split == "test":
            assert part.landmarks is None and part.landmark_scale == ()
        else:
            np.testing.assert_allclose(part.landmarks, points, rtol=1e-6)
            assert part.landmarks.dtype == np.float32 and part.landmark_scale == (4, 1)
    assert prepared.damaged(folder) == []
    edit(folder, landmark_scale=None)
    assert data.load(folder, "train").landmark_scale == ()
    with pytest.raises(ValueError, match="image 8 has no landmark, only the first 8 have any"):
        data.PairData("x", "test", np.array(images), [(6, 8)], landmarks=points)
    (folder / "landmarks.npy").unlink()
    with pytest.raises(ValueError, match="there is no landmarks.npy, which dataset.json tells of"):
        data.load(folder, "train")


def test_the_fingerprint_tells_of_landmarks(tmp_path):
    images, pairs, known = content((33, 28), True)
    points = np.full((12, 5, 2), 3.0)
    prints = set()
    for name, given in (("none", None), ("some", points), ("others", points + 0.5), ("fewer", points[:9])):
        folder = prepared.write(tmp_path / name, images, pairs, **known, landmarks=given)
        prints.add(data.load(folder, "val").fingerprint())
        edit(folder, sha256=None)
        assert data.load(folder, "val").fingerprint() in prints  # computed, it is the same
    assert len(prints) == 4


def test_several_lists_of_a_folder_have_one_fingerprint(mine):
    folder = mine()
    names = json.loads((folder / "dataset.json").read_text())["names"]
    edit(folder, sha256=None)
    before = prepared.read(folder, "val")["origin"]
    prepared.write_pairs(folder, {"val": [(names[4], names[7])], "test": []}, names, "people")
    (folder / "notes.csv").write_text("no list of pairs\n")
    people, own = prepared.read(folder, "val", "people"), prepared.read(folder, "val")
    assert people["pairs"] == [(4, 7)] and own["pairs"] == [(4, 5), (5, 4)]
    assert people["origin"] == own["origin"] != before
    with pytest.raises(FileNotFoundError, match="needs a file people_train.csv, here are .* test, val"):
        prepared.read(folder, "train", "people")
    with pytest.raises(ValueError, match="the pairs of val name unknown images: nobody"):
        prepared.write_pairs(folder, {"val": [(names[4], "nobody")]}, names, "people")


def test_an_empty_json_object_will_do(mine, tmp_path):
    written = mine("written", (33, 28), True)
    hand = tmp_path / "by_hand"
    hand.mkdir()
    for name in ("images.npy", "labels.npy"):
        shutil.copy(written / name, hand)
    (hand / "dataset.json").write_text("{}")
    for split, pairs in {"train": "0,1\r\n", "test": "6,7\r\n7,6\r\n"}.items():
        (hand / f"pairs_{split}.csv").write_text("\ufeffmoving,fixed\r\n" + pairs)  # as Excel writes it
    part = data.load(hand, "test")
    assert part.name == "by_hand" and part.pairs == [(6, 7), (7, 6)] and part.axes == "RAS"
    assert part.label_names == {1: "label 1", 5: "label 5"} and part.subjects == part.names
    before = part.fingerprint()
    assert before == data.load(hand, "train").fingerprint()
    images = np.load(hand / "images.npy")
    images[0, 0, 0] ^= 1
    np.save(hand / "images.npy", images)
    assert data.load(hand, "test").fingerprint() != before


def test_the_fingerprint_is_the_same_with_stored_and_with_computed_hashes(mine):
    folder = mine(labelled=True)
    stored = data.load(folder, "test").fingerprint()
    about = json.loads((folder / "dataset.json").read_text())
    del about["sha256"]
    (folder / "dataset.json").write_text(json.dumps(about))
    assert data.load(folder, "test").fingerprint() == stored


def edit(folder, **changes):
    file = folder / "dataset.json"
    about = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def array(name, change):
    def damage(folder):
        np.save(folder / name, change(np.load(folder / name)))
        edit(folder, sha256=None)

    return damage


def text(name, change):
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


DAMAGE = {  # name: (what is done to a folder, words of the message)
    "no images": (lambda f: (f / "images.npy").unlink(), ["no images.npy", "book/your_data.md"]),
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), ["no dataset.json", "book/your_data.md"]),
    "no pairs": (lambda f: (f / "pairs_test.csv").unlink(), ["'test'", "pairs_test.csv", "train, val"]),
    "no labels": (lambda f: (f / "labels.npy").unlink(), ["labels.npy", "dataset.json"]),
    "float images": (array("images.npy", lambda a: a / 255), ["float64", "uint8", "np.round(255 * images)"]),
    "one image": (array("images.npy", lambda a: a[0]), ["(33, 28)", "(images, *space)"]),
    "negative labels": (array("labels.npy", lambda a: -a.astype(np.int16)), ["label map 0", "-5 to 0"]),
    "float labels": (array("labels.npy", lambda a: a.astype(np.float32)), ["float32", "uint8 or uint16"]),
    "other labels": (array("labels.npy", lambda a: a[:, 1:]), ["(12, 32, 28)", "(12, 33, 28)", "do not fit"]),
    "too many labels": (
        array("labels.npy", lambda a: np.concatenate([a, a])),
        ["(24, 33, 28)", "do not fit"],
    ),
    "unnamed label": (lambda f: edit(f, sha256=None, label_names={"1": "shell"}), ["5", "label_names"]),
    "names of labels": (
        lambda f: edit(f, label_names={"shell": 1}),
        ["label_names", '{"1": "left ventricle"}'],
    ),
    "too few names": (lambda f: edit(f, names=["a", "b"]), ["names", "12 images", "got 2"]),
    "a name twice": (lambda f: edit(f, names=["a"] * 12), ["two images", "'a'"]),
    "an arrow": (lambda f: edit(f, names=["a->b", *"bcdefghijkl"]), ["'a->b'", "pair"]),
    "subjects": (lambda f: edit(f, subjects=["a", "b", "c"]), ["subjects", "12 images", "got 3"]),
    "axes": (lambda f: edit(f, axes="RRS"), ["axes", "RAS", "'RRS'"]),
    "unknown image": (
        lambda f: (text("pairs_test.csv", lambda t: t + "visit_9_X,visit_1_X\n")(f), edit(f, sha256=None)),
        ["pairs_test.csv, line 8", "'visit_9_X'", "visit_1_U"],
    ),
    "no header": (
        lambda f: (text("pairs_test.csv", lambda t: t.split("\n", 1)[1])(f), edit(f, sha256=None)),
        ["pairs_test.csv", "moving and fixed", "first line"],
    ),
    "other pairs": (
        text("pairs_test.csv", lambda t: t[: t.rindex("visit_1")]),
        ["pairs_test.csv", 'delete the key "sha256"'],
    ),
    "a pair twice": (
        lambda f: (text("pairs_test.csv", lambda t: t + t.split("\n")[1] + "\n")(f), edit(f, sha256=None)),
        ["pairs", "twice"],
    ),
    "another encoding": (
        lambda f: (
            (f / "pairs_test.csv").write_bytes("moving,fixed\nä,ö\n".encode("latin-1")),
            edit(f, sha256=None),
        ),
        ["pairs_test.csv", "UTF-8"],
    ),
    "hashes that are none": (lambda f: edit(f, sha256="x"), ['"sha256"', "delete this key"]),
    "a line break in a name": (lambda f: edit(f, names=["a\nb", *"bcdefghijkl"]), ["'a\\nb'", "printed"]),
    "a label twice": (
        lambda f: edit(f, label_names={"1": "shell", "01": "rim", "5": "core"}),
        ["label_names", "same name or number"],
    ),
    "a name with a null": (lambda f: edit(f, name="a\0b"), ["'a\\x00b'", "my_scans"]),
    "a long name": (lambda f: edit(f, name="a" * 300), ["cannot name a folder"]),
    "one number for landmarks": (
        lambda f: (np.save(f / "landmarks.npy", 1.0), edit(f, sha256=None)),
        ["landmarks", "array"],
    ),
    "landmarks of too many": (
        lambda f: (np.save(f / "landmarks.npy", np.ones((13, 4, 2))), edit(f, sha256=None)),
        ["landmarks", "all 12 images", "(13, 4, 2)"],
    ),
    "landmarks as x and y": (
        lambda f: (np.save(f / "landmarks.npy", np.full((12, 4, 2), (20, 30))), edit(f, sha256=None)),
        ["landmarks: point 0 of image 0", "33 x 28", "row, then column"],
    ),
    "a scale that is none": (
        lambda f: (
            np.save(f / "landmarks.npy", np.ones((12, 4, 2))),
            edit(f, sha256=None, landmark_scale="01"),
        ),
        ["landmark_scale", "0 to 3"],
    ),
    "landmarks cut short": (
        lambda f: (
            np.save(f / "landmarks.npy", np.ones((12, 4, 2))),
            (f / "landmarks.npy").write_bytes((f / "landmarks.npy").read_bytes()[:-9]),
            edit(f, sha256=None),
        ),
        ["landmarks.npy is no whole array"],
    ),
    "landmarks that were added": (
        lambda f: np.save(f / "landmarks.npy", np.ones((12, 4, 2))),
        ["landmarks.npy", 'delete the key "sha256"'],
    ),
    "not JSON": (text("dataset.json", lambda t: t[:-9]), ["dataset.json", "not a JSON object"]),
    "a list": (text("dataset.json", lambda t: "[]"), ["dataset.json", "not a JSON object"]),
    "cut short": (
        lambda f: (f / "images.npy").write_bytes((f / "images.npy").read_bytes()[:-9]),
        ["images.npy"],
    ),
    "a pickle": (lambda f: np.save(f / "images.npy", np.array([{}]), allow_pickle=True), ["images.npy"]),
    "a path as name": (lambda f: edit(f, name="../up"), ["'../up'", '"name": "my_scans"']),
    "a name that is taken": (lambda f: edit(f, name="demo_faces"), ["'demo_faces'", '"my_demo_faces"']),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_folder_that_does_not_fit_is_refused_with_one_line(case, mine, capsys):
    folder = mine(labelled=True)
    damage, words = DAMAGE[case]
    damage(folder)
    with pytest.raises(SystemExit) as told:
        run(capsys, "evaluate", "--method", "identity", "--data", folder)
    message = str(told.value)
    assert "\n" not in message and folder.name in message, message
    assert not [word for word in words if word not in message], message
    assert not (runs() / "results").exists()


@pytest.mark.parametrize("name", ["my_scan", "./my_scan", "", "my_scans/dataset.json"])
def test_an_unknown_name_lists_the_known_ones_and_what_a_folder_needs(name, mine, tmp_path, monkeypatch):
    mine("my_scans")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as told:
        data.load(name, "test")
    message = str(told.value)
    assert "\n" not in message and repr(name) in message
    assert all(
        word in message for word in ("demo_faces", "oasis", "images.npy", "dataset.json", "your_data.md")
    )


ARGUMENTS = {  # name: (changes of the arguments of ``write``, words of the message)
    "intensities": ({"images": [np.full((9, 8), 7.0)] * 12}, ["7 to 7", "[0, 1]"]),
    "NaN": ({"images": [np.full((9, 8), np.nan)] * 12}, ["image 0", "NaN"]),
    "integers": ({"images": [np.ones((9, 8), np.int16)] * 12}, ["int16", "uint8"]),
    "shapes": ({"images": [np.ones((9, 8))] * 11 + [np.ones((8, 9))]}, ["(9, 8)", "(8, 9)", "one shape"]),
    "rank": ({"images": [np.ones(9)] * 12}, ["(12, 9)", "(images, *space)"]),
    "masked images": (
        {"images": np.ma.masked_greater(np.ones((12, 33, 28)), 0.5)},
        ["images", "masked", "x.filled(0)"],
    ),
    "masked labels": (
        {"labels": [np.ma.masked_equal(np.ones((33, 28), int), 1)] * 12},
        ["label map 0", "masked", "x.filled(0)"],
    ),
    "none": ({"images": []}, ["images", "at least one"]),
    "negative labels": ({"labels": [np.full((33, 28), -1)]}, ["label map 0", "-1 to -1", "0 (background)"]),
    "labels beyond int64": ({"labels": [np.full((33, 28), 2**63, np.uint64)]}, [f"{2**63}", "2**63 - 1"]),
    "fractions": ({"labels": [np.full((33, 28), 0.5)]}, ["whole numbers", "float64"]),
    "labels of another shape": ({"labels": [np.ones((28, 33), int)]}, ["(1, 28, 33)", "do not fit"]),
    "label without a name": ({"label_names": {1: "shell"}}, ["5", "label_names"]),
    "pairs of no split": ({"pairs": [(0, 1)]}, ["train, val, test", "list"]),
    "a pair that is none": ({"pairs": {"train": [0, 1]}}, ["train", "(moving, fixed)", "got 0"]),
    "a fraction as number": ({"pairs": {"train": [(0.0, 1)]}}, ["train", "0 to 11", "(0.0, 1)"]),
    "a fraction as label": ({"label_names": {1.5: "shell"}}, ["label_names", "whole"]),
    "split": ({"pairs": {"training": [(0, 1)]}}, ["training", "train, val, test"]),
    "number": ({"pairs": {"train": [(0, 12)]}}, ["train", "0 to 11", "(0, 12)"]),
    "name": ({"pairs": {"train": [("visit_1_U", "visit_3_U")]}}, ["train", "visit_3_U"]),
    "names": ({"names": ["a"] * 12}, ["two images", "'a'"]),
    "subjects": ({"subjects": "ab"}, ["subjects", "for each image"]),
    "axes": ({"axes": "left"}, ["axes", "'left'"]),
    "its own name": ({"name": "a/b"}, ["'a/b'"]),
    "names of labels that are not there": ({"labels": None}, ["label_names", "no effect"]),
    "landmarks of a volume": ({"landmarks": np.ones((12, 4, 3))}, ["landmarks", "(12, 4, 3)", "2) numbers"]),
    "landmarks as x and y": (
        {"landmarks": [[(20, 30)]] * 12},
        ["point 0 of image 0", "33 x 28", "row, then"],
    ),
    "landmarks that are not there": ({"landmarks": [[(1, np.nan)]] * 12}, ["point 0 of image 0", "nan"]),
    "landmarks and no scale": (
        {"landmarks": [[(1, 2), (3, 4)]] * 12, "landmark_scale": np.array([0, 2])},
        ["landmark_scale", "0 to 1", "[0, 2]"],
    ),
    "a scale and no landmarks": ({"landmark_scale": (0, 1)}, ["landmark_scale", "no effect"]),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments_leave_nothing_behind(case, tmp_path):
    images, pairs, known = content((33, 28), True)
    change, words = ARGUMENTS[case]
    with pytest.raises(ValueError) as told:
        prepared.write(tmp_path / "new", **{"images": images, "pairs": pairs, **known, **change})
    assert "\n" not in str(told.value) and not [w for w in words if w not in str(told.value)], told.value
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_home_folder_is_written_where_it_is_read(mine, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    images, pairs, known = content((33, 28), False)
    assert prepared.write("~/scans", images, pairs, **known) == tmp_path / "home" / "scans"
    assert data.load("~/scans", "test").name == "scans"


def test_nothing_is_overwritten(mine):
    folder = mine()
    before = (folder / "dataset.json").read_text()
    with pytest.raises(FileExistsError, match="is there already"):
        mine(seed=1)
    assert (folder / "dataset.json").read_text() == before


EMPTY = {  # command: (the split that is emptied, its other arguments)
    "evaluate": ("test", ["--method", "identity"]),
    "evaluate some": ("val", ["--method", "identity", "--split", "val", "--limit", "2"]),
    "export-l2r": ("val", ["--method", "identity", "--out", "submission"]),
    "draw": ("test", ["--method", "identity", "--out", "drawn.png"]),
    "compare": ("test", ["identity", "lddmm"]),
    "compare on val": ("val", ["identity", "lddmm", "--split", "val"]),
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_split_without_pairs_is_told_and_nothing_is_begun(case, mine, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    split, more = EMPTY[case]
    folder = mine("scans", shape=(20, 18, 16), labelled=True)
    (folder / f"pairs_{split}.csv").write_text("moving,fixed\n")
    edit(folder, sha256=None, subjects=["U"] * 12)  # loading other splits would warn of shared persons
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as told:
        run(capsys, case.split()[0], *more, "--data", "./scans")
    others = ", ".join(s for s in ("train", "val", "test") if s != split)
    assert str(told.value) == f"tvf: ./scans: the split {split!r} has no pairs; there are pairs for: {others}"
    assert sorted(tmp_path.rglob("*")) == before and capsys.readouterr().err == ""


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_training_without_pairs_in_a_split_is_refused(split, mine, tmp_path):
    folder = mine("scans")
    (folder / f"pairs_{split}.csv").write_text("moving,fixed\n")
    edit(folder, sha256=None)
    with pytest.raises(
        ValueError, match=f"scans: the split '{split}' has no pairs; there are pairs for: .*test"
    ):
        train.train("tm", Profile(str(folder), size="tiny", steps=1), progress=False)
    assert not (runs() / "scans" / "tm").exists()


def test_scores_of_a_submission_for_a_split_without_pairs(mine, tmp_path):
    folder = mine("scans", shape=(20, 18, 16), labelled=True)
    (folder / "pairs_val.csv").write_text("moving,fixed\n")
    edit(folder, sha256=None)
    with pytest.raises(ValueError, match="the split 'val' has no pairs; there are pairs for: train, test"):
        learn2reg.scores(tmp_path / "submission", folder)


def test_two_folders_of_one_name_share_neither_runs_nor_results(mine):
    first, second = mine("a/scans"), mine("b/scans", seed=1)
    profile = Profile(str(first), size="tiny", steps=1, time_steps=1, validations=1)
    train.train("tm", profile, progress=False)
    with pytest.raises(ValueError, match="other settings .origin: other images, labels or pairs.: go on"):
        train.train("tm", profile.change(data=str(second)), progress=False)
    beside = train.train("tm", profile.change(data=str(second)), resume="beside", progress=False)
    assert beside["weights"].parent.name.startswith("tm-")
    evaluate.evaluate("identity", first, progress=False)
    for method in ("identity", "lddmm"):  # not beside results of other data either
        with pytest.raises(ValueError, match="same name 'scans': choose another out folder"):
            evaluate.evaluate(method, second, progress=False)


def test_a_moved_folder_is_the_same_data_set(mine, tmp_path):
    folder = mine("a/scans")
    profile = Profile(str(folder), size="tiny", steps=1, time_steps=1, validations=1)
    train.train("tm", profile, progress=False)
    evaluate.evaluate("identity", folder, progress=False)
    (tmp_path / "b").mkdir()
    moved = folder.rename(tmp_path / "b" / "scans")
    stamp = (runs() / "results" / "scans" / "identity.json").stat().st_mtime_ns
    card = train.train("tm", profile.change(data=str(moved)), progress=False)
    evaluate.evaluate("identity", moved, progress=False)
    assert card["weights"] == runs() / "scans" / "tm" / "weights.safetensors"
    assert (runs() / "results" / "scans" / "identity.json").stat().st_mtime_ns == stamp


def test_other_persons_make_other_results(mine):
    folder = mine(labelled=True)
    evaluate.evaluate("identity", folder, progress=False)
    edit(folder, subjects=[str(k) for k in range(12)])
    evaluate.evaluate("identity", folder, progress=False)
    assert len(set(read_rows("identity", folder)["person"])) == 6


def test_a_known_data_set_by_its_path_keeps_its_name(mine, monkeypatch, tmp_path):
    monkeypatch.setenv("TVF_DATA", str(tmp_path))
    folder = mine("anatomies/2mm", (20, 18, 16), True)
    edit(folder, name="anatomies", command="anatomies --spacing 2")
    assert data.name_of(folder) == data.load(folder, "test").name == "anatomies_2mm"
    monkeypatch.setenv("TVF_DATA", str(tmp_path / "other"))
    assert data.name_of(folder) == "anatomies"  # a prepared copy elsewhere: as it calls itself


def test_persons_in_two_splits_are_told(mine, capsys):
    folder = mine()
    data.load(folder, "test")
    assert capsys.readouterr().err == ""
    edit(folder, subjects=["U", "U", "V", "V", "W", "W", "X", "X", "Y", "Y", "U", "V"])
    data.load(folder, "train")
    assert capsys.readouterr().err == ""
    data.load(folder, "test")
    told = capsys.readouterr().err
    assert "2 of 4 persons of the split test are in train too (U, V)" in told and told.count("\n") == 1


def test_a_folder_of_the_time_before_persons_still_loads(mine, capsys):
    folder = mine(labelled=True)
    edit(folder, subjects={"train": ["U", "V"], "val": ["W"], "test": ["X", "Y", "Z"]}, command="rafd")
    part = data.load(folder, "test")
    assert part.subjects == part.names
    assert "does not say which person" in capsys.readouterr().err
    edit(folder, subjects={"train": part.names})  # a person per image: nothing is missing
    data.load(folder, "test")
    assert capsys.readouterr().err == ""


def test_the_page_runs_and_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    """Every block of the page, in order, in an empty folder; numbers with a decimal point may differ."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "book" / "your_data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S)
    assert [kind for kind, _ in blocks].count("text") >= 2
    monkeypatch.setenv("TVF_RUNS", "runs")
    printed, scope = "", {"__name__": "page"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "your_data.md", "exec"), scope)
            printed = capsys.readouterr().out
        elif kind == "yaml":
            (tmp_path / "mine.yaml").write_text(block)
        elif kind == "bash":
            lines = [line.split() for line in block.replace("\\\n", " ").splitlines()]
            assert all(line[0] == "tvf" for line in lines)
            printed = "".join(run(capsys, *line[1:]) for line in lines)
        elif kind == "text":
            plain = lambda t: re.sub(r"[-+]?\d+(\.\d+(e[-+]\d+)?|e[-+]\d+| s| %)", "#", t).split()  # noqa: E731
            assert plain(block) == plain(printed), printed
        else:
            assert kind == "json" and isinstance(json.loads(block), dict)
    assert compare("tm-tvf", "identity", "my_scans")["subjects"] == 3
