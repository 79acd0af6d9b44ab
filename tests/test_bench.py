"""The benchmark: its forms agree, its file is complete, and its time and memory are measured correctly."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from tvf_core import bench, commands
from tvf_core.bench import measure, operations
from tvf_core.scans import affine_trial
from tvf_core.training import profiles

# In these sizes no level has 2 planes, where bf16 fails.
SMALL = {
    2: bench.Setting(shape=(32, 27), labels=5, network="tiny", time_steps=2),
    3: bench.Setting(shape=(36, 21, 18), labels=5, network="tiny", time_steps=2),
}


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", bench.OPERATIONS)
def test_every_form_gives_what_the_literal_one_gives(name, dim):
    operation = bench.OPERATIONS[name](SMALL[dim])
    expected = (operation.reference or operation.forms["literal"])()
    assert {"ours", "literal"} <= set(operation.forms)
    for form, run in operation.forms.items():
        found = run()
        assert len(found) == len(expected) and all(torch.isfinite(t).all() for t in found)
        if form.startswith("ours") and "16" not in form:
            assert measure.largest_difference(found, expected) < 2e-4, form
        if form == "neurite":
            assert measure.largest_difference(found, expected) < 1e-4
    assert operation.flops() > 0 or operation.moved > 0


def test_the_benchmark_writes_rows_with_a_run_card(tmp_path):
    file = tmp_path / "bench.json"
    result = bench.run(["lncc", "flow"], SMALL[3], repeats=1, out=file, progress=False)
    assert json.loads(file.read_text()) == result
    assert {row["op"] for row in result["rows"]} == {"lncc", "flow"}
    for row in result["rows"]:
        assert set(row) == {
            "op",
            "variant",
            "seconds",
            "peak_mb",
            "max_rel_diff",
            "floor_seconds",
            "shape",
            "time_steps",
        }
        assert row["seconds"] > 0 and row["floor_seconds"] > 0 and row["peak_mb"] > 0
    assert result["card"]["settings"]["labels"] == 5 and result["versions"]["torch"] == torch.__version__


def test_a_form_can_be_measured_without_the_literal_one():
    [row] = bench.compare("train-step", SMALL[3], 1, ("ours, recomputing",), progress=False)
    assert row["variant"] == "ours, recomputing" and row["max_rel_diff"] is None and row["seconds"] > 0


def test_a_step_of_a_profile_is_measured_for_its_n_and_the_released_one(tmp_path, monkeypatch, capsys):
    setting, time_steps = bench.of_profile(profiles.read("paper_oasis"))
    assert (setting.shape, setting.labels, setting.network, setting.batch, time_steps) == (
        (160, 192, 224),
        36,
        "large",
        1,
        (8, 12),
    )
    setting, _ = bench.of_profile(profiles.read("paper_rafd"))
    assert (setting.shape, setting.network, setting.batch) == ((256, 256), "base", 32)
    # The real rates take seconds to measure.
    monkeypatch.setattr(measure, "rates", lambda device: {"bytes_per_second": 1e9, "flops_per_second": 1e9})
    out = tmp_path / "step.json"
    options = (
        "train-step --profile paper_oasis --size 36 21 18 --network tiny --variants ours --repeats 1 "
        "--device cpu --out"
    ).split()
    monkeypatch.setattr(sys, "argv", ["tvf", "bench", *options, str(out)])
    commands.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["time_steps"], row["shape"]) for row in rows] == [(8, [36, 21, 18]), (12, [36, 21, 18])]
    assert rows[0]["peak_mb"] < rows[1]["peak_mb"] and rows[0]["max_rel_diff"] is None
    shown = capsys.readouterr().out
    assert "ours, N = 8" in shown and "ours, N = 12" in shown and "network tiny" in shown


def test_without_the_memory_to_count_the_arithmetic_there_is_no_floor(monkeypatch):
    def too_large():
        raise torch.OutOfMemoryError

    small = operations.Operation({"ours": lambda: [torch.ones(1)]}, arithmetic=too_large)
    monkeypatch.setitem(bench.OPERATIONS, "lncc", lambda setting: small)
    [row] = bench.compare(
        "lncc", SMALL[3], 1, machine={"bytes_per_second": 1, "flops_per_second": 1}, progress=False
    )
    assert row["floor_seconds"] is None and row["seconds"] > 0


def test_growth_changes_one_setting_at_a_time(monkeypatch):
    monkeypatch.setattr(
        bench, "GROWTH", {"labels": [("label-dice", ("ours",), [dict(labels=3), dict(labels=9)])]}
    )
    rows = bench.growth(SMALL[3], repeats=1, progress=False)
    assert [(r["along"], r["value"], r["op"], r["variant"]) for r in rows] == [
        ("labels", n, "label-dice", "ours") for n in (3, 9)
    ]


def test_peak_memory_counts_what_is_held_at_one_time():
    megabyte = 2**18  # float32 numbers

    def run():
        a = torch.ones(3 * megabyte)
        b = torch.ones(megabyte)
        del a
        return b + torch.ones(megabyte)

    assert measure.peak_bytes(run, "cpu") == pytest.approx(4 * 2**20, rel=0.01)


def test_the_benchmarks_forms_take_turns_and_the_first_round_does_not_count():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measure.seconds(runs, 2, "cpu", progress=False)
    assert order == list("ab") * 3 and set(times) == {"a", "b"}
    assert all(seconds >= 0 for seconds in measure.seconds(runs, 0, "cpu", progress=False).values())


def test_the_differences_of_tensors_are_relative_to_the_largest_value():
    found, expected = torch.tensor([1.0, 9.0]), torch.tensor([1.0, 10.0])
    assert measure.largest_difference([found, found], [found, expected]) == pytest.approx(0.1)
    # A NaN must not be hidden by the maximum.
    assert math.isnan(measure.largest_difference([found, found / 0 * 0], [found, expected]))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: bench.run(["lcc"]), ["unknown operation", "label-dice"]),
        (lambda: bench.run(["lncc"], repeats=-1), ["repeats"]),
        (lambda: bench.run(["lncc"], out=Path("a.txt")), [".json"]),
        (lambda: bench.run(["lncc"], SMALL[2], forms=("fast",), progress=False), ["variant", "'fast'"]),
        (lambda: bench.Setting(shape=(4, 4)), ["size"]),
        (lambda: bench.Setting(labels=1), ["labels"]),
        (lambda: bench.Setting(network="giant"), ["network size", "base"]),
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong, words):
    with pytest.raises(ValueError) as error:
        wrong()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("several", [(), (2, 3)])
def test_a_file_of_older_code_is_measured_again_with_its_own_settings(several, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "rates", lambda device: {"bytes_per_second": 1e9, "flops_per_second": 1e9})
    file = tmp_path / "bench.json"
    first = bench.run(["lncc", "flow"], SMALL[3], 1, ("ours",), out=file, progress=False, time_steps=several)
    assert not bench.renew(file, progress=False) and json.loads(file.read_text()) == first
    first["card"]["code"] = "of older code"
    file.write_text(json.dumps(first))
    assert bench.renew(file, progress=False)
    second = json.loads(file.read_text())
    assert second["card"]["code"] == bench.CODE and second["card"]["settings"] == first["card"]["settings"]
    kinds = [
        [(r["op"], r["variant"], r["shape"], r["time_steps"]) for r in x["rows"]] for x in (first, second)
    ]
    assert kinds[0] == kinds[1] and kinds[0]


def test_all_benchmarks_of_older_code_are_renewed_and_the_others_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands.shipped, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "rates", lambda device: {"bytes_per_second": 1e9, "flops_per_second": 1e9})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("fresh", "old", "gpu"):
        file = tmp_path / "bench" / f"{name}.json"
        result = bench.run(["lncc"], SMALL[2], 1, ("ours",), out=file, progress=False)
        result["card"]["code"] = bench.CODE if name == "fresh" else "of older code"
        result["card"]["settings"]["device"] = "cuda" if name == "gpu" else "cpu"
        file.write_text(json.dumps(result))
    trials = []
    monkeypatch.setattr(affine_trial, "OUT", tmp_path / "affine.json")
    monkeypatch.setattr(affine_trial, "main", trials.append)
    affine_trial.OUT.write_text('{"card": {"code": "of older code"}}')
    commands.shipped.bench_all()
    assert trials == [[]]
    printed = capsys.readouterr()
    assert "kept: fresh.json" in printed.out and "measuring old.json again" in printed.out
    assert "left out: gpu.json" in printed.err
    codes = {f.stem: json.loads(f.read_text())["card"]["code"] for f in (tmp_path / "bench").glob("*.json")}
    assert codes == {"fresh": bench.CODE, "old": bench.CODE, "gpu": "of older code"}
