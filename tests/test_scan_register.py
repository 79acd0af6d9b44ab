"""Two files in, a folder of results out: every file is read by SimpleITK and ANTsPy, and says the same."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from tvf_core import checkpoints, commands, fields, metrics
from tvf_core.data import shapes
from tvf_core.integrate import flow
from tvf_core.paths import ROOT, WEIGHTS
from tvf_core.scans import examples, images, outputs, points, writing
from tvf_core.scans.applying import apply_image
from tvf_core.scans.grids import Grid
from tvf_core.scans.images import Scan
from tvf_core.scans.maps import Linear, Warp, map_points
from tvf_core.scans.register import register
from tvf_core.training.run_list import list_runs


def turned(dim, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(dim)
    matrix[:2, :2] = [[c, -s], [s, c]]
    return matrix


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two 3D scans of other spacing, orientation and contrast, their labels and points, and the true map."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(3)
    axes = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in (44, 40, 36)], indexing="ij"))
    blobs = [((axes - rng.uniform(-13, 13, 3)[:, None, None, None]) ** 2).sum(0) for _ in range(14)]
    head = (axes[0] / 19) ** 2 + (axes[1] / 17) ** 2 + (axes[2] / 15) ** 2 < 1
    labels = np.where(head, 1 + np.argmin(blobs, axis=0) % 4, 0)
    values = np.array([0, 0.35, 0.6, 0.8, 1.0])[labels] + 0.02 * rng.standard_normal(labels.shape)
    fixed_grid = Grid(labels.shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    fixed = Scan(values.astype(np.float32), fixed_grid, folder / "f")
    fixed_labels = Scan(labels.astype(np.int64), fixed_grid, folder / "f")
    velocity = shapes.random_velocity((22, 20, 18), strength=1.2, smoothness=3.0)
    warp = Warp.from_voxels(flow(velocity), Grid((22, 20, 18), np.diag([4.0, 4.0, 4.0, 1.0])))
    position = np.eye(4)
    position[:3, :3] = 1.04 * turned(3, 12)
    position[:3, 3] = [7, -9, 4]
    psi = [Linear(np.linalg.inv(position)), warp]
    affine = np.eye(4)
    affine[:3, :3] = turned(3, 7) @ np.diag([-1.6, 1.6, 3.1])
    middle = position @ [*fixed_grid.world((np.array(labels.shape) - 1) / 2), 1]
    shape = (58, 54, 27)
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    moving_grid = Grid(shape, affine)
    moving = (900 * apply_image(fixed, moving_grid, psi).clip(0) ** 0.8).round()
    here = fixed_grid.world(rng.choice(np.argwhere(head), 12, replace=False))
    there = map_points([Linear(position)], here)
    writing.write_image(folder / "fixed.nii.gz", fixed.values, fixed_grid)
    writing.write_image(folder / "moving.nii.gz", moving, moving_grid)
    writing.write_image(folder / "fixed_labels.nii.gz", labels, fixed_grid, labels=True)
    moved = apply_image(fixed_labels, moving_grid, psi, "nearest")
    writing.write_image(folder / "moving_labels.nii.gz", moved, moving_grid, labels=True)
    points.write_points(folder / "moving_points.csv", there)
    points.write_points(folder / "fixed_points.csv", map_points(psi, there))
    return folder


@pytest.fixture(scope="module")
def result(pair):
    """Folder of results of the command on the pair, with everything that may come along."""
    out = pair / "out"
    given = {role: pair / f"{role.replace('-', '_')}" for role in ("moving-labels", "fixed-labels")}
    given = [f"--{role}={path}.nii.gz" for role, path in given.items()]
    given += [f"--{role}-points={pair / role}_points.csv" for role in ("moving", "fixed")]
    files = [str(pair / f"{role}.nii.gz") for role in ("moving", "fixed")]
    run("register", *files, "-o", str(out), *given)
    return out


def run(*words):
    """``tvf`` with these words, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tvf", *map(str, words)])
        commands.main()


def record(out):
    return json.loads((out / "run.json").read_text())


