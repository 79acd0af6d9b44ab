"""Prepared data sets on disk, their loading, and batches that are loaded ahead."""

import errno
import os

import nibabel as nib
import numpy as np
import pytest
import torch

from data_download.__main__ import before
from data_download.building import Building, same_recipe
from tvf_core import data, fields
from tvf_core.data import prepared
from tvf_core.data.loading import default_workers


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["toy2d", "toy3d", "toy_plain"])
def test_loaded_batches_are_the_pairs_in_order(name, workers, toy_data):
    part = data.load(name, "train")
    steps = [[(0, 1), (3, 2)], [(1, 0)], [(2, 3), (0, 3)]]
    loaded = list(data.batches(part, iter(steps), workers=workers))
    assert len(loaded) == 3
    for batch, pairs in zip(loaded, steps):
        expected = part.stack(pairs)
        assert batch.keys() == expected.keys()
        for key, value in expected.items():
            assert batch[key].dtype == value.dtype and torch.equal(batch[key], value)


def test_loading_does_not_touch_the_generator_of_the_caller(toy_data):
    part = data.load("toy2d", "train")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(data.batches(part, [[(0, 1)]]))
    assert torch.equal(torch.rand(3), expected)


def test_only_gpus_get_loading_processes():
    assert default_workers("cpu") == default_workers("mps") == 0
    assert 0 <= default_workers("cuda") <= 4
    assert default_workers("cuda", 10**15) == 0  # too large for the shared memory


@pytest.mark.parametrize("axes", ["LIA", "PSL", "SRA", "RAS"])
def test_upright_turns_volumes_as_nibabel_does_and_fields_with_them(axes):
    shape = (7, 8, 9)
    part = data.PairData("x", "test", np.zeros((1, *shape), np.uint8), [], ["a"], axes=axes)
    rng = np.random.default_rng(0)
    volume = rng.random(shape)
    expected = nib.apply_orientation(volume, nib.orientations.axcodes2ornt(axes))
    np.testing.assert_array_equal(part.upright(volume), expected)
    image, u = torch.tensor(rng.random((1, 1, *shape))), torch.tensor(rng.normal(0, 0.7, (1, 3, *shape)))
    turned = fields.warp(part.upright(image), part.upright(u, vectors=True))
    assert torch.allclose(part.upright(fields.warp(image, u)), turned, atol=1e-9)


@pytest.fixture
def built(tmp_path):
    """``built(folder)``: a tiny prepared data set of three labelled and one unlabelled image, unfinished."""
    rng = np.random.default_rng(1)
    images, labels = rng.random((4, 5, 6)), rng.integers(0, 3, (3, 5, 6))

    def make(recipe=0):
        building = Building(tmp_path / "tiny", {"recipe": recipe}, list("abcd"), (5, 6), 3)
        return building, images, labels

    return make


def put(building, images, labels, numbers):
    for k in numbers:
        building.put(k, images[k], labels[k] if k < 3 else None)


def finish(building):
    building.finish(
        "tiny",
        "tiny",
        {"train": [("a", "b"), ("b", "a")], "val": [("c", "a")], "test": [("d", "a")]},
        {1: "one", 2: "two"},
    )


def test_a_prepared_data_set_reads_as_it_was_written(built, tmp_path):
    building, images, labels = built()
    put(building, images, labels, range(4))
    assert not (tmp_path / "tiny").exists()
    finish(building)
    part = data.PairData("tiny", "val", **prepared.read(tmp_path / "tiny", "val"))
    np.testing.assert_array_equal(part.images, np.round(255 * images))
    np.testing.assert_array_equal(part.labels, labels)
    assert (part.pairs, part.names, part.label_names) == ([(2, 0)], list("abcd"), {1: "one", 2: "two"})
    unlabelled = data.PairData("tiny", "test", **prepared.read(tmp_path / "tiny", "test"))
    assert (
        unlabelled.labels is None
        and unlabelled.label_numbers == ()
        and set(unlabelled[0]) == {"moving", "fixed"}
    )
    assert prepared.damaged(tmp_path / "tiny") == []
    assert not list(tmp_path.glob(".*part"))
    with pytest.raises(FileNotFoundError, match="train, val"):
        (tmp_path / "tiny" / "pairs_test.csv").unlink()
        prepared.read(tmp_path / "tiny", "test")


def test_the_labels_that_count_are_the_named_ones_and_background():
    images = labels = np.zeros((1, 4, 5), np.uint8)
    named = data.PairData("x", "test", images, [(0, 0)], ["a"], labels, {90: "far", 7: "near"})
    assert named.label_numbers == (0, 7, 90)


