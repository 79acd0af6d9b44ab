"""Errors of landmarks in the rows of an evaluation: by hand, their direction, and where there are none."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tvf_core.data import PairData
from tvf_core.evaluation.scores import columns, score
from tvf_core.registration import Registration

NAMES = ["landmark_error", "landmark_error_percent"]
COLUMNS = ["landmark_error", "landmark_error_p90", "landmark_error_percent", "landmark_error_percent_p90"]


def pairs(rank):
    """Two images; each point of the second is that of the first moved by 3 along the first axis, but one."""
    rng = np.random.default_rng(rank)
    fixed = np.full((11, rank), 8.0)
    fixed[:, 1] += np.arange(11) / 2  # points 0 and 10 are 5 apart
    moving = fixed + np.eye(rank)[0] * 3
    moving[4, 0] += 4
    images = rng.uniform(size=(2, *(20, 18, 19)[:rank]))
    return PairData(
        "toy", "test", images, [(0, 1), (1, 0)], landmarks=[moving, fixed], landmark_scale=(0, 10)
    )


def shifting(rank, by):
    """A method that moves everything by so much along the first axis."""

    def register(moving, fixed):
        u = torch.zeros(1, rank, *moving.shape[2:])
        u[:, 0] = by
        return Registration(u, moving)

    return SimpleNamespace(register=register)


@pytest.mark.parametrize("rank", [2, 3])
def test_errors_are_those_worked_out_by_hand(rank):
    data = pairs(rank)
    found = score(shifting(rank, 0), data, 0, wanted=NAMES)
    assert [name for name in found if name != "seconds"] == COLUMNS
    # Ten points are 3 away and one is 7; sorted, the 90th percentile is the tenth of eleven.
    assert found["landmark_error"] == pytest.approx(37 / 11)
    assert found["landmark_error_p90"] == pytest.approx(3)
    assert found["landmark_error_percent"] == pytest.approx(100 * 37 / 11 / 5)
    assert found["landmark_error_percent_p90"] == pytest.approx(60)


@pytest.mark.parametrize("rank", [2, 3])
def test_landmarks_of_the_fixed_image_go_to_the_moving_one(rank):
    data = pairs(rank)
    assert score(shifting(rank, 3), data, 0, wanted=NAMES)["landmark_error"] == pytest.approx(4 / 11)
    assert score(shifting(rank, -3), data, 0, wanted=NAMES)["landmark_error"] == pytest.approx(70 / 11)
    assert score(shifting(rank, -3), data, 1, wanted=NAMES)["landmark_error"] == pytest.approx(4 / 11)


def test_columns_are_there_where_the_data_have_landmarks():
    data = pairs(2)
    assert [name for name in columns(data) if name.startswith("landmark")] == COLUMNS
    assert [name for name in columns(replace(data, landmark_scale=())) if "landmark" in name] == COLUMNS[:2]
    without = replace(data, landmarks=None, landmark_scale=())
    assert not [name for name in columns(without) if "landmark" in name]
    assert [*score(shifting(2, 0), without, 0, wanted=NAMES)] == ["seconds"]
