"""Training and evaluation on tiny data: learning, stopping and continuing, and what the files say."""

import csv
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import lively

from tvf_core import checkpoints, data, fields, metrics
from tvf_core.evaluation import evaluate
from tvf_core.evaluation.kept_rows import kept_rows
from tvf_core.evaluation.results import TEXTS, read_results, read_rows
from tvf_core.evaluation.scores import METRICS
from tvf_core.losses.objectives import standard_terms
from tvf_core.methods import METHODS, NetworkConfig
from tvf_core.metrics.feature_similarity import fsim
from tvf_core.model import Model
from tvf_core.networks.layers import RELEASED, STANDARD
from tvf_core.paths import ROOT
from tvf_core.training import lock, train, validation
from tvf_core.training.history import read_history
from tvf_core.training.profiles import Profile
from tvf_core.training.sampling import PairSampler

TRAINABLE = [name for name, entry in METHODS.items() if entry.build]
WITHOUT_LANDMARKS = [metric for metric in METRICS if not metric.startswith("landmark")]


def run(method, name, steps, out, **settings):
    """Train on tiny data; what is no argument of ``train`` is one of its profile."""
    arguments = {
        key: settings.pop(key)
        for key in ("save_minutes", "resume", "on_nonfinite", "watch", "workers", "tensorboard")
        if key in settings
    }
    profile = Profile(
        name, **dict(steps=steps, lr=2e-3, time_steps=2, validations=2, validation_pairs=1) | settings
    )
    return train.train(method, profile, out=out, progress=False, **arguments)


@pytest.mark.parametrize("method", TRAINABLE)
@pytest.mark.parametrize("name", ["toy2d", "toy3d"])
def test_training_on_one_pair_learns_it(method, name, toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(PairSampler, "__call__", lambda self, step: [(0, 1)])
    monkeypatch.setattr(validation, "validate", lambda *args: 1.0)
    card = run(method, name, 30 if name == "toy2d" else 12, tmp_path)
    losses = [record["loss"] for record in card["history"]]
    gain = (
        0.04 if method == "cyclemorph" else 0.1
    )  # half of its loss is there from the start: images like themselves
    assert np.mean(losses[-3:]) < losses[0] - gain * abs(losses[0])
    for record in card["history"]:
        parts = [
            value
            for key, value in record.items()
            if key not in ("step", "loss", "validation", "grad_norm", "lr", "seconds")
        ]
        assert record["loss"] == pytest.approx(sum(parts), rel=1e-4, abs=1e-6)


def test_the_released_method_trains_with_the_released_warp(toy_data, tmp_path):
    part = data.load("toy2d", "train")
    batch = part.stack(PairSampler(part, 1)(0))
    nothing = torch.zeros(1, 2, *part.shape)  # an untrained head moves by 1e-5
    seen = {}
    for method in ("tm-tvf", "tm-tvf-released"):
        first = run(method, "toy2d", 1, tmp_path / method)["history"][0]
        convention = RELEASED if method == "tm-tvf-released" else STANDARD
        expected = standard_terms(
            METHODS[method].weights(2), {}, batch, nothing, None, part.label_numbers, convention
        )
        seen[method] = first["lncc"]
        for term in ("lncc", "dice"):
            if term in expected:
                assert first[term] == pytest.approx(float(expected[term]), abs=1e-3)
    assert abs(seen["tm-tvf"] - seen["tm-tvf-released"]) > 0.005  # far more than the difference allowed above


def test_validation_uses_the_arithmetic_of_the_training(toy_data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        validation, "validate", lambda *args: (seen.append(torch.is_autocast_enabled("cpu")), 1.0)[1]
    )
    run("vm-2", "toy2d", 1, tmp_path / "bf16", precision="bf16")
    run("vm-2", "toy2d", 1, tmp_path / "fp32", precision="fp32")
    assert seen == [True, False]


@pytest.mark.parametrize(
    "shape,labelled", [((20, 18, 1), True), ((2, 16, 18), False), ((9, 7), True)], ids=str
)
def test_a_training_takes_stacks_of_few_slices_and_small_images(shape, labelled, toy_data, tmp_path):
    toy_data("thin", shape, labelled)
    terms = {"lncc": 1.0, "diffusion": 1.0} | ({} if labelled else {"ssim": 1.0})
    card = run("vm-2", "thin", 2, tmp_path, losses={"vm-2": terms})
    assert all(np.isfinite(record["loss"]) and record["grad_norm"] > 0 for record in card["history"])
    assert 0 < card["validation"]["score"] <= 1
    assert card["validation"]["metric"] == ("dice" if labelled else "ssim")


@pytest.mark.parametrize("labelled", [True, False])
def test_images_too_small_for_ssim_are_refused_before_a_training_begins(labelled, toy_data, tmp_path):
    toy_data("small", (20, 9, 2), labelled)
    losses = {"vm-2": {"ssim": 1.0}} if labelled else {}
    with pytest.raises(ValueError) as error:
        run("vm-2", "small", 1, tmp_path / "run", losses=losses)
    reason = "" if labelled else "small: without labels, SSIM chooses the best weights; "
    assert str(error.value) == f"{reason}ssim: needs at least 11 voxels along two axes, got (20, 9, 2)"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["vm-2", "vm-diff", "cyclemorph", "lapirn", "clapirn"])
