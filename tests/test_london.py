"""London Set: splits, cut, landmarks, a stopped preparation, wrong files; on stand-ins and the real one."""

import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_download import __main__ as cli
from data_download import london
from data_download.building import same_recipe
from data_download.fetch import Remote
from tvf_core import data
from tvf_core.data import prepared
from tvf_core.data.pairs import in_size
from tvf_core.paths import ROOT, data_root

SPLITS = {"train": [1, 5, 12], "val": [2, 30], "test": [3, 173]}
PEOPLE = sorted(itertools.chain(*SPLITS.values()))
LEFT, TOP, SIDE = 163, 158, 1024  # of the square that is kept, written out once more
MARK = (565, 632)  # x and y of landmark 0, the pixel in the middle of a bright square of 9 x 9
INSIDE = {256: ((632 - 158 + 0.5) / 4 - 0.5, (565 - 163 + 0.5) / 4 - 0.5)}  # its row and column
INSIDE[128] = tuple((k + 0.5) / 2 - 0.5 for k in INSIDE[256])


def photograph(seed: int) -> Image.Image:
    """Smooth colours without black and white, which JPEG would cut, and a bright square at ``MARK``."""
    noise = np.random.default_rng(seed).standard_normal((3, 150, 150))
    smooth = np.kron(ndimage.gaussian_filter(noise, (0, 1, 1)), np.ones((9, 9)))  # 1350 x 1350
    colours = (100 + 100 * np.clip(smooth, -0.4, 0.4)).astype(np.uint8)
    x, y = MARK
    colours[:, y - 40 : y + 41, x - 40 : x + 41] = 60
    colours[:, y - 4 : y + 5, x - 4 : x + 5] = 240
    return Image.fromarray(np.ascontiguousarray(colours.transpose(1, 2, 0)))


def tem(person: int) -> str:
    """Landmarks in the form of the set's files, with lines between them."""
    points = np.random.default_rng(person).integers(300, 1100, (189, 2)).astype(float)
    points[:2] = MARK, (778.0, 624.5)
    lines = [f"{x}\t{y}" for x, y in points.tolist()]
    return "\n".join(["189", *lines, "2", "0", "2", "0 1", "1", "3", "4 5 6", ""])


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """Seven made-up persons in a mirror of their own, with the hashes of their files."""
    folder = tmp_path_factory.mktemp("mirror")
    files = {"LICENSE.md": b"made up"}
    for person in PEOPLE:
        files[f"neutral_front/{person:03d}_03.tem"] = tem(person).encode()
        for k, (place, number) in enumerate(london.EXPRESSIONS.values()):
            image = folder / "london" / place / f"{person:03d}_{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            photograph(2 * person + k).save(image, quality=95)
            files[f"{place}/{image.name}"] = image.read_bytes()
    remotes = []
    for path, content in files.items():
        (folder / "london" / path).write_bytes(content)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        remotes.append(
            Remote(Path(path).name, f"http://localhost:1/{path}", digest, f"london/{path}", len(content))
        )
    return folder, remotes


@pytest.fixture
def few(mirror, monkeypatch):
    """The made-up persons take the place of the real ones."""
    monkeypatch.setenv("TVF_DATA_MIRROR", str(mirror[0]))
    monkeypatch.setattr(london, "remotes", lambda: mirror[1])
    monkeypatch.setattr(london, "splits", lambda: SPLITS)
    return mirror[0]


@pytest.fixture(scope="module")
def whole(mirror, tmp_path_factory):
    """A data root in which the made-up persons are prepared; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVF_DATA_MIRROR", str(mirror[0]))
        patch.setattr(london, "remotes", lambda: mirror[1])
        patch.setattr(london, "splits", lambda: SPLITS)
        _, what = london.prepare(root, progress=False)
    assert what == "22 files fetched, 0 were there; 14 of 14 images prepared"
    return root


@pytest.fixture
def loaded(whole, monkeypatch):
    """``loaded(name, split, size)`` of the prepared stand-in."""
    monkeypatch.setenv("TVF_DATA", str(whole))
    return data.load


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def run(*arguments) -> None:
    """The command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["data_download", *map(str, arguments)])
        cli.main()


