"""The commands on odd data sets: each ends with its result or with one line, never with a traceback."""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from scipy import ndimage
from test_sweep_functions import ours

from tvf_core import commands
from tvf_core.data import prepared
from tvf_core.evaluation.results import read_result, read_rows


def blobs(shape, count, numbers, dtype=np.uint8, seed=0):
    """Images and label maps of ellipsoids in ellipsoids, at slightly different places."""
    rng, x = np.random.default_rng(seed), np.indices(shape)
    images, labels = [], []
    for _ in range(count):
        centre = (np.array(shape) - 1) / 2 + rng.uniform(-1, 1, len(shape)) * np.array(shape).clip(
            max=10
        ) / 10
        size = (np.array(shape) * 0.45).reshape(-1, *[1] * len(shape))
        radius = np.sqrt((((x - centre.reshape(size.shape)) / size) ** 2).sum(0))
        inside = sum(((radius < 1 - 0.3 * k).astype(int) for k in range(len(numbers))), np.zeros(shape, int))
        labels.append(np.array([0, *numbers], dtype)[inside])
        images.append(ndimage.gaussian_filter(inside / max(len(numbers), 1), 0.7).clip(0, 1))
    return images, labels


def folder(tmp_path, shape, numbers=(1, 2), dtype=np.uint8, labelled=True, change=None, **known):
    """A prepared folder of six images, two pairs for each split, after ``change(images, labels, pairs)``."""
    images, labels = blobs(shape, 6, numbers, dtype)
    pairs = {s: [(2 * k, 2 * k + 1), (2 * k + 1, 2 * k)] for k, s in enumerate(("train", "val", "test"))}
    if change:
        images, labels, pairs = change(images, labels, pairs)
    more = {"labels": labels} if labelled else {}
    names = known.pop("names", [f"scan_{k}" for k in range(len(images))])
    return prepared.write(tmp_path / "odd", images, pairs, names=names, **more, **known)


def lacks_common_labels(images, labels, pairs):
    for k in (1, 3, 5):
        labels[k] = np.where(labels[k] > 0, 7, 0).astype(labels[k].dtype)
    return images, labels, pairs


def one_pair_lacks_common_labels(images, labels, pairs):
    labels[3], labels[5] = np.zeros_like(labels[3]), np.where(labels[5] > 0, 7, 0).astype(labels[5].dtype)
    first = {"train": [(0, 1), (1, 0)], "val": [(0, 1), (2, 3)], "test": [(0, 1), (4, 5)]}
    return images, labels, first


def without(split):
    return lambda images, labels, pairs: (images, labels, pairs | {split: []})


def one_image(images, labels, pairs):
    return images[:1], labels[:1], {split: [(0, 0)] for split in pairs}


def flat(images, labels, pairs):
    return [0 * image for image in images], labels, pairs