def test_baselines_train_in_half_precision(method, toy_data, tmp_path):
    card = run(method, "toy3d_long", 8, tmp_path, precision="bf16")
    assert all(np.isfinite(record["loss"]) for record in card["history"])
    assert np.isfinite(card["validation"]["score"])


def test_each_training_has_its_own_precision_also_in_one_process(toy_data, tmp_path):
    half = run("tm-tvf", "toy3d_long", 3, tmp_path / "half", precision="bf16", recompute=True)
    single = run("tm-tvf", "toy3d_long", 3, tmp_path / "single")
    assert (half["settings"]["precision"], single["settings"]["precision"]) == ("bf16", "no")
    assert half["history"][0]["loss"] == pytest.approx(single["history"][0]["loss"], rel=0.02)
    assert half["history"][0]["loss"] != single["history"][0]["loss"]
    with pytest.raises(ValueError, match="other settings .precision"):
        run("tm-tvf", "toy3d_long", 3, tmp_path / "half", precision="fp32")


@pytest.mark.parametrize("method", ["tm-tvf", "vm-2"])
def test_bf16_on_a_processor_is_refused_where_its_gradients_are_wrong(method, toy_data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    with pytest.raises(ValueError, match="2 voxels along the first axis.*use fp32"):
        run(method, "toy3d", 3, tmp_path, precision="bf16")


@pytest.mark.parametrize(
    "precision, words",
    [("fp16", "needs a GPU"), ("half", "precision must be fp32 or bf16 or fp16, got 'half'")],
)
def test_a_precision_that_cannot_be_had_is_refused(precision, words, toy_data, tmp_path):
    if precision == "fp16" and torch.cuda.is_available():
        pytest.skip("here is a GPU")
    with pytest.raises(ValueError, match=words):
        run("tm-tvf", "toy3d", 3, tmp_path, precision=precision)


def test_recomputing_trains_the_same_weights(toy_data, tmp_path):
    kept, recomputed = (run("tm-tvf", "toy3d", 3, tmp_path / str(on), recompute=on) for on in (False, True))
    assert [r["loss"] for r in kept["history"]] == pytest.approx(
        [r["loss"] for r in recomputed["history"]], rel=1e-5
    )


def test_the_seed_decides_everything(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "validate", lambda *args: 1.0)
    losses = [
        [r["loss"] for r in run("tm", "toy2d", 3, tmp_path / str(k), seed=seed)["history"]]
        for k, seed in enumerate([0, 0, 1])
    ]
    assert losses[0] == losses[1] and losses[0] != losses[2]


def test_the_weights_of_the_best_validation_are_kept(toy_data, tmp_path, monkeypatch):
    seen, scores = [], iter([0.2, 0.9, 0.1])

    def validate(network, *args):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(validation, "validate", validate)
    card = run("tm", "toy2d", 3, tmp_path, validations=3)
    assert card["validation"]["score"] == 0.9
    kept = checkpoints.load(tmp_path / "weights.safetensors").network.state_dict()
    for key, value in kept.items():
        torch.testing.assert_close(value, seen[1][key], atol=1e-3, rtol=1e-3)  # half precision
    assert any(
        not torch.allclose(value, seen[2][key], atol=1e-5)
        for key, value in kept.items()
        if value.numel() < 1000
    )


def test_the_learning_rate_decays_as_published(toy_data, tmp_path, monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(validation, "validate", lambda *args: 1.0)
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self, *args, **kwargs: (
            rates.append((self.param_groups[0]["lr"], self.param_groups[0]["amsgrad"])),
            step(self, *args, **kwargs),
        )[1],
    )
    run("tm", "toy2d", 4, tmp_path)
    assert rates == [(pytest.approx(2e-3 * (1 - e / 4) ** 0.9), True) for e in range(4)]


@pytest.fixture
def other_pairs(toy_data, monkeypatch):
    """``other_pairs(name, pairs)`` registers the images of ``toy2d`` with other pairs for the training."""
    load = data.DATASETS["toy2d"]

    def register(name, chosen, **changes):
        def loaded(split, *args):
            part = replace(load(split, *args), name=name, **changes)
            return replace(part, pairs=chosen) if split == "train" else part

        monkeypatch.setitem(data.DATASETS, name, loaded)

    return register


def test_more_pairs_are_learnt_from_and_nothing_else_changes(other_pairs, tmp_path, monkeypatch):
    other_pairs("toy_more", [(0, 2), (1, 3), (0, 1)])
    seen = []
    sampler = train.PairSampler
    monkeypatch.setattr(train, "PairSampler", lambda part, *args: seen.append(part) or sampler(part, *args))
    card = run("vm-2", "toy2d", 2, tmp_path / "more", more_pairs="toy_more", epoch_of="images")
    [part] = seen
    assert part.name == "toy2d" and part.split == "train"
    assert set(part.pairs) == {(0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (1, 3)}
    drawn = {pair for step in range(80) for pair in sampler(part, 2, epoch_of="images")(step)}
    assert {frozenset(pair) for pair in drawn} == {frozenset(pair) for pair in part.pairs}
    assert card["settings"]["more_pairs"] == "toy_more" and card["settings"]["data"] == "toy2d"
    with pytest.raises(ValueError, match="other settings .*more_pairs"):
        run("vm-2", "toy2d", 2, tmp_path / "more", epoch_of="images")


def test_a_run_of_the_time_before_more_pairs_continues(toy_data, tmp_path):
    def stop(record):
        if record["step"] == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("vm-2", "toy2d", 3, tmp_path, watch=stop)
    recipe = json.loads((tmp_path / "run.json").read_text())["recipe"]
    assert "more_pairs" not in recipe and recipe["epoch_of"] == "pairs"  # as such a run has written it
    card = run("vm-2", "toy2d", 3, tmp_path)
    assert len(card["history"]) == 3 and "more_pairs" not in card["settings"]
    assert run("vm-2", "toy2d", 3, tmp_path, more_pairs="")["weights"] == card["weights"]


@pytest.mark.parametrize(
    "name, told",
    [
        (
            "toy_plain",
            "more_pairs: toy_plain is no further list of pairs in the folder of toy2d",
        ),  # the same ones without labels
        ("toy_renamed", "more_pairs: toy_renamed is no further list of pairs in the folder of toy2d"),
        ("toy_changed", "more_pairs: toy_changed is no further list of pairs in the folder of toy2d"),
        ("toy_same", "more_pairs: toy_same has no pairs that toy2d does not have"),
        ("toy2d", "more_pairs: toy2d has no pairs that toy2d does not have"),
        ("toy_unknown", "unknown data set 'toy_unknown'"),
    ],
)
def test_more_pairs_must_be_of_the_same_images(name, told, other_pairs, tmp_path):
    images = data.load("toy2d", "train").images.copy()
    images[0, 0, 0] += 1
    other_pairs("toy_renamed", [(0, 2)], names=[f"j{k}" for k in range(8)])
    other_pairs("toy_changed", [(0, 2)], images=images)
    other_pairs("toy_same", [(1, 0)])
    with pytest.raises(ValueError, match=told) as error:
        run("vm-2", "toy2d", 2, tmp_path / "run", more_pairs=name)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_stacked_batch_holds_each_pair_in_its_order(toy_data):
    part = data.load("toy2d", "train")
    batch = part.stack([(0, 1), (3, 2)])
    for row, (moving, fixed) in enumerate([(0, 1), (3, 2)]):
        for key, value in part.take(moving, fixed).items():
            assert torch.equal(batch[key][row], value)
    terms = standard_terms(
        METHODS["tm"].weights(2), {}, batch, torch.zeros(2, 2, 32, 29), None, part.label_numbers
    )
    assert terms.keys() == {"lncc", "diffusion"}


@pytest.mark.parametrize("method", TRAINABLE)
@pytest.mark.parametrize("name", ["toy2d", "toy3d"])
def test_stored_weights_register_as_before(method, name, toy_data, tmp_path):
    part = data.load(name, "test")
    changes = METHODS[method].integrator == "rk4"  # a velocity that stays the same in time is squared
    config, _ = NetworkConfig.fitting(method, part.dim, time_steps=3, integrator="heun" if changes else "")
    model = lively(Model(config))
    checkpoints.save(tmp_path / "w.safetensors", model.network.state_dict(), config)
    stored = checkpoints.load(tmp_path / "w.safetensors")
    assert stored.config == config
    pair = part.batch([0])
    before, after = (m.register(pair["moving"], pair["fixed"]).displacement for m in (model, stored))
    assert before.abs().max() > 0.2
    assert torch.equal(after, before)
    checkpoints.save(tmp_path / "c.safetensors", model.network.state_dict(), config, compact=True)
    assert (tmp_path / "c.safetensors").stat().st_size < 0.5 * (tmp_path / "w.safetensors").stat().st_size
    compact = (
        checkpoints.load(tmp_path / "c.safetensors").register(pair["moving"], pair["fixed"]).displacement
    )
    assert 0 < (compact - before).norm() < 0.1 * before.norm()


@pytest.fixture
def evaluated(toy_data, tmp_path):
    config = NetworkConfig("tm-tvf", 2, time_steps=2)
    weights = tmp_path / "w.safetensors"
    checkpoints.save(weights, lively(Model(config)).network.state_dict(), config)

    def go(**kwargs):
        return evaluate.evaluate(
            "tm-tvf", "toy2d", **dict(weights=weights, out=tmp_path, progress=False) | kwargs
        )

    return go, weights, config


def test_evaluation_writes_a_row_per_pair_and_their_mean(evaluated, tmp_path):
    go, weights, _ = evaluated
    summary = go()
    assert json.loads((tmp_path / "toy2d" / "tm-tvf.json").read_text()) == summary
    with open(tmp_path / "toy2d" / "tm-tvf.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["pair"] for row in rows] == ["i6->i7", "i7->i6"]
    assert (
        set(summary["summary"])
        == set(rows[0]) - set(TEXTS)
        >= {*WITHOUT_LANDMARKS, *(f"{m}/{k}" for m in ("dice", "hd95") for k in ("outer", "inner"))}
    )
    for metric, entry in summary["summary"].items():
        values = [float(row[metric]) for row in rows]
        assert entry["mean"] == pytest.approx(np.mean(values))
        assert entry["std"] == pytest.approx(np.std(values), abs=1e-12)
    part, model = data.load("toy2d", "test"), checkpoints.load(weights)
    pair = part.batch([1])
    result = model.register(pair["moving"], pair["fixed"])
    assert float(rows[1]["ssim"]) == pytest.approx(metrics.ssim(result.warped, pair["fixed"]), abs=1e-5)
    assert float(rows[1]["fsim"]) == pytest.approx(fsim(result.warped, pair["fixed"]), abs=1e-5)
    u = result.displacement
    for name, value in {
        "sdlogj": metrics.sdlogj(u),
        "sdlogj_textbook": metrics.sdlogj(u, "textbook"),
        "negation_error": fields.compose(-u, u).norm(dim=1).mean(),
    }.items():
        assert float(rows[1][name]) == pytest.approx(float(value), rel=1e-3, abs=1e-9), name
    warped = fields.warp_labels(pair["moving_labels"], u)
    assert float(rows[1]["hd95/inner"]) == pytest.approx(
        metrics.hd95(warped, pair["fixed_labels"], pair["moving_labels"], [2])[0]
    )
    for name in ("dice", "hd95"):
        assert float(rows[0][name]) == pytest.approx(
            np.mean([float(rows[0][f"{name}/{k}"]) for k in ("outer", "inner")])
        )


@pytest.mark.parametrize("name, strength", [("toy2d", 0.2), ("toy3d", 0.05)])
def test_a_row_of_a_map_that_folds_keeps_the_conventions_apart(name, strength, toy_data):
    part = data.load(name, "test")
    model = lively(Model(NetworkConfig("tm-tvf", part.dim, time_steps=2)), strength)
    model.network.eval()
    pair = part.batch([1])
    u = model.register(pair["moving"], pair["fixed"]).displacement.double()
    jacobian = [np.gradient(component, axis=tuple(range(part.dim))) for component in u[0].numpy()]
    det = np.linalg.det(np.moveaxis(np.array(jacobian), (0, 1), (-2, -1)) + np.eye(part.dim))
    row = evaluate.score(model, part, 1)
    inner = det[(slice(2, -2),) * part.dim]
    expected = {
        "folding_percent": 100 * (det <= 0).mean(),
        "folding_inner_percent": 100 * (inner <= 0).mean(),
        "ndv_percent": metrics.ndv_percent(u),
        "sdlogj": np.log(np.clip(inner + 3, 1e-9, 1e9)).std(),
        "sdlogj_textbook": np.log(inner[inner > 0]).std(),
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert len(set(expected.values())) == 5 and min(expected.values()) > 0.01
    assert evaluate.score(model, part, 1, wanted=["folding_inner_percent"]).keys() == {
        "seconds",
        "folding_inner_percent",
    }


def test_splits_do_not_overwrite_each_other_and_the_card_of_the_weights_is_told(evaluated, tmp_path):
    go, weights, _ = evaluated
    assert "training" not in go()
    weights.with_suffix(".json").write_text(
        json.dumps({"settings": {"seed": 3, "steps": 5, "lr": 1}, "seconds": 7.0, "code": "abc"})
    )
    validation, test = go(split="val"), json.loads((tmp_path / "toy2d" / "tm-tvf.json").read_text())
    assert (validation["split"], test["split"]) == ("val", "test")
    assert validation["training"] == {"seed": 3, "steps": 5, "seconds": 7.0, "code": "abc"}
    assert read_results(tmp_path, "toy2d", "val") == {"tm-tvf": validation}
    assert list(read_rows("tm-tvf", "toy2d", tmp_path, "val")["pair"]) == ["i4->i5", "i5->i4"]


def test_stored_results_are_taken_until_weights_or_settings_change(evaluated, monkeypatch):
    go, weights, config = evaluated
    first, score = go(), evaluate.score

    def refuse(*args):
        raise RuntimeError("computed again")

    monkeypatch.setattr(evaluate, "score", refuse)
    assert go() == first
    for settings in (dict(limit=1), dict(split="val")):
        with pytest.raises(RuntimeError, match="computed again"):
            go(**settings)
    state = checkpoints.load(weights).network.state_dict()
    checkpoints.save(weights, {key: value + 0.01 for key, value in state.items()}, config)
    with pytest.raises(RuntimeError, match="computed again"):
        go(replace=True)
    monkeypatch.setattr(evaluate, "score", score)
    assert go(replace=True)["summary"] != first["summary"]


def test_a_stopped_evaluation_continues_and_ends_with_the_same_rows(evaluated, tmp_path, monkeypatch):
    go, _, _ = evaluated
    whole, score = go(), evaluate.score
    expected = (tmp_path / "toy2d" / "tm-tvf.csv").read_bytes()
    (tmp_path / "toy2d" / "tm-tvf.json").unlink()
    (tmp_path / "toy2d" / "tm-tvf.csv").unlink()
    seen = []

    def power_cut(model, pairs, k, device):
        seen.append(k)
        if k == 1:
            raise KeyboardInterrupt
        return score(model, pairs, k, device)

    monkeypatch.setattr(evaluate, "score", power_cut)
    with pytest.raises(KeyboardInterrupt):
        go()
    kept = tmp_path / "toy2d" / ".tm-tvf.rows.jsonl"
    assert len(kept.read_text().splitlines()) == 2 and not (tmp_path / "toy2d" / "tm-tvf.json").exists()
    kept.write_text(
        kept.read_text() + '{"pair": "i7->i6", "dice'
    )  # what a kill in the middle of writing leaves
    monkeypatch.setattr(evaluate, "score", lambda *args: seen.append(args[2]) or score(*args))
    again = go()
    assert seen == [0, 1, 1]  # pair 0 was not registered again
    assert (tmp_path / "toy2d" / "tm-tvf.csv").read_bytes() == expected and not kept.exists()
    for changing in ("seconds_per_pair", "measuring_seconds_per_pair", "card"):
        again.pop(changing), whole.pop(changing)
    assert again == whole


KILLED = """
import os, signal, sys
from tvf_core.evaluation import evaluate
score = evaluate.score
seen = []
def stop_at(model, pairs, k, device):
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(k)
    return score(model, pairs, k, device)
if "kill" in sys.argv:
    evaluate.score = stop_at
evaluate.evaluate("vm-2", "demo_faces", name="mine", split="val", limit=6, out=sys.argv[1], progress=False)
"""


def test_sigkill_in_an_evaluation_loses_nothing(tmp_path):
    run = lambda *args: subprocess.run([sys.executable, "-c", KILLED, *map(str, args)], cwd=ROOT).returncode  # noqa: E731
    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "cut", "kill") == -signal.SIGKILL
    kept = tmp_path / "cut" / "demo_faces" / ".mine.val.6-pairs.rows.jsonl"
    assert len(kept.read_text().splitlines()) == 4 and not (kept.parent / "mine.val.6-pairs.csv").exists()
    assert run(tmp_path / "cut") == 0
    whole, cut = (
        (tmp_path / name / "demo_faces" / "mine.val.6-pairs.csv").read_bytes() for name in ("whole", "cut")
    )
    assert whole == cut and whole.count(b"\n") == 7


@pytest.mark.parametrize("damage", ["\0" * 40, "", '{"pair": "i7', "[1]", "7", "{}"])
def test_a_damaged_line_among_the_kept_rows_is_measured_again(damage, tmp_path):
    file, about, pairs = tmp_path / ".x.rows.jsonl", {"settings": 1}, ["a", "b", "c"]
    lines = [json.dumps(about), '{"pair": "a"}', damage, '{"pair": "c"}']
    file.write_text("\n".join(lines) + "\n")
    with kept_rows(file, about, pairs) as (rows, keep):
        assert rows == [{"pair": "a"}]
        keep({"pair": "b"})
        assert len(file.read_text().splitlines()) == 3


def test_rows_of_other_settings_are_not_continued_and_two_at_once_are_refused(
    evaluated, tmp_path, monkeypatch
):
    go, _, _ = evaluated
    kept = tmp_path / "toy2d" / ".tm-tvf.rows.jsonl"
    kept.parent.mkdir()
    kept.write_text(
        '{"settings": {"method": "tm-tvf", "split": "val"}, "code": "0"}\n'
        '{"pair": "of another run", "dice": 0}\n'
    )
    assert go()["n_pairs"] == 2
    assert "another run" not in (tmp_path / "toy2d" / "tm-tvf.csv").read_text()
    (tmp_path / "toy2d" / "tm-tvf.json").unlink()
    with kept_rows(kept, {}, []), pytest.raises(ValueError, match="another process"):
        go()


def test_settings_tell_the_integrator_of_every_method_that_has_the_option(toy_data, tmp_path):
    for method, integrator, told in (
        ("tm", "released", "released"),
        ("tm", "", None),
        ("vm-2", "", None),
        ("vm-diff", "", "squaring"),
        ("tm-tvf", "euler", "euler"),
    ):
        config = NetworkConfig(method, 2, integrator=integrator)
        weights = tmp_path / "weights.safetensors"
        checkpoints.save(weights, lively(Model(config)).network.state_dict(), config)
        out = tmp_path / f"{method}-{integrator}"
        summary = evaluate.evaluate(method, "toy2d", weights=weights, limit=1, out=out, progress=False)
        assert summary["card"]["settings"]["integrator"] == told, (method, integrator)


def test_doing_nothing_scores_as_the_untouched_images(toy_data, tmp_path):
    summary = evaluate.evaluate("identity", "toy2d", out=tmp_path, progress=False)["summary"]
    part = data.load("toy2d", "test")
    pair = part.batch([0])
    expected = metrics.dice(pair["moving_labels"], pair["fixed_labels"], pair["moving_labels"], [1, 2]).mean()
    assert summary["dice"]["mean"] == pytest.approx(expected)  # the other pair is this one turned round
    assert summary["ssim"]["mean"] == pytest.approx(metrics.ssim(pair["moving"], pair["fixed"]))
    assert all(
        abs(summary[m]["mean"]) < 1e-12
        for m in ("folding_percent", "folding_inner_percent", "sdlogj", "inverse_error")
    )


def test_validation_scores_dice_with_labels_and_ssim_without(toy_data):
    config = NetworkConfig("tm", 2)
    network = Model(config).network
    for name, metric in (("toy2d", "dice"), ("toy_plain", "ssim")):
        part = data.load(name, "val")
        expected = np.mean(
            [evaluate.score(Model(config, network), part, k, "cpu", [metric])[metric] for k in (0, 1)]
        )
        assert [
            validation.validate(network, config, part, [0, 1], Accelerator(cpu=True), at_once)
            for at_once in (1, 2)
        ] == pytest.approx([expected] * 2)


@pytest.fixture
def few_labels(monkeypatch):
    """``few_labels(common)``: a data set whose images 4 to 7 have one label each, image 4 and 5 the same if
    they are to have it in ``common``; 12 pairs of them validate. In training all images have both labels."""

    def register(common, shape=(24, 20)):
        rng = np.random.default_rng(0)
        images = rng.random((8, *shape))
        labels = 1000 + 1035 * rng.integers(0, 2, (8, *shape))
        for image, label in zip(range(4, 8), (7, 7 if common else 8, 9, 1000)):
            labels[image] = 0
            labels[image, 4:12, 5:15] = label
        pairs = {
            "train": [(0, 1), (1, 0)],
            "val": list(itertools.permutations(range(4, 8), 2)),
            "test": [(0, 1)],
        }
        load = lambda split, size, progress: data.PairData("few", split, images, pairs[split], labels=labels)  # noqa: E731
        monkeypatch.setitem(data.DATASETS, "few", load)

    return register


def test_validation_pairs_without_a_common_label_are_left_out(few_labels, tmp_path, capsys):
    few_labels(common=True)
    part = data.load("few", "val")
    every = [
        metrics.dice(x["moving_labels"], x["fixed_labels"], x["moving_labels"], [*part.label_names])
        for x in (part.batch([k]) for k in range(12))
    ]
    assert validation.scorable(part, 0) == [k for k in range(12) if np.isfinite(every[k]).any()] == [0, 3]
    assert validation.scorable(part, 2) == [0]  # of 0 and 11
    card = run("vm-2", "few", 2, tmp_path, validation_pairs=0)
    assert card["validation"]["pairs"] == 2 and 0 < card["validation"]["score"] <= 1
    assert [0 < r["validation"] <= 1 for r in card["history"]] == [True] * 2
    assert "10 validation pairs have no label in common; the other 2 are scored" in capsys.readouterr().err


def test_a_training_that_could_not_choose_its_best_weights_does_not_begin(few_labels, tmp_path, monkeypatch):
    few_labels(common=False)
    with pytest.raises(ValueError, match="few: none of the 12 validation pairs has a label .* in both"):
        run("vm-2", "few", 2, tmp_path / "run", validation_pairs=0)
    thin = lambda split, *_: data.PairData("thin", split, np.zeros((2, 9, 20), np.uint8), [(0, 1)])  # noqa: E731
    monkeypatch.setitem(data.DATASETS, "thin", thin)
    with pytest.raises(
        ValueError, match="thin: without labels, SSIM chooses the best weights; ssim: .*11 voxels"
    ):
        run("vm-2", "thin", 2, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_results_are_read_in_the_order_of_the_table(toy_data, evaluated, tmp_path):
    go, _, _ = evaluated
    untouched = evaluate.evaluate("identity", "toy2d", out=tmp_path, progress=False)
    first = go()
    assert list(read_results(tmp_path, "toy2d").items()) == [
        ("identity", untouched),
        ("tm-tvf", first),
    ]
    assert read_results(tmp_path, "toy3d") == {}
    rows = read_rows("tm-tvf", "toy2d", tmp_path)
    assert list(rows["pair"]) == ["i6->i7", "i7->i6"]
    assert rows["dice"].mean() == pytest.approx(first["summary"]["dice"]["mean"])


def test_a_finished_run_is_returned_and_one_with_other_settings_refused(toy_data, tmp_path):
    first = run("tm", "toy2d", 2, tmp_path)
    written = first["weights"].stat().st_mtime_ns
    again = run("tm", "toy2d", 2, tmp_path)
    assert again == first and again["weights"].stat().st_mtime_ns == written
    with pytest.raises(ValueError) as refused:
        run("tm", "toy2d", 2, tmp_path, seed=1, losses={"tm": {"mse": 1.0}}, lr=0.1)
    message = str(refused.value)
    assert "\n" not in message and "(losses, lr: 0.002 there, 0.1 here, seed: 0 there, 1 here)" in message
    assert all(remedy in message for remedy in ("--resume beside", "--out FOLDER", "--resume new"))


def test_runs_of_any_settings_lie_side_by_side_and_are_found_again(toy_data, tmp_path, capsys):
    """What ``resume="beside"`` promises: nobody's run is lost, refused or trained twice."""
    place, settings = tmp_path / "live", [{}, {"seed": 1}, {"lr": 0.01}, {"batch": 2}, {"time_steps": 3}]
    first = [run("tm-tvf", "toy2d", 1, place, resume="beside", **s) for s in settings]
    folders = [card["weights"].parent for card in first]
    assert folders[0] == place and len(set(folders)) == len(settings)
    assert all(re.fullmatch(r"live-[0-9a-f]{8}", folder.name) for folder in folders[1:])
    written = [card["weights"].stat().st_mtime_ns for card in first]
    for card, options in reversed(list(zip(first, settings))):  # whatever the order
        again = run("tm-tvf", "toy2d", 1, place, resume="beside", **options)
        assert again["weights"] == card["weights"] and again["settings"] == card["settings"]
    assert written == [card["weights"].stat().st_mtime_ns for card in first]
    assert run("vm-2", "toy2d", 1, place, resume="beside")["weights"].parent not in folders
    assert "other settings" not in capsys.readouterr().err  # without progress nothing is said of it


def test_a_folder_in_which_another_process_begins_is_left_to_it(toy_data, tmp_path):
    with lock.hold(tmp_path / "live"):
        card = run("tm", "toy2d", 1, tmp_path / "live", resume="beside")
    assert re.fullmatch(r"live-[0-9a-f]{8}", card["weights"].parent.name)
    assert not (tmp_path / "live" / "run.json").exists()


def test_a_run_beside_another_is_found_when_the_other_is_gone(toy_data, tmp_path):
    run("tm", "toy2d", 1, tmp_path / "live", resume="beside")
    beside = run("tm", "toy2d", 1, tmp_path / "live", resume="beside", seed=1)["weights"]
    shutil.rmtree(tmp_path / "live")
    before = beside.stat().st_mtime_ns
    again = run("tm", "toy2d", 1, tmp_path / "live", resume="beside", seed=1)["weights"]
    assert again == beside and again.stat().st_mtime_ns == before and not (tmp_path / "live").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "7", '{"settings": 3}', "{", ""])
def test_a_run_card_of_another_form_is_told_in_one_line(text, toy_data, tmp_path):
    run("tm", "toy2d", 1, tmp_path)
    (tmp_path / "weights.json").write_text(text)
    with pytest.raises(ValueError, match="weights.json is damaged; .* --resume new"):
        run("tm", "toy2d", 1, tmp_path)


def test_an_unfinished_run_beside_another_continues(toy_data, tmp_path):
    class Stop(Exception):
        pass

    def watch(record):
        if record["step"] == 2:
            raise Stop

    run("tm", "toy2d", 1, tmp_path / "live", resume="beside")
    with pytest.raises(Stop):
        run("tm", "toy2d", 4, tmp_path / "live", resume="beside", save_minutes=0, watch=watch)
    [beside] = [folder for folder in tmp_path.glob("live-*") if folder.is_dir()]
    seen = []
    run("tm", "toy2d", 4, tmp_path / "live", resume="beside", watch=seen.append)
    assert len(read_history(beside)) == 4 and (beside / "weights.json").exists()
    assert [record["step"] for record in seen] == [0, 1, 2, 3]
