"""RaFD: names, selection, crop, split and pairs, on a stand-in of the same form (``standins.rafd``)."""

import io
import itertools
import json
import shutil
import zipfile

import numpy as np
import pytest
import standins
from PIL import Image
from skimage import transform

from data_download import originals, rafd
from tvf_core import data
from tvf_core.data import demo_faces, prepared


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return standins.rafd(tmp_path_factory.mktemp("original") / "RafD")


@pytest.fixture(scope="module")
def root(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    rafd.prepare(source, root, progress=False)
    return root


@pytest.fixture
def copy(source, tmp_path):
    """A copy of the stand-in (links, so that it costs nothing) that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).hardlink_to(file)
    return folder


def replace(file, content: bytes):
    file.unlink()  # the original keeps its content
    file.write_bytes(content)


def test_counts_are_the_papers_and_the_split_follows_from_the_seed():
    assert len(rafd.MODELS) == 67 == len(standins.MODELS) and rafd.MODELS == standins.MODELS
    assert {part: len(models) for part, models in rafd.split().items()} == {"train": 53, "val": 7, "test": 7}
    assert sorted(itertools.chain(*rafd.split().values())) == rafd.MODELS
    assert {part: len(pairs) for part, pairs in rafd.pairs().items()} == {
        "train": 2968,
        "val": 392,
        "test": 392,
    }
    assert rafd.split() == rafd.draw_split(json.loads(rafd.SPLITS.read_text())["rafd"]["seed"])


def test_pairs_are_all_ordered_pairs_of_two_expressions_of_one_model(root, monkeypatch):
    monkeypatch.setenv("TVF_DATA", str(root))
    for part, models in rafd.split().items():
        loaded = data.load("rafd", part, 256)
        names = [tuple(loaded.names[k].split("_") for k in pair) for pair in loaded.pairs]
        assert len({(tuple(a), tuple(b)) for a, b in names}) == len(names) == 56 * len(models)
        assert all(a[0] == b[0] and int(a[0]) in models and a[1] != b[1] for a, b in names)
    assert loaded.names[:9] == [f"01_{e}" for e in demo_faces.EXPRESSIONS] + [
        f"02_{demo_faces.EXPRESSIONS[0]}"
    ]
    assert data.load("rafd", "test", 128).shape == (128, 128)
    with pytest.raises(ValueError, match="256 x 256 pixels, or smaller: 128, 64, 32; got size=100"):
        data.load("rafd", "test", 100)


def test_an_image_is_the_cropped_gray_photograph(source, root):
    part = data.PairData("rafd", "test", **prepared.read(root / "rafd", "test"))
    assert part.images.shape == (536, 256, 256)
    for k in (0, 3, 535):
        model, expression = part.names[k].split("_")
        colour = np.asarray(Image.open(source / standins.rafd_name(int(model), expression))).astype(float)
        luma = colour @ [0.299, 0.587, 0.114]  # Rec. 601
        height, width = luma.shape
        side = round(width * 640 / 681)
        left, top = (width - side) // 2, round(0.46 * height - side / 2)
        square = luma[top : top + side, left : left + side]
        expected = transform.resize(square, (256, 256), order=3, preserve_range=True)
        assert (
            np.abs(part.images[k] - expected).mean() < 0.7
            and np.abs(part.images[k] - np.roll(expected, 1, 0)).mean() > 1.5
        )
    assert (root / "rafd" / "preview.png").is_file()
    assert prepared.about(root / "rafd")["unused_images"] == 2 * 8 * 14


def test_a_second_call_does_nothing_and_another_crop_starts_anew(source, root, tmp_path, monkeypatch):
    shutil.copytree(root / "rafd", tmp_path / "rafd")
    with monkeypatch.context() as patch:
        patch.setattr(rafd, "gray", lambda *a: pytest.fail("worked again"))
        rafd.prepare(source, tmp_path, progress=False)
    before = np.load(tmp_path / "rafd" / "images.npy")
    rafd.prepare(source, tmp_path, crop=(10, 20, 256), progress=False)
    after = np.load(tmp_path / "rafd" / "images.npy")
    assert not np.array_equal(before, after) and prepared.about(tmp_path / "rafd")["crop"] == [10, 20, 256]
    colour = Image.open(source / standins.rafd_name(1, "angry")).convert("L").crop((10, 20, 266, 276))
    np.testing.assert_array_equal(after[0], np.asarray(colour))  # 256 to 256: nothing to resize


def test_an_interrupted_preparation_continues(source, tmp_path, monkeypatch):
    done, gray = [], rafd.gray

    def some(path, box):
        if len(done) == 30:
            raise KeyboardInterrupt
        done.append(path)
        return gray(path, box)

    with monkeypatch.context() as patch:
        patch.setattr(rafd, "gray", some)
        with pytest.raises(KeyboardInterrupt):
            rafd.prepare(source, tmp_path, progress=False)
    assert not (tmp_path / "rafd").exists()
    counted = []
    monkeypatch.setattr(rafd, "gray", lambda *a: (counted.append(a), gray(*a))[1])
    rafd.prepare(source, tmp_path, progress=False)
    assert len(counted) == 506


def test_the_archive_will_do_as_well_also_after_a_stop(source, root, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "RafD.zip", "w") as archive:
        for file in source.glob("Rafd090_*_frontal.jpg"):
            archive.write(file, f"RafD/{file.name}")
    unpack = originals.unpack
    for stop in ("before", "after"):

        def stopped(*arguments):
            if stop == "after":
                unpack(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(originals, "unpack", stopped)
            with pytest.raises(KeyboardInterrupt):
                rafd.prepare(tmp_path / "RafD.zip", tmp_path / "root", progress=False)
    rafd.prepare(tmp_path / "RafD.zip", tmp_path / "root", progress=False)
    np.testing.assert_array_equal(
        np.load(tmp_path / "root" / "rafd" / "images.npy"), np.load(root / "rafd" / "images.npy")
    )


def one(folder):
    return folder / standins.rafd_name(28, "contemptuous")


def small(folder):
    out = io.BytesIO()
    Image.new("RGB", (100, 150)).save(out, "JPEG")
    replace(one(folder), out.getvalue())


def only(folder, keep):
    for file in folder.iterdir():
        if not keep(file.name):
            file.unlink()


def twice(folder):
    (folder / "again").mkdir()
    (folder / "again" / one(folder).name).write_bytes((folder / standins.rafd_name(28, "happy")).read_bytes())


def oasis_instead(folder):
    only(folder, lambda name: False)
    standins.neurite(folder, [1, 2, 438])


@pytest.mark.parametrize(
    "damage, told",
    {
        "one is missing": (
            lambda f: one(f).unlink(),
            ["missing 1 of 536", "model 28 contemptuous", "complete database"],
        ),
        "a model is missing": (
            lambda f: only(f, lambda n: "_40_" not in n),
            ["missing 8 of 536", "model 40 angry"],
        ),
        "broken file": (
            lambda f: replace(one(f), b"\xff\xd8 not a JPEG"),
            ["Rafd090_28", "cannot be read as an image", "again"],
        ),
        "cut short": (
            lambda f: replace(one(f), one(f).read_bytes()[:2000]),
            ["Rafd090_28", "cannot be read as an image"],
        ),
        "other size": (small, ["Rafd090_28", "100 x 150", "280 x 421"]),
        "two versions": (twice, ["two different images", "again", "leave only"]),
        "no frontal camera": (
            lambda f: only(f, lambda n: not n.startswith("Rafd090")),
            ["only camera 000", "needed", "090"],
        ),
        "only looking aside": (lambda f: only(f, lambda n: "_left" in n), ["gaze left", "frontal"]),
        "empty": (lambda f: only(f, lambda n: False), ["holds no files", "Rafd090_<model>"]),
        "OASIS": (oasis_instead, ["looks like OASIS", "data_download oasis"]),
    }.values(),
    ids=lambda x: None,
)
def test_a_wrong_folder_is_named_in_one_line(damage, told, copy, tmp_path):
    damage(copy)
    with pytest.raises((ValueError, OSError)) as error:
        rafd.prepare(copy, tmp_path / "root", progress=False)
    assert all(part in str(error.value) for part in told) and "\n" not in str(error.value)
    assert not (tmp_path / "root" / "rafd").exists()


def test_a_pixel_more_and_capital_letters_do_not_matter(copy, root, tmp_path):
    odd = one(copy)
    with Image.open(odd) as image:
        wider = image.resize((image.width + 1, image.height))
    odd.unlink()
    wider.save(odd.with_name(odd.name.replace("Rafd", "rafd").replace(".jpg", ".JPG")), quality=95)
    rafd.prepare(copy, tmp_path, progress=False)
    assert prepared.about(tmp_path / "rafd")["crop"] == prepared.about(root / "rafd")["crop"]


@pytest.mark.parametrize(
    "crop, told", [((0, 0, 300), "beyond"), ((-1, 0, 256), "beyond"), ((0, 0, 100), "less than the 256")]
)
def test_a_crop_must_fit(crop, told, source, tmp_path):
    with pytest.raises(ValueError, match=told):
        rafd.prepare(source, tmp_path, crop=crop, progress=False)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder"):
        rafd.prepare(tmp_path / "nowhere", tmp_path, progress=False)