def test_the_map_is_found(result):
    numbers = record(result)["numbers"]
    errors = np.array([row[1:] for row in numbers["landmark_error"]]).mean(0)
    dice = np.array([row[1:] for row in numbers["dice"]]).mean(0)
    assert errors[0] > 5 and errors[1] < 1.5, errors  # voxels of the working grid have 2 mm
    assert dice[1] > 0.85 > dice[0] + 0.2, dice
    assert numbers["folding"]["ndv_percent"] < 0.01
    assert numbers["inverse_error"][0] < 0.1


def test_simpleitk_and_ants_make_the_same_image_of_our_files(pair, result):
    ours = sitk.GetArrayFromImage(sitk.ReadImage(result / "Warped.nii.gz"))
    fixed, moving = (
        sitk.ReadImage(pair / f"{role}.nii.gz", sitk.sitkFloat32) for role in ("fixed", "moving")
    )
    field = sitk.ReadImage(result / "1Warp.nii.gz", sitk.sitkVectorFloat64)
    affine = sitk.ReadTransform(str(result / "0GenericAffine.mat"))
    chain = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(field)])
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, chain, sitk.sitkLinear, 0.0))
    span = theirs.max() - theirs.min()
    assert span > 500 and np.abs(ours - theirs)[2:-2, 2:-2, 2:-2].max() < 1e-3 * span
    chain = [str(result / "1Warp.nii.gz"), str(result / "0GenericAffine.mat")]
    read = [ants.image_read(str(pair / f"{role}.nii.gz")) for role in ("fixed", "moving")]
    theirs = ants.apply_transforms(*read, transformlist=chain, interpolator="linear").numpy()
    inside = np.abs(ours.T - theirs)[2:-2, 2:-2, 2:-2]
    assert inside.max() < 1e-3 * span
    labels = ants.image_read(str(pair / "moving_labels.nii.gz"))
    theirs = ants.apply_transforms(
        read[0], labels, transformlist=chain, interpolator="nearestNeighbor"
    ).numpy()
    assert (nib.load(result / "WarpedLabels.nii.gz").get_fdata() == theirs).mean() > 0.9999


def test_the_inverse_and_the_points_are_those_of_ants(pair, result):
    read = [ants.image_read(str(pair / f"{role}.nii.gz")) for role in ("moving", "fixed")]
    chain = [str(result / "0GenericAffine.mat"), str(result / "1InverseWarp.nii.gz")]
    turns = [True, False]
    theirs = ants.apply_transforms(
        *read, transformlist=chain, whichtoinvert=turns, interpolator="linear"
    ).numpy()
    ours = nib.load(result / "InverseWarped.nii.gz").get_fdata()
    assert np.ptp(theirs) > 0.5 and np.abs(ours - theirs)[2:-2, 2:-2, 2:-2].max() < 1e-3 * np.ptp(theirs)
    table = np.genfromtxt(pair / "moving_points.csv", delimiter=",", names=True)
    import pandas

    frame = pandas.DataFrame({axis: table[axis] for axis in "xyz"})
    theirs = ants.apply_transforms_to_points(3, frame, chain, whichtoinvert=turns)[["x", "y", "z"]].to_numpy()
    ours = np.genfromtxt(result / "moving_points_in_fixed.csv", delimiter=",", names=True)
    ours = np.stack([ours[axis] for axis in "xyz"], 1)
    assert np.abs(ours - frame.to_numpy()).max() > 5 and np.abs(ours - theirs).max() < 1e-3


