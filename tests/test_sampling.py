"""Sampling of pairs: epochs without repetition, both directions, shares of a batch, mirrored images."""

import itertools
from collections import Counter

import numpy as np
import pytest

from tvf_core import data
from tvf_core.data import PairData
from tvf_core.training.sampling import PairSampler, mirrored


def pairs_of(images, pairs=None):
    return PairData(
        "dots",
        "train",
        np.zeros((images, 1, 1), np.uint8),
        pairs or list(itertools.permutations(range(images), 2)),
    )


@pytest.mark.parametrize("images, batch", [(5, 1), (5, 5), (6, 4)])
def test_an_epoch_of_pairs_has_every_pair_once_in_each_direction(images, batch):
    part = pairs_of(images)
    sampler = PairSampler(part, batch, seed=3)
    assert sampler.epoch == len(part) and sampler.steps(1) == -(-len(part) // batch)
    seen = [pair for step in range(2 * len(part)) for pair in sampler(step)]  # 2 x batch epochs
    assert Counter(seen) == {pair: 2 * batch for pair in part.pairs}
    one_way = [pair for step in range(0, 2 * sampler.epoch, 2) for pair in sampler(step)]
    units = len(part) // 2
    for epoch in range(len(one_way) // units):
        assert len({frozenset(pair) for pair in one_way[epoch * units : (epoch + 1) * units]}) == units


def test_an_epoch_of_images_has_every_image_first_once_with_a_random_partner():
    sampler = PairSampler(pairs_of(7), 1, epoch_of="images")
    assert sampler.epoch == 14
    partners = Counter()
    for epoch in range(60):
        drawn = [sampler(2 * (7 * epoch + k))[0] for k in range(7)]
        assert sorted(first for first, _ in drawn) == list(range(7)) and all(a != b for a, b in drawn)
        partners.update(drawn)
    assert len(partners) == 42 and min(partners.values()) >= 2  # 10 on average


def test_the_next_step_reverses_the_pairs_and_epochs_differ_in_order():
    sampler = PairSampler(pairs_of(6), 3)
    draws = [sampler(step) for step in range(20)]
    for there, back in zip(draws[::2], draws[1::2]):
        assert back == [(fixed, moving) for moving, fixed in there]
    assert draws == [PairSampler(pairs_of(6), 3)(step) for step in range(20)]
    assert draws != [PairSampler(pairs_of(6), 3, seed=1)(step) for step in range(20)]
    assert draws[:10] != draws[10:]  # another epoch, another order


def test_only_pairs_of_the_data_are_drawn():
    listed = [(0, 1), (2, 3), (3, 2)]  # (0, 1) is listed in one direction only
    for epoch_of in ("pairs", "images"):
        sampler = PairSampler(pairs_of(4, listed), 1, epoch_of=epoch_of)
        assert {frozenset(sampler(step)[0]) for step in range(20)} == {frozenset((0, 1)), frozenset((2, 3))}


def test_a_pair_is_mirrored_in_both_directions_or_in_none():
    sampler = PairSampler(pairs_of(9), 4, flip=0.25)
    flags = [sampler.flips(step) for step in range(1000)]
    assert flags[::2] == flags[1::2] and 0.2 < np.mean(flags) < 0.3
    assert not any(any(PairSampler(pairs_of(9), 4).flips(step)) for step in range(100))


def test_mirroring_turns_images_and_labels_of_the_chosen_pairs(toy_data):
    batch = data.load("toy2d", "train").stack([(0, 1), (2, 3)])
    flipped = mirrored(batch, [False, True])
    for name, value in batch.items():
        assert (flipped[name][0] == value[0]).all()
        assert (flipped[name][1] == value[1].flip(-1)).all() and (flipped[name][1] != value[1]).any()
    assert mirrored(batch, [False, False]) is batch
