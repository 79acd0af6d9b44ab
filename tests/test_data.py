"""The embedded data: protocol of the pairs, determinism, and known maps."""

import numpy as np
import pytest
import torch

from tvf_core import data, fields, metrics
from tvf_core.data import demo_brains, demo_faces

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def faces():
    return {split: data.load("demo_faces", split) for split in SPLITS}


@pytest.fixture(scope="module")
def brains():
    return {split: data.load("demo_brains", split) for split in SPLITS}


def subjects(part):
    return {part.names[k].split("_")[0] for pair in part.pairs for k in pair}


def test_faces_have_the_papers_numbers_of_pairs(faces):
    assert [len(faces[split]) for split in SPLITS] == [2968, 392, 392]
    assert [len(subjects(faces[split])) for split in SPLITS] == [53, 7, 7]


@pytest.mark.parametrize("name", ["faces", "brains"])
def test_no_subject_is_in_two_splits(name, request):
    parts = request.getfixturevalue(name)
    found = [subjects(parts[split]) for split in SPLITS]
    assert sum(map(len, found)) == len(set().union(*found))


@pytest.mark.parametrize("name", ["faces", "brains"])
def test_every_pair_is_there_once_in_each_direction(name, request):
    for part in request.getfixturevalue(name).values():
        pairs = set(part.pairs)
        assert len(pairs) == len(part.pairs)
        assert pairs == {(fixed, moving) for moving, fixed in pairs}


def test_every_pair_of_faces_is_one_subject_with_two_expressions(faces):
    for part in faces.values():
        for moving, fixed in part.pairs:
            (s, a), (t, b) = part.names[moving].split("_"), part.names[fixed].split("_")
            assert s == t and a != b


def test_stored_faces_are_the_rendered_ones_under_their_names(faces):
    part = faces["test"]
    for k in (0, 7, 8, 535):
        subject, expression = part.names[k].split("_")
        expected = demo_faces.render(int(subject[1:]), expression, 128)
        np.testing.assert_allclose(part.images[k] / 255, expected, atol=0.5 / 255 + 1e-6)


def test_a_face_is_the_same_every_time_and_differs_between_expressions_and_subjects():
    expressions = {e: demo_faces.render(3, e, 64) for e in demo_faces.EXPRESSIONS}
    for e, image in expressions.items():
        np.testing.assert_array_equal(image, demo_faces.render(3, e, 64))
        assert 0 <= image.min() and image.max() <= 1
    images = np.stack(list(expressions.values()))
    apart = np.abs(images[:, None] - images[None]).mean((2, 3)) + np.eye(len(images))
    assert apart.min() > 0.003  # more than the noise
    other = np.abs(demo_faces.render(4, "happy", 64) - expressions["happy"]).mean()
    assert other > np.median(apart)


def test_a_small_face_is_the_area_average_of_the_large_one():
    large, small = demo_faces.render(5, "sad", 256), demo_faces.render(5, "sad", 64)
    # The tolerance covers clipping before or after the averaging.
    np.testing.assert_allclose(small, large.reshape(64, 4, 64, 4).mean((1, 3)), atol=2e-3)


def test_items_and_batches_hold_the_images_of_their_pair(faces, brains):
    for part in (faces["val"], brains["val"]):
        moving, fixed = part.pairs[1]
        item, batch = part[1], part.batch([0, 1])
        np.testing.assert_array_equal((255 * item["moving"][0]).round().numpy(), part.images[moving])
        np.testing.assert_array_equal((255 * item["fixed"][0]).round().numpy(), part.images[fixed])
        for key, value in item.items():
            assert torch.equal(batch[key][1], value)
        if part.labels is not None:
            np.testing.assert_array_equal(item["moving_labels"][0].numpy(), part.labels[moving])
            np.testing.assert_array_equal(item["fixed_labels"][0].numpy(), part.labels[fixed])
        assert part.pair_name(1) == f"{part.names[moving]}->{part.names[fixed]}"


def test_a_brain_is_the_same_every_time_and_is_the_stored_one(brains):
    image, labels = demo_brains.make_subject(43)
    again, labels_again = demo_brains.make_subject(43)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    # Another number of threads may round the flow differently: a few voxels at borders may change.
    assert np.abs(brains["test"].images[43] / 255.0 - image).mean() < 1e-2
    assert (brains["test"].labels[43] == labels).mean() > 0.999


def test_every_brain_has_every_structure(brains):
    part = brains["train"]
    assert part.label_numbers == (0, *demo_brains.LABELS)
    for labels in part.labels:
        assert set(np.unique(labels)) == set(part.label_numbers)


def test_template_is_symmetric_in_its_named_sides():
    _, labels = demo_brains.template()
    for number, name in demo_brains.LABELS.items():
        where = np.argwhere(labels == number)[:, 0].mean()
        middle = (demo_brains.SHAPE[0] - 1) / 2
        # Axis 0 runs from left to right.
        assert (where < middle) == name.startswith("L ") or name == "brainstem"


@pytest.mark.parametrize("subject", [0, 49])
def test_true_maps_are_large_do_not_fold_and_invert(subject):
    there, back = (demo_brains.true_displacement(subject, inverse) for inverse in (False, True))
    assert there.norm(dim=1).max() > 3
    assert fields.jacobian_determinant(there).min() > 0
    assert fields.jacobian_determinant(back).min() > 0
    assert metrics.inverse_consistency_error(there, back).mean() < 0.02


def test_true_map_of_a_pair_aligns_its_labels(brains):
    part = brains["test"]
    moving, fixed = (part.names[k] for k in part.pairs[0])
    item = part.batch([0])
    u = demo_brains.true_pair_displacement(int(moving[1:]), int(fixed[1:]))

    def dice(displacement):
        warped = fields.warp_labels(item["moving_labels"], displacement)
        return metrics.dice(
            warped, item["fixed_labels"], item["moving_labels"], list(part.label_names)
        ).mean()

    before, after = dice(torch.zeros_like(u)), dice(u)
    assert before < 0.75 < 0.85 < after
    assert dice(-u) < before  # the opposite map does not align them


def test_a_subject_is_the_template_seen_through_its_true_map(brains):
    _, template = demo_brains.template()
    template, labels = (
        torch.tensor(x[None, None], dtype=torch.long) for x in (template, brains["train"].labels[5])
    )

    def agreement(displacement):
        warped = fields.warp_labels(template, displacement)
        return metrics.dice(warped, labels, template, list(demo_brains.LABELS)).mean()

    there = agreement(demo_brains.true_displacement(5))
    assert there > 0.9 > agreement(demo_brains.true_displacement(5, inverse=True))
