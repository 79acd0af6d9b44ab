"""Anatomies: alignment, painting, splits, a stopped preparation, and the twenty real ones of a mirror."""

import gzip
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_download import __main__ as cli
from data_download import anatomies, oasis, structures
from data_download.building import same_recipe
from data_download.fetch import Remote
from tvf_core import data, metrics
from tvf_core.data import prepared
from tvf_core.paths import ROOT, data_root

FREESURFER = {
    **{n: label for n, (label, _) in anatomies._LEFT.items()},
    **{n: label for n, (label, _) in anatomies._MIDDLE.items()},
    **{r: anatomies._tables()[0][r] for r in anatomies._RIGHT.values()},
}


def fake_map(subject: int) -> nib.Nifti1Image:
    """A map of 31 balls where the structures lie, 4 mm voxels; subjects are shifted, stretched, turned."""
    rng = np.random.default_rng(subject)
    affine = np.array([[-4, 0, 0, 90], [0, 0, 4, -100], [0, -4, 0, 80], [0, 0, 0, 1.0]])
    shape = (46, 40, 50)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    turn = np.eye(3) + rng.uniform(-0.08, 0.08, (3, 3))
    shift = rng.uniform(-5, 5, 3)
    numbers = np.zeros(shape, np.int32)
    nearest = np.full(shape, np.inf)
    for number, label in FREESURFER.items():
        distance = np.linalg.norm(grid - (turn @ structures.MIDDLES[label] + shift), axis=-1)
        mine = (distance < 11) & (distance < nearest)
        numbers[mine], nearest[mine] = number, distance[mine]
    numbers[0, 0, 0] = 24  # fluid and skull are there too, and are not brain
    numbers[-1, -1, -1] = 507
    return nib.Nifti1Image(numbers, affine)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """Twenty made-up maps in a mirror of their own, with their hashes."""
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "synthseg").mkdir()
    remotes = []
    for subject in anatomies.SUBJECTS:
        name = f"training_seg_{subject:02d}.nii.gz"
        content = gzip.compress(fake_map(subject).to_bytes(), mtime=0)
        (folder / "synthseg" / name).write_bytes(content)
        remotes.append(
            Remote(
                name,
                f"http://localhost:1/{name}",
                f"sha256:{hashlib.sha256(content).hexdigest()}",
                f"synthseg/{name}",
                len(content),
            )
        )
    return folder, remotes


@pytest.fixture
def maps(mirror, monkeypatch):
    monkeypatch.setenv("TVF_DATA_MIRROR", str(mirror[0]))
    monkeypatch.setattr(anatomies, "remotes", lambda: mirror[1])
    return mirror


@pytest.fixture(scope="module")
def whole(mirror, tmp_path_factory):
    """A data root in which the made-up anatomies are prepared; not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVF_DATA_MIRROR", str(mirror[0]))
        patch.setattr(anatomies, "remotes", lambda: mirror[1])
        anatomies.prepare(root, workers=1, progress=False)
    return root


def contents(folder: Path) -> dict[str, str]:
    return {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*")
        if f.is_file()
    }


def run(*arguments) -> None:
    """The command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["data_download", *map(str, arguments)])
        cli.main()


def test_alignment_recovers_an_affine_map_and_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    points, affine = rng.normal(0, 40, (31, 3)), np.eye(4)
    affine[:3] += rng.normal(0, 0.3, (3, 4))
    target = points @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose(anatomies.align(points, target), affine, atol=1e-10)
    target += rng.normal(0, 2, target.shape)
    best = anatomies.align(points, target)
    residual = target - (points @ best[:3, :3].T + best[:3, 3])
    np.testing.assert_allclose(residual.T @ np.c_[points, np.ones(31)], 0, atol=1e-8)  # the normal equations


def test_both_sides_and_the_names_are_those_of_oasis():
    labels, means = anatomies._tables()
    assert len(anatomies.LABELS) == 31 and set(structures.LABELS) - set(anatomies.LABELS) == {18, 19, 34, 35}
    for left, right in anatomies._RIGHT.items():
        assert structures.LABELS[labels[left]][2:] == structures.LABELS[labels[right]][2:]
        assert (structures.LABELS[labels[left]][0], structures.LABELS[labels[right]][0]) == ("L", "R")
        assert means[left] == means[right]
    assert not labels[[0, 24, 507, 515]].any()


