"""The commands on odd data sets: each ends with its result or with one line, never with a traceback."""

import sys
import warnings

import numpy as np
import pytest
import yaml
from scipy import ndimage

from tvf_core import commands
from tvf_core.data import prepared
from tvf_core.paths import runs


def blobs(shape, count, numbers, dtype=np.uint8, seed=0):
    """Images and label maps of ellipsoids in ellipsoids, at slightly different places."""
    rng, x = np.random.default_rng(seed), np.indices(shape)
    images, labels = [], []
    for _ in range(count):
        centre = (np.array(shape) - 1) / 2 + rng.uniform(-1, 1, len(shape))
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


FOLDERS = {
    "few slices": dict(shape=(20, 18, 3)),
    "few slices in front": dict(shape=(2, 18, 12)),
    "four slices, many labels": dict(shape=(20, 4, 18), numbers=(1000, 2035, 614_454_277), dtype=np.uint32),
    "a slice as a volume": dict(shape=(18, 20, 1)),
    "a slice in the middle": dict(shape=(18, 1, 20)),
    "a small volume": dict(shape=(4, 4, 6), labelled=False),
    "a volume of one voxel": dict(shape=(1, 1, 1), numbers=(9,)),
    "a tiny picture": dict(shape=(5, 7)),
    "a row": dict(shape=(1, 18), labelled=False),
    "a picture of one voxel": dict(shape=(1, 1), numbers=(1,)),
    "labels 1000 and 2035": dict(shape=(18, 17), numbers=(1000, 2035), dtype=np.int16),
    "labels beyond int32": dict(shape=(18, 17), numbers=(2**31 + 5, 2**53 + 1), dtype=np.int64),
    "labels of uint64": dict(shape=(12, 14, 18), numbers=(7, 2**63 + 1), dtype=np.uint64),
    "no label but background": dict(shape=(18, 17), numbers=()),
    "no common labels": dict(shape=(18, 17), change=lacks_common_labels),
    "one pair without common labels": dict(shape=(12, 18, 14), change=one_pair_lacks_common_labels),
    "no labels": dict(shape=(18, 17), labelled=False),
    **{
        f"an empty {split}": dict(shape=(12, 18, 14), change=without(split))
        for split in ("train", "val", "test")
    },
    "one image": dict(shape=(12, 18, 14), change=one_image),
    "black images": dict(shape=(18, 17), change=flat),
    "black volumes": dict(shape=(12, 18, 14), change=flat, labelled=False),
    "odd names": dict(shape=(18, 17), names=["ä b", "c,d", 'e"f', "g;h", "→ 5", "6'"], name="ünï cödé"),
}
PROFILE = {"size": "tiny", "steps": 2, "time_steps": 1, "validations": 1} | {
    "constants": {"lddmm": {"iterations": 2, "steps": 2, "scales": [4, 2]}}
}
COMMANDS = [
    "train --method vm-tvf --profile quick.yaml --out vm-tvf",
    "train --method tm --profile quick.yaml --out tm",
    "evaluate --method identity --data odd",
    "evaluate --method lddmm --data odd --profile quick.yaml",
    "evaluate --method vm-tvf --data odd --weights vm-tvf/weights.safetensors --name own",
    "evaluate --method identity --data odd --split val --limit 1",
    "compare identity lddmm --data odd",
    "compare own identity --data odd --metric ssim",
    "draw --method lddmm --data odd --profile quick.yaml --out drawn.png",
    "draw --method vm-tvf --data odd --weights vm-tvf/weights.safetensors --pair 1 --out other.png",
    "export-l2r --method identity --data odd --out sent",
    "export-l2r --method lddmm --data odd --out sent.test --split test --profile quick.yaml",
]


def run(words):
    """Exit code 0 gives an empty text, one line of the command that line; anything else is an error."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # what NumPy says of a mean of nothing
        patch.setattr(sys, "argv", ["tvf", *words.split()])
        try:
            commands.main()
        except SystemExit as end:
            assert isinstance(end.code, str), f"{words}: exit code {end.code}"
            return end.code
    return ""


def files(place):
    return {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_command_ends_with_its_result_or_with_one_line(name, tmp_path, monkeypatch, capfd):
    place = folder(tmp_path, **FOLDERS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TVF_RUNS", "runs")
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(PROFILE | {"data": "./odd"}))
    assert runs().name == "runs" and place.is_dir()
    for words in COMMANDS:
        before = files(tmp_path)
        end = run(words)
        told = capfd.readouterr()
        if end or 1:
            print(words, "->", repr(end), "|", told.out[:300], "|", files(tmp_path) - before)
        assert not end or (end.startswith("tvf: ") and "\n" not in end and len(end) < 500), f"{words}: {end}"
        assert "Traceback" not in told.err and "Warning" not in told.err, f"{words}: {told.err}"
        new = files(tmp_path) - before
        assert not [file for file in new if file.endswith((".part", ".rows.jsonl"))], words
        assert not end or not [file for file in new if "/." not in file], f"{words}: {end}: {new}"