def refused(*arguments) -> str:
    """The one line with which a command ends."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert "\n" not in str(stop.value.code)
    return str(stop.value.code)


def test_splits_are_those_of_the_seed_share_nobody_and_give_the_two_lists():
    known = json.loads((ROOT / "data_download" / "splits.json").read_text())["london"]
    people = sorted(known["train"] + known["val"] + known["test"])
    assert london.persons() == people and len(set(people)) == len(people) == 102
    order = np.random.default_rng(known["seed"]).permutation(people).tolist()
    drawn = {"train": sorted(order[:80]), "val": sorted(order[80:90]), "test": sorted(order[90:])}
    assert london.splits() == drawn == london.draw_splits(people, known["seed"])
    assert {split: len(pairs) for split, pairs in london.expressions().items()} == {
        "train": 160,
        "val": 20,
        "test": 24,
    }
    assert {split: len(pairs) for split, pairs in london.people().items()} == {
        "train": 6320,
        "val": 90,
        "test": 132,
    }


def test_the_files_are_the_licence_two_photographs_and_the_landmarks_of_each_person():
    remotes = london.remotes()
    expected = {"LICENSE.md"} | {
        f"{p:03d}_{end}" for p in london.persons() for end in ("03.jpg", "03.tem", "08.jpg")
    }
    assert {remote.name for remote in remotes} == expected and len(remotes) == 307
    assert 94e6 < sum(remote.size for remote in remotes) < 96e6  # as the help and the list say
    assert all(london.COMMIT in remote.url and remote.mirror.startswith("london/") for remote in remotes)
    urls = {remote.name: remote.url.split(london.COMMIT)[1] for remote in remotes}
    assert urls["014_08.jpg"] == "/inst/smiling_front/014_08.jpg" and urls["LICENSE.md"] == "/LICENSE.md"


def test_each_list_has_every_ordered_pair_once(loaded):
    for split, people in SPLITS.items():
        part = loaded("london", split)
        names = [tuple(name.split("_") for name in part.pair_name(k).split("->")) for k in range(len(part))]
        assert len(part) == 2 * len(people) == len(set(part.pairs))
        assert all(a[0] == b[0] and int(a[0]) in people for a, b in names)
        assert {(a[1], b[1]) for a, b in names} == {("neutral", "smiling"), ("smiling", "neutral")}
        assert part.landmarks is None  # a smiling face has none
        part = loaded("london_people", split)
        assert {part.pair_name(k) for k in range(len(part))} == {
            f"{a:03d}_neutral->{b:03d}_neutral" for a in people for b in people if a != b
        }
        assert len(part) == len(people) * (len(people) - 1) and part.landmark_scale == (0, 1)
        assert [part.person(k) for k in range(len(part))] == [
            part.names[fixed][:3] for _, fixed in part.pairs
        ]


def test_an_image_is_the_cut_gray_photograph_in_means_of_blocks(mirror, loaded):
    part = loaded("london", "test", 256)
    assert part.shape == (256, 256) and len(part.names) == 14
    for name, image in zip(part.names, part.images.astype(float)):
        person, expression = name.split("_")
        place, number = {"neutral": ("neutral_front", "03"), "smiling": ("smiling_front", "08")}[expression]
        with Image.open(mirror[0] / "london" / place / f"{person}_{number}.jpg") as file:
            luma = np.asarray(file.convert("L")).astype(
                float
            )  # from the rounded colours, not from the file's
        expected = np.zeros((256, 256))
        for row, column in itertools.product(range(4), range(4)):
            expected += luma[TOP + row : TOP + SIDE : 4, LEFT + column : LEFT + SIDE : 4] / 16
        assert np.abs(image - expected).max() < 1.6 and np.abs(image - expected).mean() < 0.5
        assert abs((image - expected).mean()) < 0.1  # rounded, not cut off
        for axis in (0, 1):
            assert np.abs(image - np.roll(expected, 1, axis)).mean() > 1.5


@pytest.mark.parametrize("size", [256, 128])
def test_a_landmark_lies_where_the_photograph_has_its_mark(size, loaded):
    """The middle of the bright square, weighted by its brightness: half a pixel off would be seen."""
    part = loaded("london_people", "train", size)
    assert part.landmarks.shape == (7, 189, 2) and part.landmarks.dtype == np.float32
    np.testing.assert_allclose(part.landmarks[:, 0], [INSIDE[size]] * 7, atol=1e-4)
    corner = np.round(INSIDE[size]).astype(int) - 6 * size // 256
    around = tuple(slice(first, first + 12 * size // 256 + 1) for first in corner)
    for image in part.images[:7].astype(float):
        bright = np.clip(image[around] - 70, 0, None)
        rows, columns = np.indices(bright.shape)
        middle = [(k * bright).sum() / bright.sum() + first for k, first in zip((rows, columns), corner)]
        np.testing.assert_allclose(middle, INSIDE[size], atol=0.05)


def test_landmarks_are_row_and_column_by_hand(tmp_path):
    (tmp_path / "a.tem").write_text(tem(1))
    points = london.landmarks(tmp_path / "a.tem")
    # (632 - 158 + 0.5) / 4 - 0.5, (565 - 163 + 0.5) / 4 - 0.5; then 624.5 and 778
    assert points[:2].tolist() == [[118.125, 100.125], [116.25, 153.375]]


def test_128_pixels_are_means_of_those_of_256_and_other_sizes_are_refused(loaded):
    for name in ("london", "london_people"):
        small, full = loaded(name, "val"), loaded(name, "val", 256)
        assert small.shape == (128, 128) and small.pairs == full.pairs and small.names == full.names
        assert small.fingerprint() == full.fingerprint() == loaded("london", "test").fingerprint()
        values = full.images.astype(int)
        four = sum(values[:, a::2, b::2] for a in (0, 1) for b in (0, 1))
        difference = 4 * small.images.astype(int) - four
        assert np.abs(difference).max() == 2 and (small.images[abs(difference) == 2] % 2 == 0).all()  # .5
        np.testing.assert_array_equal(loaded(name, "val", 128).images, small.images)
        assert loaded(name, "val", 64).shape == (64, 64)
        by_path = loaded(data_root() / "london", "val")  # the folder is that of the data set
        assert by_path.name == "london" and by_path.shape == (128, 128)
        for size in (100, 255, 257, 512):
            with pytest.raises(ValueError) as told:
                loaded(name, "val", size)
            assert str(told.value) == (
                f"{name}: comes in 256 x 256 pixels, or smaller: 128, 64, 32; got size={size}"
            )


def test_the_command_prints_counts_and_terms_and_then_only_verifies(few, tmp_path, monkeypatch, capsys):
    run("london", "--root", tmp_path, "--no-progress")
    first = capsys.readouterr().out
    assert "22 files fetched" in first and "14 of 14 images prepared" in first
    assert (
        "14 images of 256 x 256; 6/4/4 ordered pairs (train/val/test); "
        "people: 6/2/2 ordered pairs (train/val/test)\n" in first
    )
    assert "DeBruine & Jones (2017)" in first and "CC BY 4.0" in first and "signed consent" in first
    assert "before registration" not in first  # without labels there is no overlap
    assert (tmp_path / "london_originals" / "LICENSE.md").read_bytes() == b"made up"
    before = contents(tmp_path)
    for work in ("gray", "landmarks", "fetch"):
        monkeypatch.setattr(london, work, lambda *a: pytest.fail("worked again"))
    run("london", "--root", tmp_path, "--no-progress")
    again = capsys.readouterr().out
    assert "already there and verified" in again and again.split("\n", 1)[1] == first.split("\n", 1)[1]
    assert contents(tmp_path) == before
    run("list", "--root", tmp_path)
    listed = capsys.readouterr().out
    assert listed.count(f"ready in {tmp_path / 'london'}\n") == 1 and "london_people" in listed


def test_without_the_data_the_list_and_both_names_say_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TVF_DATA", str(tmp_path))
    run("list", "--root", tmp_path)
    assert "not here yet: python -m data_download london\n" in capsys.readouterr().out
    for name in ("london", "london_people"):
        with pytest.raises(FileNotFoundError, match="get it with: python -m data_download london$"):
            data.load(name, "test")


@pytest.mark.parametrize("name", ["images.npy", "landmarks.npy", "people_val.csv"])
def test_a_damaged_prepared_file_is_noticed_and_made_again(name, few, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path / "london")
    content = bytearray(before[name])
    content[-3] ^= 1
    (tmp_path / "london" / name).write_bytes(content)
    _, what = london.prepare(tmp_path, progress=False)
    assert what == "0 files fetched, 22 were there; 14 of 14 images prepared"
    assert f"damaged ({name}), prepared again" in capsys.readouterr().err
    assert contents(tmp_path / "london") == before


def test_an_interrupted_preparation_continues(few, whole, tmp_path, monkeypatch):
    made, gray = [], london.gray

    def some(file):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(file)
        return gray(file)

    with monkeypatch.context() as patch:
        patch.setattr(london, "gray", some)
        assert refused("london", "--root", tmp_path, "--no-progress").endswith("the same command continues")
    assert not (tmp_path / "london").exists()
    _, what = london.prepare(tmp_path, progress=False)
    assert what == "0 files fetched, 22 were there; 9 of 14 images prepared"
    assert contents(tmp_path / "london") == contents(whole / "london")


MIRROR = {  # damage of a file in the mirror, words of the message
    "missing photograph": ("smiling_front/012_08.jpg", lambda f: f.unlink(), ["is missing in the mirror"]),
    "missing landmarks": ("neutral_front/012_03.tem", lambda f: f.unlink(), ["is missing in the mirror"]),
    "a photograph cut short": (
        "neutral_front/012_03.jpg",
        lambda f: f.write_bytes(f.read_bytes()[:-500]),
        ["is damaged: replace it"],
    ),
    "the photograph of another person": (
        "neutral_front/012_03.jpg",
        lambda f: f.write_bytes(f.with_name("005_03.jpg").read_bytes()),
        ["is damaged: replace it"],
    ),
    "other landmarks": (
        "neutral_front/012_03.tem",
        lambda f: f.write_text(f.read_text().replace("565", "566")),
        ["is damaged: replace it"],
    ),
}


@pytest.mark.parametrize("case", MIRROR)
def test_a_wrong_file_in_the_mirror_is_named_in_one_line(case, few, tmp_path, monkeypatch):
    path, damage, words = MIRROR[case]
    shutil.copytree(few, tmp_path / "mirror")
    file = tmp_path / "mirror" / "london" / path
    damage(file)
    monkeypatch.setenv("TVF_DATA_MIRROR", str(tmp_path / "mirror"))
    told = refused("london", "--root", tmp_path / "root", "--no-progress")
    assert str(file) in told and all(word in told for word in words)
    assert not (tmp_path / "root" / "london").exists()
    shutil.copy(few / "london" / path, file)
    _, what = london.prepare(tmp_path / "root", progress=False)
    assert what.endswith("14 of 14 images prepared") and not what.startswith("22 files fetched")


def test_a_damaged_original_is_fetched_anew(few, whole, tmp_path, capsys):
    shutil.copytree(whole / "london_originals", tmp_path / "london_originals")
    file = tmp_path / "london_originals" / "030_03.tem"
    good = file.read_bytes()
    file.write_text("nothing")
    _, what = london.prepare(tmp_path, progress=False)
    assert what.startswith("1 files fetched, 21 were there") and file.read_bytes() == good
    told = capsys.readouterr().err
    assert f"{file} is damaged" in told and told.count("\n") == 1
    assert contents(tmp_path / "london") == contents(whole / "london")


def saved(image):
    return lambda file: image.save(file, "JPEG")


NO_PHOTOGRAPH = {
    "another size": (saved(Image.new("RGB", (1350, 1349))), "1350 x 1349 pixels"),
    "no image": (lambda file: file.write_bytes(b"\xff\xd8 not a JPEG"), "cannot identify"),
    "cut short": (
        lambda file: (
            saved(photograph(0))(file),
            file.write_bytes(file.read_bytes()[:30000]),
        ),
        "truncated",
    ),
    "nothing": (lambda file: None, "No such file"),
}


@pytest.mark.parametrize("case", NO_PHOTOGRAPH)
def test_what_is_no_photograph_of_the_set_is_named_in_one_line(case, tmp_path):
    make, words = NO_PHOTOGRAPH[case]
    make(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg: not a photograph of the set") as told:
        london.gray(tmp_path / "a.jpg")
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"landmarks\n1 2\n",
        b"2\n1 2\n3 4\n",
        tem(1).encode().replace(b"\t632.0", b"\t632.0\t1.0"),
        tem(1).encode().replace(b"565.0", b"left"),
        tem(1).encode()[:900],
        "189\n½ 2\n".encode(),
    ],
)
def test_what_are_no_landmarks_of_the_set_is_named_in_one_line(content, tmp_path):
    (tmp_path / "a.tem").write_bytes(content)
    with pytest.raises(ValueError, match="a.tem: not the 189 landmarks") as told:
        london.landmarks(tmp_path / "a.tem")
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The 102 real persons: as ``make data`` has prepared them with this code, else from the mirror."""
    if same_recipe(data_root() / "london", london.recipe()):
        return data_root() / "london"
    folder = os.environ.get("TVF_DATA_MIRROR")
    if not folder or not (Path(folder) / "london").is_dir():
        pytest.skip("TVF_DATA_MIRROR does not name a folder with london/")
    return london.prepare(tmp_path_factory.mktemp("real"), progress=False)[0]