COMMANDS = {
    "train": "train --method vm-tvf --profile quick.yaml --out run",
    "identity": "evaluate --method identity --data odd",
    "lddmm": "evaluate --method lddmm --data odd --profile quick.yaml",
    "own": "evaluate --method vm-tvf --data odd --weights run/weights.safetensors --name own",
    "compare": "compare identity lddmm --data odd",
    "compare-own": "compare own identity --data odd --metric ssim",
    "draw": "draw --method lddmm --data odd --profile quick.yaml --pair 1 --out drawn.png",
    "export-val": "export-l2r --method identity --data odd --out sent",
    "export": "export-l2r --method lddmm --data odd --out sent.test --split test --profile quick.yaml",
}
PROFILE = {"data": "./odd", "steps": 2, "time_steps": 1, "validations": 1} | {
    "constants": {"lddmm": {"iterations": 2, "steps": 2, "scales": [4, 2]}}
}
EXPORTS, OF_THE_TRAINING = "export-val export", "train own compare-own"
TEST = "identity lddmm own compare compare-own draw export"
# Data sets, and the commands that have to refuse them: Learn2Reg's format wants volumes of even sizes from 6
# on, SSIM 11 voxels along two axes, a training a score that chooses weights, a comparison both scores.
FOLDERS = {
    "few slices": (dict(shape=(20, 18, 3)), EXPORTS),
    "few slices in front": (dict(shape=(2, 18, 12)), EXPORTS),
    "four slices": (dict(shape=(20, 4, 18), numbers=(1000, 2035, 614_454_277), dtype=np.uint32), EXPORTS),
    "a slice as a volume": (dict(shape=(18, 20, 1)), EXPORTS),
    "a slice in the middle": (dict(shape=(18, 1, 20), labelled=False), EXPORTS),
    "a small volume": (dict(shape=(4, 4, 6), labelled=False), f"{OF_THE_TRAINING} compare {EXPORTS}"),
    "a volume of one voxel": (dict(shape=(1, 1, 1), numbers=(9,)), f"compare-own {EXPORTS}"),
    "a tiny picture": (dict(shape=(5, 7)), f"compare-own {EXPORTS}"),
    "a row": (dict(shape=(1, 18), labelled=False), f"{OF_THE_TRAINING} compare {EXPORTS}"),
    "large labels": (dict(shape=(18, 17), numbers=(2035, 2**31 + 5, 2**53 + 1), dtype=np.int64), EXPORTS),
    "labels of uint64": (dict(shape=(12, 14, 18), numbers=(7, 2**63 - 1), dtype=np.uint64), ""),
    "no label but background": (dict(shape=(18, 17), numbers=()), EXPORTS),
    "no common labels": (
        dict(shape=(18, 17), change=lacks_common_labels),
        f"{OF_THE_TRAINING} compare {EXPORTS}",
    ),
    "one pair without common labels": (dict(shape=(12, 18, 14), change=one_pair_lacks_common_labels), ""),
    "an empty train": (dict(shape=(12, 18, 14), change=without("train")), OF_THE_TRAINING),
    "an empty val": (dict(shape=(12, 18, 14), change=without("val")), f"{OF_THE_TRAINING} export-val"),
    "an empty test": (dict(shape=(12, 18, 14), change=without("test")), TEST),
    "one image": (dict(shape=(12, 18, 14), change=one_image), "draw"),
    "black volumes": (dict(shape=(12, 18, 14), change=flat, labelled=False), ""),
    "odd names": (
        dict(shape=(18, 17), names=["ä b", "c,d", 'e"f', "g;h", "→ 5", "6'"], name="ünï cödé"),
        EXPORTS,
    ),
}


def run(words):
    """The one line with which a command ends, or an empty text where it succeeds; other ends are errors."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # what NumPy says of a mean of nothing
        patch.setattr(sys, "argv", ["tvf", *words.split()])
        try:
            commands.main()
        except SystemExit as end:
            assert isinstance(end.code, str) and end.code.startswith("tvf: ") and ours(end.__context__), end
            return end.code
        finally:
            plt.close("all")
    return ""


def files(place):
    return {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_command_ends_with_its_result_or_with_one_line(name, tmp_path, monkeypatch, capfd):
    content, refused = FOLDERS[name]
    folder(tmp_path, **content)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(PROFILE))
    ends = {}
    for command, words in COMMANDS.items():
        before = files(tmp_path)
        ends[command] = run(words)
        told, new = capfd.readouterr(), files(tmp_path) - before
        assert "Traceback" not in told.err and "Warning" not in told.err, f"{words}: {told.err}"
        assert not [file for file in new if file.endswith((".part", ".rows.jsonl"))], words
        if ends[command]:
            assert not told.out and " to -1" not in ends[command], words
            visible = {file for file in new if not file.rpartition("/")[2].startswith(".")}
            assert not visible, f"{words} ends with {ends[command]!r} and leaves {visible}"
        else:
            assert told.out and (new or command.startswith("compare")), words
    assert {command for command, end in ends.items() if end} == set(refused.split()), ends
    for result in {"identity", "lddmm", "own"} - set(refused.split()):
        summary, rows = read_result(result, "odd"), read_rows(result, "odd")
        assert summary["n_pairs"] == len(rows["pair"]) > 0
        assert all(np.isfinite(v["mean"]) == np.isfinite(v["std"]) for v in summary["summary"].values())