def test_apply_and_compose_repeat_the_result(pair, result, tmp_path):
    chain = ["-t", result / "1Warp.nii.gz", "-t", result / "0GenericAffine.mat"]
    back = ["-t", f"[{result / '0GenericAffine.mat'},1]", "-t", result / "1InverseWarp.nii.gz"]
    fixed, moving = pair / "fixed.nii.gz", pair / "moving.nii.gz"
    run("apply", "-i", moving, "-r", fixed, *chain, "-o", tmp_path / "w.nii.gz")
    whole = nib.load(result / "Warped.nii.gz").get_fdata()
    assert np.array_equal(nib.load(tmp_path / "w.nii.gz").get_fdata(), whole)
    labels = pair / "moving_labels.nii.gz"
    for kind, name in (("nearest", "WarpedLabels"), ("smooth", "WarpedLabelsSmooth")):
        run("apply", "-i", labels, "-r", fixed, *chain, "-o", tmp_path / f"{kind}.nii.gz", "-n", kind)
        same = [nib.load(p).get_fdata() for p in (tmp_path / f"{kind}.nii.gz", result / f"{name}.nii.gz")]
        assert np.array_equal(*same) and len(np.unique(same[0])) == 5
    run("apply", "-i", pair / "moving_points.csv", *back, "-o", tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == (result / "moving_points_in_fixed.csv").read_text()
    run("compose", *chain, "-r", fixed, "-o", tmp_path / "one.nii.gz")
    run("apply", "-i", moving, "-r", fixed, "-t", tmp_path / "one.nii.gz", "-o", tmp_path / "o.nii.gz")
    difference = np.abs(nib.load(tmp_path / "o.nii.gz").get_fdata() - whole)[2:-2, 2:-2, 2:-2]
    assert difference.max() < 1e-3 * np.ptp(whole)
    velocity = result / "velocity.safetensors"
    run("apply", "-i", moving, "-r", fixed, "-t", velocity, "-o", tmp_path / "v.nii.gz")
    difference = np.abs(nib.load(tmp_path / "v.nii.gz").get_fdata() - whole)[2:-2, 2:-2, 2:-2]
    assert difference.mean() < 2e-3 * np.ptp(whole)  # the field was sampled on another grid in between


def test_the_report_and_the_record_name_all_files(result):
    text = (result / "report.html").read_text("utf-8")
    written = {file.name for file in result.iterdir()} - {"report.html", "run.json"}
    assert written == set(record(result)["files"]) and len(written) == 12
    assert all(name in text for name in written)
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text


def test_results_are_not_replaced_unasked_and_nothing_is_left_of_a_stop(pair, result, tmp_path):
    before = {file.name: file.stat().st_mtime_ns for file in result.iterdir()}
    words = ["register", pair / "moving.nii.gz", pair / "fixed.nii.gz", "-o"]
    with pytest.raises(SystemExit, match="--replace"):
        run(*words, result)
    assert before == {file.name: file.stat().st_mtime_ns for file in result.iterdir()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(SystemExit, match="holds other files"):
        run(*words, tmp_path / "mine", "--replace")
    process = subprocess.Popen(
        [sys.executable, "-m", "tvf_core", *map(str, [*words, tmp_path / "new", "--spacing", "1"])],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.stderr.read(1) not in ("T", ""):  # until the bar of the pairwise method, "TVF, ..."
        pass
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode not in (0, 2) and "Traceback" not in told
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_other_methods_give_results_too(pair, tmp_path):
    files = [pair / "moving.nii.gz", pair / "fixed.nii.gz"]
    for name, words in {
        "lddmm": ["--method", "lddmm", "--spacing", "8"],
        "convexadam": ["--method", "convexadam", "--spacing", "6"],
        "rigid": ["--affine", "rigid", "--spacing", "8"],
        "network": ["--weights", WEIGHTS / "anatomies" / "tm-tvf.safetensors"],
        "refined": ["--weights", WEIGHTS / "anatomies" / "tm-tvf.safetensors", "--refine", "3"],
    }.items():
        run("register", *files, "-o", tmp_path / name, *words)
        numbers = record(tmp_path / name)["numbers"]
        assert numbers["similarity"][1][2] > 1.02, name
        assert (tmp_path / name / "velocity.safetensors").exists() == (name != "convexadam")
    assert record(tmp_path / "network")["working_grid"]["spacing"] == 2.5  # of its training
    assert record(tmp_path / "refined")["method"] == "tm-tvf-refined"
    one, two = (record(tmp_path / n)["numbers"]["similarity"][0][2] for n in ("network", "refined"))
    assert two > one  # refinement raises what it maximises


def test_an_affine_file_takes_the_place_of_the_search(pair, result, tmp_path):
    files = [pair / "moving.nii.gz", pair / "fixed.nii.gz"]
    given = register(*files, affine=str(result / "0GenericAffine.mat"), spacing=4, progress=False)
    assert given.affine is None and np.allclose(given.matrix, record(result)["affine_fixed_to_moving_ras"])


def faces(folder, sizes=((70, 61), (64, 64))):
    """Two pictures (width, height) of one scene, the second moved by a smooth map."""
    rng = np.random.default_rng(5)
    grid = Grid((96, 90), np.diag([-1.0, -1.0, 1.0]))
    y, x = np.mgrid[:96, :90]
    scene = sum(a * np.sin(x / u + y / w + p) for a, u, w, p in rng.uniform(2, 7, (9, 4)))
    scene = np.where(np.hypot(y - 45, x - 43) < 38, scene - scene.min() + 9, 0)
    scan = Scan((200 * scene / scene.max()).astype(np.float32), grid, folder)
    field = Warp.from_voxels(flow(shapes.random_velocity((96, 90), strength=3.0)), grid)
    for name, size, chain in (("fixed", sizes[0], []), ("moving", sizes[1], [field])):
        shift = np.eye(3)
        shift[:2, 2] = [-12, -10]
        values = apply_image(scan, Grid(size, np.diag([-1.0, -1.0, 1.0])), [Linear(shift), *chain])
        Image.fromarray(values.T.round().astype(np.uint8)).save(folder / f"{name}.png")


def test_pictures(tmp_path):
    faces(tmp_path)
    out = tmp_path / "out"
    run("register", tmp_path / "moving.png", tmp_path / "fixed.png", "-o", out, "--affine", "none")
    numbers = record(out)["numbers"]
    assert numbers["similarity"][0][2] > numbers["similarity"][0][1] + 0.05
    warped, fixed = (np.asarray(Image.open(p)) for p in (out / "Warped.png", tmp_path / "fixed.png"))
    assert warped.shape == fixed.shape == (61, 70)
    field = sitk.ReadImage(out / "1Warp.nii.gz", sitk.sitkVectorFloat64)
    read = [sitk.ReadImage(tmp_path / f"{role}.png", sitk.sitkFloat32) for role in ("moving", "fixed")]
    theirs = sitk.Resample(*read, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, 0.0)
    inside = np.abs(sitk.GetArrayFromImage(theirs) - warped)[2:-2, 2:-2]
    assert inside.max() <= 0.5 + 1e-2  # a picture has whole grey values


def test_a_picture_that_its_tag_turns_lies_beside_the_maps(tmp_path):
    faces(tmp_path)
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.open(tmp_path / "moving.png").save(tmp_path / "phone.jpg", exif=tag, quality=95)
    words = [tmp_path / "phone.jpg", tmp_path / "fixed.png", "-o", tmp_path / "out", "--affine", "none"]
    run("register", *words)
    turned = np.asarray(Image.open(tmp_path / "out" / "moving_as_read.png"))
    plain = np.asarray(Image.open(tmp_path / "moving.png"))
    assert np.abs(turned.astype(int) - np.rot90(plain, -1)).mean() < 3
    assert "moving_as_read.png" in record(tmp_path / "out")["files"]


def test_bad_input_ends_with_one_line_before_any_work(pair, tmp_path, capsys):
    moving, fixed = pair / "moving.nii.gz", pair / "fixed.nii.gz"
    weights, faces_weights = (WEIGHTS / d / "tm-tvf.safetensors" for d in ("anatomies", "demo_faces"))
    grey = tmp_path / "grey.png"
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(grey)
    far = tmp_path / "far.nii.gz"
    scan = images.read_image(moving)
    away = scan.grid.affine.copy()
    away[0, 3] += 900
    writing.write_image(far, scan.values, Grid(scan.grid.shape, away))
    points.write_points(tmp_path / "two.csv", np.ones((2, 3)))
    for words, told in (
        ([moving, moving], "same image"),
        ([moving, tmp_path / "none.nii.gz"], "none.nii.gz"),
        ([moving, grey], "2D.*3D|3D.*2D"),
        ([moving, fixed, "--method", "tm"], "unknown method.*known: convexadam, lddmm, tvf-pairwise"),
        ([moving, fixed, "--method", "lddmm", "--weights", weights], "give one of the two"),
        ([moving, fixed, "--refine", "5"], "--weights"),
        ([moving, fixed, "--weights", faces_weights], "2D.*3D"),
        ([moving, fixed, "--weights", tmp_path / "w.safetensors"], "no weights"),
        ([moving, fixed, "--affine", "affin"], "auto, rigid, none or a file"),
        ([moving, fixed, "--spacing", "0"], "spacing"),
        ([moving, fixed, "--device", "abacus"], "device"),
        ([moving, fixed, "--device", "meta"], "device"),
        ([moving, fixed, "--spacing", "40"], "fewer than 8 voxels.*take --spacing"),
        ([moving, fixed, "--spacing", "0.01"], "needs about .* GB.*take --spacing"),
        ([moving, fixed, "--moving-labels", pair / "fixed_labels.nii.gz"], "the moving image"),
        (
            [
                moving,
                fixed,
                "--moving-points",
                pair / "moving_points.csv",
                "--fixed-points",
                tmp_path / "two.csv",
            ],
            "12.*2",
        ),
        ([far, fixed, "--affine", "none"], "do not overlap"),
        (
            [moving, fixed, "--weights", WEIGHTS / "anatomies" / "tm.safetensors", "--refine", "2"],
            "no time-varying",
        ),
    ):
        with pytest.raises(SystemExit, match=told) as stop:
            run("register", *words, "-o", tmp_path / "out")
        assert "\n" not in stop.value.code, stop.value.code
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_wrong_input_has_status_2(pair, tmp_path):
    words = [
        sys.executable,
        "-m",
        "tvf_core",
        "register",
        pair / "none.nii",
        pair / "fixed.nii.gz",
        "-o",
        tmp_path,
    ]
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_apply_refuses_what_does_not_fit(pair, result, tmp_path):
    chain = ["-t", result / "1Warp.nii.gz"]
    moving, fixed = pair / "moving.nii.gz", pair / "fixed.nii.gz"
    for words, told in (
        (["-i", moving, *chain, "-o", tmp_path / "a.nii.gz"], "reference"),
        (["-i", moving, "-r", fixed, *chain, "-o", tmp_path / "a.txt"], "has to end in"),
        (["-i", moving, "-r", fixed, *chain, "-o", tmp_path], "has to end in|folder"),
        (["-i", moving, "-r", fixed, *chain, "-o", tmp_path / "a.nii.gz", "-n", "cubic"], "interpolation"),
        (["-i", moving, "-r", fixed, "-t", f"[{chain[1]},1]", "-o", tmp_path / "a.nii.gz"], "1InverseWarp"),
        (["-i", moving, "-r", fixed, "-t", moving, "-o", tmp_path / "a.nii.gz"], "not a displacement"),
        (["-i", pair / "moving_points.csv", "-r", fixed, *chain, "-o", tmp_path / "a.csv"], "no reference"),
        (["-i", moving, "-r", fixed, *chain, "-o", moving], "--replace"),
        (["-i", fixed, "-r", fixed, *chain, "-o", tmp_path / "a.nii.gz", "-n", "nearest"], "not whole"),
    ):
        with pytest.raises(SystemExit, match=told) as stop:
            run("apply", *words)
        assert "\n" not in stop.value.code
    assert not list(tmp_path.iterdir())


def test_the_example_is_what_it_says(tmp_path):
    lines = examples.write(tmp_path / "ex")
    assert "tvf register" in lines[-1]
    moving, fixed = (images.read_image(tmp_path / "ex" / f"{role}.nii.gz") for role in ("moving", "fixed"))
    assert np.allclose(moving.grid.spacing, examples.SLICES) and np.allclose(fixed.grid.spacing, 2)
    assert not np.allclose(moving.grid.affine[:3, :3], np.diag(np.diag(moving.grid.affine[:3, :3])))
    both = [points.read_points(tmp_path / "ex" / f"{role}_points.csv", 3) for role in ("moving", "fixed")]
    for at, scan in zip(both, (moving, fixed)):
        assert points.outside(at, scan.grid, "image") is None
    labels = [
        images.read_labels(tmp_path / "ex" / f"{role}_labels.nii.gz", scan.grid, role)
        for role, scan in (("moving", moving), ("fixed", fixed))
    ]
    near = [apply_points(labels, at) for labels, at in zip(labels, both)]
    assert (near[0] == near[1]).mean() > 0.7  # the same tissue at the same place
    with pytest.raises(ValueError, match="is there already"):
        examples.write(tmp_path / "ex")


def apply_points(labels, at):
    index = np.rint(labels.grid.index(at.positions)).astype(int)
    return labels.values[tuple(index.T)]


def test_a_mask_keeps_what_is_outside_from_counting(pair, tmp_path):
    """Bright noise outside the mask spoils the registration without the mask, not with it."""
    scan = images.read_image(pair / "fixed.nii.gz")
    labels = nib.load(pair / "fixed_labels.nii.gz").get_fdata() > 0
    rng = np.random.default_rng(0)
    outside = np.where(labels, 0, rng.uniform(0, 2, labels.shape) * (rng.random(labels.shape) < 0.3))
    writing.write_image(tmp_path / "fixed.nii.gz", scan.values + outside, scan.grid)
    errors = []
    for mask in ({}, {"fixed_mask": pair / "fixed_labels.nii.gz"}):
        found = register(pair / "moving.nii.gz", tmp_path / "fixed.nii.gz", spacing=4, progress=False, **mask)
        here, there = (points.read_points(pair / f"{r}_points.csv", 3).positions for r in ("fixed", "moving"))
        errors.append(np.linalg.norm(map_points(found.forward(), here) - there, axis=1).mean())
    assert errors[1] < 2.5 and errors[1] < errors[0]


def test_the_summary_says_what_was_measured(result):
    lines = outputs.summary(record(result))
    assert any("Dice" in line for line in lines) and any("folding" in line for line in lines)


def test_maps_of_released_weights_are_those_of_its_warp_and_have_a_true_inverse(tmp_path):
    """The released code's u is not where its warp reads, and what it calls the inverse is none."""
    weights = WEIGHTS / "demo_faces" / "tm-tvf-released.safetensors"
    faces(tmp_path)
    files = tmp_path / "moving.png", tmp_path / "fixed.png"
    found = register(*files, weights=weights, affine="none", progress=False)
    model = checkpoints.load(weights)
    own = model.register(found.before, found.fixed)
    u = found.registration.displacement
    assert own.displacement.abs().max() > 0.3
    assert torch.allclose(fields.warp(found.before, u), own.warped, atol=1e-4)
    assert metrics.inverse_consistency_error(u, found.inverse).mean() < 0.05
    assert metrics.inverse_consistency_error(u, own.inverse()).mean() > 0.1
    assert found.registration.velocity is None  # no file from which others would compute another map


def test_a_slice_of_a_volume_stays_a_slice(pair, tmp_path):
    scans = [images.read_image(pair / f"{role}.nii.gz") for role in ("moving", "fixed")]
    for role, scan in zip(("moving", "fixed"), scans):
        middle = scan.values.shape[2] // 2
        slab = scan.grid.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, middle], [0, 0, 0, 1.0]])
        nib.save(nib.Nifti1Image(scan.values[:, :, middle, None], slab), tmp_path / f"{role}.nii.gz")
    run("register", tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", "-o", tmp_path / "out")
    warped, fixed = nib.load(tmp_path / "out" / "Warped.nii.gz"), nib.load(tmp_path / "fixed.nii.gz")
    assert warped.shape == fixed.shape and np.allclose(warped.affine, fixed.affine, atol=1e-4)
    inside = fixed.get_fdata() > 0.2
    assert np.corrcoef(warped.get_fdata()[inside], fixed.get_fdata()[inside])[0, 1] > 0.8


def test_a_scan_on_the_grid_of_a_picture_keeps_its_values(tmp_path):
    faces(tmp_path)
    grid = Grid((64, 64), np.diag([-1.0, -1.0, 1.0]))
    values = images.read_image(tmp_path / "moving.png").values / 200 - 0.3
    writing.write_image(tmp_path / "scan.nii.gz", values, grid)
    words = [tmp_path / "scan.nii.gz", tmp_path / "fixed.png", "-o", tmp_path / "out", "--affine", "none"]
    run("register", *words)
    warped = nib.load(tmp_path / "out" / "Warped.nii.gz").get_fdata()
    assert warped.min() < -0.2 and len(np.unique(warped)) > 500


def test_volumes_are_chosen_for_each_file(pair, tmp_path):
    scan = nib.load(pair / "moving.nii.gz")
    volumes = np.stack([np.zeros(scan.shape), scan.get_fdata()], -1).astype(np.float32)
    nib.save(nib.Nifti1Image(volumes, scan.affine), tmp_path / "series.nii.gz")
    words = ["register", tmp_path / "series.nii.gz", pair / "fixed.nii.gz", "-o", tmp_path / "out"]
    with pytest.raises(SystemExit, match="2 volumes"):
        run(*words)
    run(*words, "--moving-volume", "1", "--affine", "none", "--spacing", "8")
    assert record(tmp_path / "out")["settings"]["moving_volume"] == 1


def test_labels_of_a_sheared_image_are_read_like_the_image(pair, tmp_path):
    for name in ("fixed", "fixed_labels"):
        scan = nib.load(pair / f"{name}.nii.gz")
        affine = scan.affine.copy()
        affine[0, 1] += 0.1
        nib.save(nib.Nifti1Image(scan.get_fdata().astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    words = ["register", pair / "moving.nii.gz", tmp_path / "fixed.nii.gz", "-o", tmp_path / "out"]
    words += ["--fixed-labels", tmp_path / "fixed_labels.nii.gz", "--affine", "none", "--spacing", "8"]
    with pytest.raises(SystemExit, match="--nearest-rotation"):
        run(*words)
    run(*words, "--nearest-rotation")
    assert (tmp_path / "out" / "InverseWarpedLabels.nii.gz").exists()


def test_only_results_of_a_registration_are_replaced(pair, result, tmp_path, monkeypatch):
    training = tmp_path / "training"
    training.mkdir()
    (training / "run.json").write_text('{"recipe": {}}')
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    outputs.check(copy, replace=True)
    (copy / "notes.txt").write_text("mine")
    for folder in (training, copy):
        with pytest.raises(ValueError, match="holds other files"):
            outputs.check(folder, replace=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name a folder in it"):
        outputs.check(Path("."), replace=True)
    with pytest.raises(OSError, match="cannot be written"):
        outputs.check(Path("/proc/there/out"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_writing_keeps_the_old_results(pair, result, tmp_path, number):
    shutil.copytree(result, tmp_path / "out")
    before = (tmp_path / "out" / "run.json").read_bytes()
    code = f"""
import os, sys
from tvf_core import commands
from tvf_core.scans import outputs
write = outputs.report.write
def stop(path, case):
    write(path, case)
    os.kill(os.getpid(), {int(number)})
outputs.report.write = stop
sys.argv = {["tvf", "register", *map(str, [pair / "moving.nii.gz", pair / "fixed.nii.gz"]), "--replace"]!r}
sys.argv += ["-o", {str(tmp_path / "out")!r}, "--affine", "none", "--spacing", "8"]
commands.entry()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "out" / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_registrations_are_no_trainings(result):
    assert list_runs(result.parent) == []


def test_a_label_of_one_image_only_has_no_score(pair, tmp_path):
    labels = images.read_labels(
        pair / "fixed_labels.nii.gz", images.read_image(pair / "fixed.nii.gz").grid, ""
    )
    values = np.where(labels.values == 4, 9, labels.values)
    writing.write_image(tmp_path / "l.nii.gz", values, labels.grid, labels=True)
    words = [pair / "moving.nii.gz", pair / "fixed.nii.gz", "-o", tmp_path / "out", "--affine", "none"]
    words += ["--moving-labels", pair / "moving_labels.nii.gz", "--fixed-labels", tmp_path / "l.nii.gz"]
    run("register", *words, "--spacing", "8")
    text = (tmp_path / "out" / "run.json").read_text()
    assert "NaN" not in text
    rows = {row[0]: row[2] for row in json.loads(text)["numbers"]["dice"]}
    assert rows["9"] is None and rows["4"] is None and rows["1"] > 0