def test_an_interrupted_preparation_keeps_what_it_has_unless_the_recipe_changed(built):
    building, images, labels = built()
    put(building, images, labels, (0, 2))
    again, *_ = built()
    assert again.missing() == [1, 3]
    with pytest.raises(ValueError, match="2 images are not written"):
        finish(again)
    put(again, images, labels, (1, 3))
    finish(again)
    other, *_ = built(recipe=1)
    assert other.missing() == [0, 1, 2, 3]  # the finished set stays until this one is finished
    assert same_recipe(other.folder, {"recipe": 0}) and not same_recipe(other.folder, {"recipe": 1})
    put(other, 1 - images, labels, range(4))
    finish(other)
    assert same_recipe(other.folder, {"recipe": 1})
    np.testing.assert_array_equal(np.load(other.folder / "images.npy"), np.round(255 * (1 - images)))


def test_labels_beyond_a_byte_are_built_in_a_type_that_holds_them_or_refused(tmp_path):
    labels = np.array([[[0, 1000], [2035, 5]], [[5, 5], [0, 3]]])
    images = np.zeros((2, 2, 2))

    def build(label_type, maps=labels, images=images):
        building = Building(tmp_path / "x", {"recipe": 0}, ["a", "b"], (2, 2), 2, label_type)
        for k in range(2):
            building.put(k, images[k], maps[k])
        building.finish(
            "x", "x", {"train": [("a", "b")]}, {1000: "left", 2035: "right", 5: "stem", 3: "rest"}
        )
        return data.load(tmp_path / "x", "train")

    part = build("uint16")
    assert part.labels.dtype == np.uint16
    np.testing.assert_array_equal(part.labels, labels)
    assert part[0]["moving_labels"][0].tolist() == labels[0].tolist()
    for arguments, words in (
        (("uint8",), "labels go up to 2035, too large for uint8.*label_type='uint16'"),
        (("int16",), "unsigned"),
        (("uint16", -labels), "labels from -2035 to 0"),
        (("uint16", labels + 0.5), "whole numbers"),
        (("uint16", labels, np.full((2, 2, 2), 80, np.int16)), "int16 with intensities from 80 to 80"),
        (("uint16", labels, np.full((2, 2, 2), 80.0)), "intensities from 80 to 80"),
        (("uint16", labels, np.full((2, 2, 2), np.nan)), "NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            build(*arguments)
    slightly = build("uint16", labels, np.array([np.full((2, 2), -0.01), np.full((2, 2), 1.02)]))
    assert slightly.images.tolist() == [[[0, 0], [0, 0]], [[255, 255], [255, 255]]]


def test_a_full_disk_in_the_middle_is_told_and_loses_nothing(built, monkeypatch):
    building, images, labels = built()
    put(building, images, labels, (0, 1))
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsync", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(OSError, match="is full.*--root") as told:
            put(building, images, labels, (2,))
    assert "\n" not in str(told.value)
    again, *_ = built()
    assert again.missing() == [2, 3]


def test_the_fingerprint_follows_the_content_not_the_recipe(built, tmp_path):
    prints = []
    for recipe, change in ((0, 0), (1, 0), (2, 1)):
        building, images, labels = built(recipe)
        put(building, np.abs(change - images), labels, range(4))
        finish(building)
        prints.append(prepared.read(tmp_path / "tiny", "train")["origin"])
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda f: (f / "images.npy").write_bytes((f / "images.npy").read_bytes()[:-9]), "tiny"),
        (lambda f: (f / "images.npy").write_bytes(b"not an array"), "tiny"),
        (lambda f: np.save(f / "labels.npy", np.zeros((3, 4, 4), np.uint8)), "do not fit"),
    ],
)
def test_a_damaged_prepared_data_set_says_how_to_make_it_again(damage, told, built, tmp_path):
    building, images, labels = built()
    put(building, images, labels, range(4))
    finish(building)
    damage(tmp_path / "tiny")
    with pytest.raises(ValueError, match="python -m data_download tiny") as error:
        prepared.read(tmp_path / "tiny", "train")
    assert told in str(error.value)
    assert prepared.damaged(tmp_path / "tiny")


@pytest.mark.parametrize("name", ["anatomies", "anatomies_1mm", "london", "london_people", "rafd", "oasis"])
def test_data_that_are_not_prepared_say_how_to_get_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TVF_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"{name} is not in .*python -m data_download {name.split('_')[0]}"
    ):
        data.load(name, "test")


def test_a_split_without_pairs_has_no_overlap_to_tell(tmp_path):
    images = np.zeros((2, 4, 5), np.uint8)
    folder = prepared.write(tmp_path / "x", images, {"val": [], "test": [(0, 1)]}, labels=images + 1)
    assert before(folder, "val", False) == "val: no pairs"
    assert before(folder, "test", False).endswith("before registration 1.000 ± 0.000")