def of(folder: Path, split: str, listing: str) -> data.PairData:
    return data.PairData("london", split, **prepared.read(folder, split, listing))


def test_the_real_ones_are_counted_and_are_those_of_the_stored_results(real):
    assert cli.counts(real) == (
        "204 images of 256 x 256; 160/20/24 ordered pairs (train/val/test); "
        "people: 6320/90/132 ordered pairs (train/val/test)"
    )
    for listing, split in itertools.product(("pairs", "people"), ("train", "val", "test")):
        # Weights and results that come with the project hold this hash of the images, landmarks and pairs.
        assert of(real, split, listing).fingerprint() == "691131de2e2ea0ed"


def test_real_landmarks_are_those_of_the_files_and_lie_inside(real):
    part = of(real, "test", "people")
    # (y - 158 + 0.5) / 4 - 0.5, (x - 163 + 0.5) / 4 - 0.5 of x and y as the files have them
    by_hand = {
        ("001", 0): (118.125, 100.125),  # 565.0 632.0
        ("001", 1): (116.125, 153.375),  # 778.0 624.0
        ("173", 0): (108.625, 101.375),  # 570.0 594.0
        ("173", 188): (142.875, 179.125),  # 881.0 731.0
    }
    small = in_size(part, 128)
    for (person, number), point in by_hand.items():
        k = part.names.index(f"{person}_neutral")
        np.testing.assert_allclose(part.landmarks[k, number], point, atol=1e-4)
        halved = [(k + 0.5) / 2 - 0.5 for k in point]
        np.testing.assert_allclose(small.landmarks[k, number], halved, atol=1e-4)
    for size, points in ((256, part.landmarks), (128, small.landmarks)):
        assert points.shape == (102, 189, 2) and (points > 0).all() and (points < size - 1).all()
    low, high = part.landmarks.min((0, 1)) + 0.5, 256 - (part.landmarks.max((0, 1)) + 0.5)
    assert min(*low, *high) == pytest.approx((54 + 0.5) / 4)  # 54 pixels of the photograph above and below
    assert low[0] == pytest.approx(high[0], abs=0.3)


def test_real_images_are_the_cut_gray_photographs(real):
    part, folder = of(real, "test", "pairs"), real.with_name("london_originals")
    if not folder.is_dir():
        pytest.skip("the photographs are not beside the prepared images")
    for person, expression, number in (("001", "neutral", "03"), ("173", "smiling", "08")):
        with Image.open(folder / f"{person}_{number}.jpg") as file:
            luma = np.asarray(file.convert("L")).astype(float)[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
        expected = luma.reshape(256, 4, 256, 4).sum((1, 3)) / 16
        image = part.images[part.names.index(f"{person}_{expression}")]
        assert np.abs(image - expected).max() < 1.6 and np.abs(image - expected).mean() < 0.5


def test_real_landmarks_lie_on_the_faces(real):
    """A pupil is darker than the cheek below it, in nearly every face; with axes swapped it would not be."""
    part, darker = of(real, "test", "people"), []
    for image, points in zip(part.images.astype(float), part.landmarks[:, [0, 1]].round().astype(int)):
        for row, column in points:
            pupil, cheek = (image[r - 1 : r + 2, column - 1 : column + 2].mean() for r in (row, row + 25))
            darker.append(pupil < cheek - 20)
    assert np.mean(darker) > 0.95, np.mean(darker)
