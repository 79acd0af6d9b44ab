"""The challenge's submission folder: names, axes, units, and scores that stay the same after writing."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from tvf_core import commands, data, fields, metrics
from tvf_core.data import pairs
from tvf_core.evaluation import evaluate, learn2reg


def test_a_linear_field_survives_the_half_grid(smooth_field):
    # First and last voxels coincide, so that a linear field stays linear on the half grid, with the same
    # values at the corners.
    shape = (24, 30, 28)  # with the last two sizes, SciPy's default fills a plane with zeros
    x = fields.identity_grid(shape)
    u = 0.1 * x - 0.05 * x.flip(1) + torch.tensor([1.0, -2, 3]).view(1, 3, 1, 1, 1)
    stored = learn2reg.halve(u)
    assert stored.dtype == np.float16 and stored.shape == (3, 12, 15, 14)
    # Values stay voxels of the full grid and are not halved.
    assert stored[1, 11, 0, 13] == pytest.approx(float(u[0, 1, 23, 0, 27]), abs=2e-3)
    difference = (learn2reg.double(stored) - u).abs()
    # SciPy's splines bend at the border.
    assert difference.max() < 0.1 and difference[..., 8:-8, 8:-8, 8:-8].max() < 0.005
    smooth = smooth_field((24, 40, 36), amplitude=3.0)  # with these sizes SciPy fills no plane with zeros
    literal = np.stack(
        [
            ndimage.zoom(ndimage.zoom(c, 0.5, order=2).astype(np.float16).astype(np.float32), 2, order=2)
            for c in smooth[0].numpy()
        ]
    )
    assert np.array_equal(learn2reg.double(learn2reg.halve(smooth))[0].numpy(), literal)
    for wrong, match in (
        (torch.zeros(1, 2, 8, 8), "one 3D field"),
        (torch.zeros(1, 3, 8, 9, 8), "even sizes"),
    ):
        with pytest.raises(ValueError, match=match):
            learn2reg.halve(wrong)


def test_files_are_named_fixed_before_moving():
    assert learn2reg.file_name("OASIS_0439->OASIS_0438") == "disp_0438_0439.npz"  # moving->fixed
    with pytest.raises(ValueError, match="without a number"):
        learn2reg.file_name("a1->happy")


def test_the_written_folder_scores_as_the_fields_within_the_rounding_of_the_format(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "tvf",
            "export-l2r",
            "--method",
            "vm-2",
            "--data",
            "demo_brains",
            "--split",
            "val",
            "--out",
            str(tmp_path),
        ],
    )
    commands.main()
    printed = capsys.readouterr().out
    part = data.load("demo_brains", "val")
    files = sorted(f.name for f in (tmp_path / "task_03").iterdir())
    assert (
        files == sorted(learn2reg.file_name(part.pair_name(k)) for k in range(len(part))) and len(files) == 6
    )
    model, rows = evaluate.load_model("vm-2", part), []
    for k in range(len(part)):
        pair = part.batch([k])
        u = model.register(pair["moving"], pair["fixed"]).displacement
        back = learn2reg.read(tmp_path / "task_03" / learn2reg.file_name(part.pair_name(k)), part.shape)
        assert back.shape == u.shape and (back - u).abs().mean() < 0.1 * u.abs().mean()
        maps = fields.warp_labels(pair["moving_labels"], u), pair["fixed_labels"], pair["moving_labels"]
        labels = list(part.label_names)
        rows.append(
            [
                np.nanmean(metrics.dice(*maps, labels)),
                np.nanmean(metrics.hd95(*maps, labels)),
                metrics.sdlogj(u),
            ]
        )
    own, written = (
        dict(zip(("dice", "hd95", "sdlogj"), np.mean(rows, 0))),
        {
            name: value["mean"]
            for name, value in learn2reg.scores(tmp_path, "demo_brains", progress=False)["summary"].items()
        },
    )
    assert written["dice"] == pytest.approx(own["dice"], abs=0.005)
    assert written["hd95"] == pytest.approx(own["hd95"], abs=0.05)
    assert own["sdlogj"] - 0.02 < written["sdlogj"] < own["sdlogj"] + 0.001  # the spline smooths the field
    assert f"Dice {written['dice']:.4f}" in printed and f"HD95 {written['hd95']:.4f}" in printed


@pytest.fixture
def even(toy_data, monkeypatch):
    """The toy volumes without their last plane, so that their sizes are even; two pairs."""
    odd = pairs.DATASETS["toy3d"]

    def load(*args):
        part = odd(*args)
        return dataclasses.replace(
            part, name="even", images=part.images[..., :-1], labels=part.labels[..., :-1]
        )

    monkeypatch.setitem(pairs.DATASETS, "even", load)


def test_a_submission_is_continued_but_not_mixed(tmp_path, even):
    files = learn2reg.export("identity", "even", tmp_path, progress=False)
    before = files[0].stat().st_mtime_ns
    files[1].unlink()
    assert learn2reg.export("identity", "even", tmp_path, progress=False) == files and files[1].is_file()
    assert files[0].stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        learn2reg.export("identity", "even", tmp_path, split="test", progress=False)
    (tmp_path / "submission.json").unlink()
    with pytest.raises(ValueError, match="unknown origin"):
        learn2reg.export("identity", "even", tmp_path, progress=False)
    assert [f.name for f in files] == ["disp_0005_0004.npz", "disp_0004_0005.npz"]


def test_a_pair_without_a_common_label_is_named_and_left_out_of_the_means(
    tmp_path, even, monkeypatch, capsys
):
    whole = pairs.DATASETS["even"]
    monkeypatch.setitem(
        pairs.DATASETS,
        "even",
        lambda *args: dataclasses.replace(
            part := whole(*args),
            labels=np.where(np.arange(8)[:, None, None, None] == 6, 0, part.labels),
            pairs=[(4, 5), (4, 6), (5, 4)],
        ),
    )
    learn2reg.export("identity", "even", tmp_path, progress=False)
    found, part = learn2reg.scores(tmp_path, "even", progress=False), data.load("even", "val")
    assert found["not_scored"] == {"dice": ["i4->i6"], "hd95": ["i4->i6"]} and found["n_pairs"] == 3
    each = [
        metrics.dice(
            *(part.batch([k])[f"{role}_labels"] for role in ("moving", "fixed", "moving")), [1, 2]
        ).mean()
        for k in (0, 2)
    ]
    assert found["summary"]["dice"]["mean"] == pytest.approx(np.mean(each))
    monkeypatch.setattr(sys, "argv", f"tvf export-l2r --method identity --data even --out {tmp_path}".split())
    commands.main()
    assert f"Dice {np.mean(each):.4f} (1 of 3 pairs not scored)" in capsys.readouterr().out


def test_files_in_another_format_and_missing_ones_are_named(tmp_path, even):
    files = learn2reg.export("identity", "even", tmp_path, progress=False)
    good = files[0].read_bytes()
    for content, match in (
        (np.zeros((3, 10, 9, 8), np.float32), "got float32"),
        (np.zeros((10, 9, 8, 3), np.float16), "expected float16"),
        (np.full((3, 10, 9, 8), np.nan, np.float16), "NaN or infinite"),
        (np.full((3, 10, 9, 8), -np.inf, np.float16), "NaN or infinite"),
    ):
        np.savez(files[0], content)
        with pytest.raises(ValueError, match=match):
            learn2reg.scores(tmp_path, "even", progress=False)
    np.savez(files[0], other=np.zeros(3))
    with pytest.raises(ValueError, match="not a displacement"):
        learn2reg.scores(tmp_path, "even", progress=False)
    files[0].write_bytes(good)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=files[1].name):
        learn2reg.scores(tmp_path, "even", progress=False)
    for name in ("toy2d", "toy3d"):
        with pytest.raises(ValueError, match="even sizes"):
            learn2reg.export("identity", name, tmp_path / name, progress=False)
