"""OASIS: three layouts, one result; orientation from the anatomy; wrong folders; on stand-ins of one form."""

import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import standins

from data_download import oasis
from data_download import oasis_layouts as layouts
from tvf_core import data
from tvf_core.data import prepared

SUBJECTS = [1, 2, 4, 438, 439, 440]  # numbers with a gap, as OASIS has them
MAKERS = {
    "neurite": lambda folder: standins.neurite(folder, SUBJECTS, tests=3),
    "learn2reg": lambda folder: standins.learn2reg(folder, SUBJECTS, tests=3),
    "pickles": lambda folder: standins.pickles(folder, SUBJECTS),
}
LIKE = {
    "neurite": "OASIS_{:04d}",
    "pickles": "OASIS_{:04d}",
    "learn2reg": {
        1: "OASIS_0001",
        2: "OASIS_0002",
        4: "OASIS_0003",
        438: "OASIS_0395",
        439: "OASIS_0396",
        440: "OASIS_0397",
    },
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    return {layout: make(folder / layout) for layout, make in MAKERS.items()}


@pytest.fixture(scope="module")
def roots(sources, tmp_path_factory):
    roots = {}
    for layout, source in sources.items():
        roots[layout] = tmp_path_factory.mktemp(f"root-{layout}")
        oasis.prepare(source, roots[layout], partial=True, progress=False, workers=1)
    return roots


def subject_name(layout, subject):
    like = LIKE[layout]
    return like.format(subject) if isinstance(like, str) else like[subject]


def test_numbers_of_the_whole_release_are_those_of_the_paper_and_the_challenge():
    gaps = [n for n in range(1, 438) if n % 10][:394]  # any 394 numbers below the validation subjects
    for layout, numbers in (("neurite", [*gaps, *range(438, 458)]), ("learn2reg", range(1, 415))):
        tests = range(1, 40) if layout == "neurite" else range(415, 454)
        training, validation = layouts.split(layout, numbers)
        pairs = layouts.pairs(layout, numbers, tests)
        assert (len(training), len(validation)) == (394, 20)
        assert {part: len(listing) for part, listing in pairs.items()} == {
            "train": 394 * 393,
            "val": 19,
            "test": 38,
        }
        assert not set(itertools.chain(*pairs["train"])) & set(itertools.chain(*pairs["val"]))
    val = layouts.pairs("neurite", [*gaps, *range(438, 458)])["val"]
    assert val == [(f"OASIS_{k + 1:04d}", f"OASIS_{k:04d}") for k in range(438, 457)]  # moving, fixed
    assert layouts.pairs("learn2reg", range(1, 415), range(415, 454))["val"][0] == (
        "OASIS_0396",
        "OASIS_0395",
    )
    assert layouts.pairs("learn2reg", range(1, 415), range(415, 454))["test"][-1] == (
        "OASIS_0453",
        "OASIS_0452",
    )


@pytest.mark.parametrize("layout", MAKERS)
def test_every_layout_gives_the_same_images_labels_and_pairs(layout, roots, monkeypatch):
    monkeypatch.setenv("TVF_DATA", str(roots[layout]))
    part = data.load("oasis", "val")
    assert part.axes == "LIA" and part.label_names == oasis.LABELS and len(part.label_names) == 35
    for subject in SUBJECTS:
        image, labels = standins.brain(subject)
        k = part.names.index(subject_name(layout, subject))
        np.testing.assert_array_equal(part.images[k], np.round(255 * image))
        np.testing.assert_array_equal(part.labels[k], labels)
    name = lambda s: subject_name(layout, s)  # noqa: E731
    assert [part.pair_name(k) for k in range(len(part))] == [
        f"{name(439)}->{name(438)}",
        f"{name(440)}->{name(439)}",
    ]
    train = data.load("oasis", "train")
    assert {train.pair_name(k) for k in range(len(train))} == {
        f"{name(a)}->{name(b)}" for a, b in itertools.permutations((1, 2, 4), 2)
    }
    if layout == "pickles":
        with pytest.raises(FileNotFoundError, match="no pairs for the split 'test'"):
            data.load("oasis", "test")
    else:
        test = data.load("oasis", "test")
        assert test.labels is None and len(test) == 2
        np.testing.assert_array_equal(test.images[test.pairs[0][1]], np.round(255 * standins.brain(1001)[0]))


@pytest.mark.parametrize("layout", MAKERS)
def test_what_was_found_is_written_down(layout, roots):
    known = prepared.about(roots[layout] / "oasis")
    assert known["layout"] == layout and known["orientation_found"] == {"learn2reg": "LAS"}.get(layout, "LIA")
    assert known.get("orientation_in_headers", "none") == {"learn2reg": "RAS"}.get(layout, "none")
    told = oasis.subject_lists(roots[layout] / "oasis")
    assert (
        "train, 3 subjects" in told
        and "val, 3 subjects" in told
        and subject_name(layout, 439).removeprefix("OASIS_") in told
    )


def test_left_is_left_in_the_prepared_arrays(roots, monkeypatch):
    monkeypatch.setenv("TVF_DATA", str(roots["learn2reg"]))
    part = data.load("oasis", "val")
    labels = part.upright(part.labels[0]).numpy()
    middle = lambda k: np.argwhere(labels == k).mean(0)  # noqa: E731
    for left in [*range(1, 11), *range(14, 20)]:
        right = left + (19 if left <= 10 else 16)
        assert (
            oasis.LABELS[left][2:] == oasis.LABELS[right][2:] and middle(left)[0] < middle(right)[0]
        )  # upright: axis 0 to the right
    assert (
        middle(8)[1] > middle(6)[1] and middle(7)[2] > middle(13)[2]
    )  # caudate before cerebellum, thalamus above brain stem


@pytest.mark.parametrize(
    "axes",
    ["".join(c) for order in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*order)],
)
def test_every_orientation_is_told_and_undone(axes):
    labels = standins.brain(2)[1]
    there = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LIA"), nib.orientations.axcodes2ornt(axes)
    )
    turned = nib.orientations.apply_orientation(labels, there)
    assert oasis.orientation(turned) == axes
    np.testing.assert_array_equal(oasis.turned(turned, axes), labels)