def test_splits_are_those_of_the_seed_and_share_nobody():
    seed = json.loads((ROOT / "data_download" / "splits.json").read_text())["anatomies"]["seed"]
    order = (np.random.default_rng(seed).permutation(20) + 1).tolist()
    assert anatomies.splits() == {
        "train": sorted(order[:14]),
        "val": sorted(order[14:16]),
        "test": sorted(order[16:]),
    }


def test_prepared_anatomies_are_aligned_complete_and_the_same_in_every_form(whole, monkeypatch):
    folder = anatomies.folder(whole, 2.5)
    monkeypatch.setenv("TVF_DATA", str(whole))
    parts = {split: data.load("anatomies", split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 182, "val": 2, "test": 12}
    for split, part in parts.items():
        people = [f"a{s:02d}" for s in anatomies.splits()[split]]
        assert [part.pair_name(k) for k in range(len(part))] == [
            f"{m}->{f}" for m, f in itertools.permutations(people, 2)
        ]
    part = parts["test"]
    assert part.shape == (64, 64, 80) and part.axes == "LIA" and part.label_names == anatomies.LABELS
    known = prepared.about(folder)
    for k, name in enumerate(part.names):
        image, labels = (nib.load(folder / "nifti" / f"{name}_{kind}.nii.gz") for kind in ("image", "labels"))
        assert "".join(nib.aff2axcodes(image.affine)) == "LIA" and nib.affines.voxel_sizes(
            image.affine
        ) == pytest.approx([2.5] * 3)
        np.testing.assert_array_equal(image.dataobj, part.images[k])
        np.testing.assert_array_equal(labels.dataobj, part.labels[k])
        assert (
            not part.images[k][part.images[k] == 0].any() and part.images[k][part.labels[k] > 0].mean() > 60
        )
        # Where the stored affine brings the middle of a ball of the map, there it is in the aligned image.
        moved = np.array(known["native_to_common_mm"][name])
        native = anatomies.centroids(whole / "anatomies" / "label_maps" / f"training_seg_{k + 1:02d}.nii.gz")
        for label, middle in zip(anatomies.LABELS, native):
            here = np.argwhere(part.labels[k] == label).mean(0) @ image.affine[:3, :3].T + image.affine[:3, 3]
            assert np.linalg.norm(here - (moved[:3, :3] @ middle + moved[:3, 3])) < 2.5
    # Balls under affine maps: aligned, they overlap well, and unaligned they would not.
    overlap = [
        metrics.dice(
            m["moving_labels"][None],
            m["fixed_labels"][None],
            m["moving_labels"][None],
            list(part.label_names),
        ).mean()
        for m in part
    ]
    assert np.mean(overlap) > 0.75


def test_a_second_call_verifies_and_does_nothing(maps, tmp_path, monkeypatch, capsys):
    run("anatomies", "--root", tmp_path, "--workers", 1, "--no-progress")
    first = capsys.readouterr().out
    assert (
        "20 label maps fetched" in first
        and "182/2/12 ordered pairs" in first
        and "before registration 0." in first
    )
    before = contents(tmp_path)
    monkeypatch.setattr(anatomies, "each", lambda *a: pytest.fail("worked again"))
    run("anatomies", "--root", tmp_path, "--no-progress")
    assert "already there and verified" in capsys.readouterr().out
    assert contents(tmp_path) == before
    run("list", "--root", tmp_path)
    assert f"ready in {tmp_path / 'anatomies' / '2.5mm'}" in capsys.readouterr().out


def test_a_damaged_prepared_file_is_made_again(maps, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = anatomies.folder(tmp_path, 2.5)
    before = contents(folder)
    with open(folder / prepared.IMAGES, "r+b") as file:
        file.seek(5000)
        file.write(b"\x77\x77")
    anatomies.prepare(tmp_path, workers=1, progress=False)
    assert "images.npy" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize(
    "damage, told", [("byte", "is damaged: replace it"), ("missing", "is missing in the mirror")]
)
def test_a_bad_mirror_is_named_and_the_next_call_finishes(damage, told, maps, tmp_path, monkeypatch):
    bad = tmp_path / "bad"
    shutil.copytree(maps[0], bad)
    file = bad / "synthseg" / "training_seg_07.nii.gz"
    if damage == "byte":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    monkeypatch.setenv("TVF_DATA_MIRROR", str(bad))
    with pytest.raises(SystemExit) as stop:
        run("anatomies", "--root", tmp_path / "root", "--workers", 1, "--no-progress")
    assert (
        told in str(stop.value.code)
        and "training_seg_07" in str(stop.value.code)
        and "\n" not in str(stop.value.code)
    )
    here = {f.name for f in (tmp_path / "root").rglob("*") if f.is_file()}
    assert here == {".lock", *(f"training_seg_{s:02d}.nii.gz" for s in range(1, 7))}
    monkeypatch.setenv("TVF_DATA_MIRROR", str(maps[0]))
    _, fetched = anatomies.fetch(maps[1], tmp_path / "root" / "anatomies" / "label_maps", progress=False)
    assert fetched == 14


def test_a_killed_preparation_leaves_nothing_half_written_and_the_next_call_finishes(maps, whole, tmp_path):
    """In processes of its own, as a user's command: all end when it is killed, and none keeps the lock."""
    script = tmp_path / "slow.py"
    script.write_text(f"""
import json
from pathlib import Path
from data_download import anatomies
from data_download.fetch import Remote
if __name__ == "__main__":
    remotes = [Remote(**r) for r in json.loads(Path({str(tmp_path / "remotes")!r}).read_text())]
    anatomies.remotes = lambda: remotes
    anatomies.prepare(Path({str(tmp_path / "root")!r}), workers=2, progress=False)
""")
    (tmp_path / "remotes").write_text(json.dumps([asdict(remote) for remote in maps[1]]))
    environment = os.environ | {
        "TVF_DATA_MIRROR": str(maps[0]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.DEVNULL)
    done = tmp_path / "root" / "anatomies" / ".2.5mm.part" / "done"
    while not (done.is_file() and 3 <= sum(done.read_bytes()) < 20):
        assert command.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    command.send_signal(signal.SIGKILL)
    command.wait()
    target = tmp_path / "root" / "anatomies" / "2.5mm"
    assert not target.exists()
    written = sum(done.read_bytes())
    for _ in range(100):  # the workers notice within moments
        try:
            folder, what = anatomies.prepare(tmp_path / "root", workers=1, progress=False)
            break
        except OSError:
            time.sleep(0.1)
    assert int(what.split("; ")[1].split(" of 20")[0]) <= 20 - written  # those that were done are kept
    assert contents(folder) == contents(anatomies.folder(whole, 2.5))


def test_wrong_spacing_and_a_map_of_something_else(maps, tmp_path):
    with pytest.raises(ValueError, match="1, 2, 2.5 mm, got 3"):
        anatomies.prepare(tmp_path, 3.0)
    file = tmp_path / "training_seg_01.nii.gz"
    image = fake_map(1)
    numbers = np.asarray(image.dataobj).copy()
    numbers[numbers == 54] = 0
    nib.save(nib.Nifti1Image(numbers, image.affine), file)
    with pytest.raises(ValueError, match="has no R amygdala"):
        anatomies.centroids(file)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The twenty public ones: as ``make data`` has prepared them with this code, else from the mirror."""
    mine = anatomies.folder(data_root(), 2.5)
    if same_recipe(mine, anatomies.recipe(2.5)):
        return mine
    folder = os.environ.get("TVF_DATA_MIRROR")
    if not folder or not (Path(folder) / "synthseg").is_dir():
        pytest.skip("TVF_DATA_MIRROR does not name a folder with synthseg/")
    root = tmp_path_factory.mktemp("real")
    return anatomies.prepare(root, progress=False)[0]


def test_the_twenty_real_ones_overlap_before_registration_as_oasis_does(real):
    images, labels = (np.load(real / name) for name in (prepared.IMAGES, prepared.LABELS))
    part = data.PairData("anatomies", "test", **prepared.read(real, "test"))
    scores = []
    for moving, fixed in part.pairs:
        both = [(labels[moving] == k, labels[fixed] == k) for k in part.label_names]
        scores.append(
            np.mean([2 * (m & f).sum() / (m.sum() + f.sum()) for m, f in both if m.any() and f.any()])
        )
    assert len(scores) == 12 and 0.53 < np.mean(scores) < 0.61  # OASIS in Learn2Reg: 0.57
    tone = {k: images[labels == k].mean() / 255 for k in (1, 2, 3)}  # white matter, cortex, ventricle
    assert tone[1] > tone[2] + 0.1 > tone[3] + 0.2
    assert {oasis.orientation(x) for x in labels} == {"LIA"}


def test_the_reference_of_orientations_is_the_mean_of_the_real_ones(real):
    goal = json.loads((real / prepared.ABOUT).read_text())["middles_mm"]
    for label, middle in goal.items():
        np.testing.assert_allclose(structures.MIDDLES[int(label)], middle, atol=0.51)