def test_a_second_call_does_nothing_and_an_interrupted_one_continues(sources, tmp_path, monkeypatch):
    put, done = oasis._put, []

    def some(building, axes, shape, partial, job):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(job)
        put(building, axes, shape, partial, job)

    with monkeypatch.context() as patch:
        patch.setattr(oasis, "_put", some)
        with pytest.raises(KeyboardInterrupt):
            oasis.prepare(sources["neurite"], tmp_path, partial=True, progress=False, workers=1)
    assert not (tmp_path / "oasis").exists()
    counted = []
    with monkeypatch.context() as patch:
        patch.setattr(oasis, "_put", lambda *a: (counted.append(a), put(*a)))
        oasis.prepare(sources["neurite"], tmp_path, partial=True, progress=False, workers=1)
        assert len(counted) == len(SUBJECTS) + 3 - 4
        oasis.prepare(sources["neurite"], tmp_path, partial=True, progress=False, workers=1)
        assert len(counted) == len(SUBJECTS) + 3 - 4


def test_several_processes_write_the_same(sources, roots, tmp_path):
    oasis.prepare(sources["pickles"], tmp_path, partial=True, progress=False, workers=2)
    assert (
        prepared.about(tmp_path / "oasis")["sha256"] == prepared.about(roots["pickles"] / "oasis")["sha256"]
    )


def test_a_pickle_that_runs_code_is_refused(sources, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sources["pickles"], copy)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    (copy / "All" / "p_0002.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="p_0002.pkl: refused, this pickle would run code"):
        oasis.prepare(copy, tmp_path / "root", partial=True, progress=False, workers=1)
    assert not marker.exists() and not (tmp_path / "root" / "oasis").exists()


def test_without_partial_the_whole_release_is_asked_for(sources, tmp_path):
    for layout, told in (
        ("neurite", "17 validation subjects are missing"),
        ("learn2reg", "17 validation subjects are missing"),
        ("pickles", "17 of 19 pairs are missing"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            oasis.prepare(sources[layout], tmp_path, progress=False)
        assert "--partial" in str(error.value) and "\n" not in str(error.value)


SCAN = "OASIS_OAS1_0002_MR1"


def change(name, how, folder=SCAN):
    """A damage: rewrite one NIfTI file of the neurite stand-in."""

    def damage(source: Path):
        file = source / folder / name
        image = nib.load(file)
        array, affine = how(np.asarray(image.dataobj).copy(), image.affine.copy())
        file.unlink()
        nib.save(nib.Nifti1Image(array, affine), file)

    return damage


def both(how):
    def damage(source):
        for name in ("aligned_norm.nii.gz", "aligned_seg35.nii.gz"):
            change(name, how)(source)

    return damage


def values(old, new):
    return change(
        "aligned_seg35.nii.gz",
        lambda a, affine: (
            np.where(a == old, new, a).astype(np.float32 if isinstance(new, float) else np.int16),
            affine,
        ),
    )


def instead(make):
    def damage(source):
        shutil.rmtree(source)
        make(source)

    return damage


def synthseg(folder):
    for k in range(3):
        standins.save_nifti(folder / f"training_seg_{k:02d}.nii.gz", np.zeros((4, 4, 4), np.uint8), np.eye(4))


def only_norm(source):
    for file in source.rglob("aligned_*"):
        file.rename(file.with_name(file.name.replace("aligned_norm", "norm").replace("aligned_seg", "seg")))


def mirrored_header(a, affine):
    affine[0] *= -1
    return a, affine


NORM = "aligned_norm.nii.gz"
WRONG = {
    "no such thing": (instead(lambda f: f.mkdir()), ["no release of OASIS", "holds no files"]),
    "RaFD": (
        instead(lambda f: standins.rafd(f, 60, standins.MODELS[:1], cameras_too=False)),
        ["looks like RaFD"],
    ),
    "label maps of SynthSeg": (instead(synthseg), ["without images", "SynthSeg"]),
    "not aligned": (only_norm, ["norm.nii.gz", "aligned_norm.nii.gz"]),
    "flipped scan": (
        both(lambda a, affine: (a[::-1], affine)),
        ["OASIS_0002", "flipped", "RIA", "others LIA"],
    ),
    "turned scan": (
        both(lambda a, affine: (a[:, ::-1, ::-1], affine)),
        ["OASIS_0002", "flipped or rotated", "LSP"],
    ),
    "other shape": (
        both(lambda a, affine: (a[:-2], affine)),
        ["OASIS_0002", "shape (18, 24, 28)", "others (20, 24, 28)"],
    ),
    "labels of another shape": (
        change("aligned_seg35.nii.gz", lambda a, affine: (a[:-2], affine)),
        ["OASIS_0002", "differ in shape"],
    ),
    "labels of another place": (
        change("aligned_seg35.nii.gz", mirrored_header),
        ["OASIS_0002", "headers", "differently"],
    ),
    "FreeSurfer's numbers": (values(20, 41), ["OASIS_0002", "41", "FreeSurfer", "aligned_seg35"]),
    "four labels": (
        change("aligned_seg35.nii.gz", lambda a, affine: (np.minimum(a, 4), affine)),
        ["OASIS_0002", "seg4", "aligned_seg35"],
    ),
    "resampled labels": (values(7, 7.5), ["OASIS_0002", "7.5", "whole numbers"]),
    "0 to 255": (
        change(NORM, lambda a, affine: (255 * a, affine)),
        ["OASIS_0002", "intensities", "[0, 1]", "normalised"],
    ),
    "negative": (change(NORM, lambda a, affine: (a - 0.5, affine)), ["OASIS_0002", "intensities from -0.5"]),
    "not finite": (
        change(NORM, lambda a, affine: (np.where(a > 0.7, np.float32(np.nan), a), affine)),
        ["OASIS_0002", "NaN"],
    ),
    "empty image": (change(NORM, lambda a, affine: (0 * a, affine)), ["OASIS_0002", "all zero"]),
    "cut short": (
        lambda f: (f / SCAN / NORM).write_bytes((f / SCAN / NORM).read_bytes()[:500]),
        [SCAN, "cannot be read as NIfTI"],
    ),
    "two releases": (
        lambda f: standins.learn2reg(f / "newer", SUBJECTS),
        ["neurite and learn2reg", "one of them"],
    ),
    "too few": (instead(lambda f: standins.neurite(f, [1, 438, 439])), ["3 subjects", "two for training"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_is_named_in_one_line(wrong, sources, tmp_path):
    damage, told = WRONG[wrong]
    copy = tmp_path / "copy"
    shutil.copytree(sources["neurite"], copy)
    damage(copy)
    with pytest.raises((ValueError, OSError)) as error:
        oasis.prepare(copy, tmp_path / "root", partial=True, progress=False, workers=1)
    assert all(part in str(error.value) for part in told) and "\n" not in str(error.value), str(error.value)
    assert not (tmp_path / "root" / "oasis").exists()


@pytest.mark.parametrize("name", ["aligned_seg35.nii.gz", NORM])
def test_a_scan_without_labels_or_labels_without_a_scan_are_named(name, sources, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(sources["neurite"], copy)
    (copy / SCAN / name).unlink()
    with pytest.raises(ValueError, match=f"OASIS_0002: has no {name}.*--partial leaves such subjects out"):
        oasis.prepare(copy, tmp_path / "root", progress=False)
    oasis.prepare(copy, tmp_path / "root", partial=True, progress=False, workers=1)
    assert f"left out: OASIS_0002 has no {name}" in capsys.readouterr().err
    assert "OASIS_0002" not in prepared.about(tmp_path / "root" / "oasis")["names"]


@pytest.mark.parametrize(
    "how",
    [
        "axes of length 1",
        "a little beyond 1",
        "headers a millimetre apart",
        "stray folder and image",
        "fixed first",
    ],
)
def test_harmless_oddities_of_a_release_do_not_stop_it(how, sources, roots, tmp_path):
    layout = "pickles" if how == "fixed first" else "neurite"
    copy = tmp_path / "copy"
    shutil.copytree(sources[layout], copy)
    if how == "axes of length 1":
        both(lambda a, affine: (a[..., None], affine))(copy)
    elif how == "a little beyond 1":
        change(
            NORM,
            lambda a, affine: (
                np.where(a == a.max(), np.float32(1.03), np.where(a == 0, np.float32(-0.02), a)),
                affine,
            ),
        )(copy)
    elif how == "headers a millimetre apart":
        change("aligned_seg35.nii.gz", lambda a, affine: (a, affine + np.eye(4, k=3)))(copy)
    elif how == "stray folder and image":
        (copy / "OASIS_OAS1_0500_MR1").mkdir()
        (copy / "OASIS_OAS1_0500_MR1" / ".DS_Store").write_bytes(b"")
        shutil.copy(copy / "img0001.nii.gz", copy / "img0438.nii.gz")
    else:
        for file in (copy / "Test").iterdir():
            x, y, x_labels, y_labels = pickle.loads(file.read_bytes())
            standins.write_pickle(file, y, x, y_labels, x_labels)
    oasis.prepare(copy, tmp_path / "root", partial=True, progress=False, workers=1)
    for name in ("images.npy", "labels.npy"):
        if how != "a little beyond 1" or name == "labels.npy":
            np.testing.assert_array_equal(
                np.load(tmp_path / "root" / "oasis" / name), np.load(roots[layout] / "oasis" / name)
            )


def test_a_subject_that_differs_between_two_pairs_is_named(sources, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(sources["pickles"], copy)
    (x, x_labels), (y, y_labels) = (
        standins.brain(5),
        standins.brain(438),
    )  # 439 as moving is another person here
    standins.write_pickle(copy / "Test" / "p_0438_0439.pkl", x, y, x_labels, y_labels)
    with pytest.raises(ValueError, match="OASIS_0439: not the same in"):
        oasis.prepare(copy, tmp_path / "root", partial=True, progress=False, workers=1)


def test_the_dataset_json_of_the_newer_release_is_as_documented(sources):
    known = json.loads((sources["learn2reg"] / "OASIS_dataset.json").read_text())
    assert {"name", "training", "registration_val", "registration_test", "tensorImageShape"} <= set(known)
    shape = nib.load(next((sources["learn2reg"] / "imagesTr").iterdir())).shape
    assert known["tensorImageShape"] == {"0": list(shape)} and shape == (
        20,
        28,
        24,
    )  # left-right, back-front, down-up


def test_released_order_of_a_pair_file_is_moving_first(sources):
    x, y, x_labels, y_labels = pickle.loads((sources["pickles"] / "Test" / "p_0438_0439.pkl").read_bytes())
    np.testing.assert_array_equal(x, standins.brain(439)[0])
    assert x.dtype == np.float32 and x_labels.dtype == np.uint8
