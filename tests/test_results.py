"""Results files: their names, which file a name finds, what overwrites what, and rows without locks."""

import dataclasses
import json
import shlex
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import lively
from scipy import stats

from tvf_core import checkpoints, commands, data
from tvf_core.evaluation import evaluate, kept_rows, results, scores
from tvf_core.evaluation.compare import compare
from tvf_core.methods import METHODS, NetworkConfig
from tvf_core.model import Model
from tvf_core.paths import RESULTS
from tvf_core.reporting import figures, tables


@pytest.fixture
def trained(toy_data, tmp_path):
    """``trained(method, scale)``: weights of a method for the 2D toys, livelier with a larger scale."""

    def make(method="tm-tvf", scale=0.05):
        config = NetworkConfig(method, 2, time_steps=2 if method == "tm-tvf" else None)
        file = tmp_path / f"{method}-{scale}.safetensors"
        checkpoints.save(file, lively(Model(config), scale).network.state_dict(), config)
        return file

    return make


def go(out, weights, method="tm-tvf", **settings):
    return evaluate.evaluate(method, "toy2d", weights=weights, out=out, progress=False, **settings)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(".lock")}


def test_a_part_of_the_pairs_and_another_split_leave_the_whole_untouched(trained, tmp_path):
    weights = trained()
    whole = go(tmp_path, weights)
    before = contents(tmp_path / "toy2d")
    assert set(before) == {"tm-tvf.json", "tm-tvf.csv"} and (whole["n_pairs"], whole["of_pairs"]) == (2, 2)
    part = go(tmp_path, weights, limit=1)
    go(tmp_path, weights, limit=1, split="val")
    after = contents(tmp_path / "toy2d")
    assert before.items() <= after.items()
    new = {"tm-tvf.1-pairs", "tm-tvf.val.1-pairs"}
    assert set(after) - set(before) == {f"{name}.{kind}" for name in new for kind in ("json", "csv")}
    assert (part["name"], part["method"], part["n_pairs"], part["of_pairs"]) == ("tm-tvf", "tm-tvf", 1, 2)
    assert go(tmp_path, weights, limit=2) == whole and contents(tmp_path / "toy2d") == after  # 2 of 2 are all

    assert results.read_results(tmp_path, "toy2d")["tm-tvf"] == whole
    assert len(results.read_rows("tm-tvf", "toy2d", tmp_path)["pair"]) == 2
    assert len(results.read_rows(results.exact_name(part), "toy2d", tmp_path)["pair"]) == 1
    assert results.read_results(tmp_path, "toy2d", "val")["tm-tvf"]["n_pairs"] == 1  # there is no other
    assert compare("tm-tvf.1-pairs", "tm-tvf", "toy2d", folder=tmp_path)["n"] == 1


def test_two_trainings_of_one_method_are_kept_and_compared(trained, tmp_path, monkeypatch, capsys):
    first, second = trained(scale=0.05), trained(scale=0.1)
    usual = go(tmp_path, first)
    before = contents(tmp_path / "toy2d")
    wide = go(tmp_path, second, name="wide.2_b-1")
    assert before.items() <= contents(tmp_path / "toy2d").items()
    assert wide["summary"] != usual["summary"] and (wide["name"], wide["method"]) == ("wide.2_b-1", "tm-tvf")
    assert list(results.read_results(tmp_path, "toy2d").items()) == [("tm-tvf", usual), ("wide.2_b-1", wide)]
    a, b = (results.read_rows(name, "toy2d", tmp_path)["ssim"] for name in ("tm-tvf", "wide.2_b-1"))
    found = compare("tm-tvf", "wide.2_b-1", "toy2d", "ssim", tmp_path)
    assert found["difference"] == pytest.approx(np.mean(a - b))
    assert found["t_test"] == pytest.approx(stats.ttest_rel(a, b).pvalue)
    command = f"tvf compare tm-tvf wide.2_b-1 --data toy2d --metric ssim --results {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    commands.main()
    printed = capsys.readouterr().out
    assert f"TM-TVF {a.mean():.4f}, TM-TVF (wide.2_b-1) {b.mean():.4f}" in printed


def test_the_command_says_name_and_part(trained, tmp_path, monkeypatch, capsys):
    command = f"tvf evaluate --method tm-tvf --data toy2d --out {tmp_path} --weights {trained()} --name mine"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--limit", "1"])
    commands.main()
    assert "toy2d TM-TVF, mine (1 of 2 pairs, evenly spread): dice" in capsys.readouterr().out
    assert (tmp_path / "toy2d" / "mine.1-pairs.csv").is_file()


@pytest.mark.parametrize(
    "name, words",
    [
        ("a b", "expected up to 100"),
        ("../tm", "expected up to 100"),
        (".hidden", "expected up to 100"),
        ("größer", "expected up to 100"),
        ("a\n", "expected up to 100"),
        ("x" * 101, "expected up to 100"),
        ("tm", "results of the method tm"),
        ("VM-2", "results of the method vm-2"),
        ("TM-TVF", "results of the method tm-tvf"),  # one file with tm-tvf.json where capitals do not count
        ("mine.val", "ends as the files of a split"),
        ("mine.test", "ends as the files of a split"),
        ("mine.2-pairs", "ends as the files of a split"),
    ],
)
def test_wrong_names_are_refused_before_any_work(name, words, toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_pairs", lambda *args: pytest.fail("data were loaded"))
    with pytest.raises(ValueError, match=words) as caught:
        evaluate.evaluate("tm-tvf", "toy2d", name=name, out=tmp_path)
    assert "\n" not in str(caught.value)
    arguments = ["tvf", "evaluate", "--method", "tm-tvf", "--data", "toy2d", "--name", name]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=f"tvf: name: .*{words}"):
        commands.main()


def test_every_method_can_have_its_own_name_and_every_file_name_is_read_back():
    for method in METHODS:
        assert results.check_name(method, method) == method
        for split in ("train", "val", "test"):
            for pairs in (0, 3):
                stem = results.file_name(method, split, "json", pairs).removesuffix(".json")
                assert results._parse(stem) == (method, split, pairs)


def test_a_name_belongs_to_one_method(trained, tmp_path):
    go(tmp_path, trained(), name="mine", limit=1)
    before = contents(tmp_path / "toy2d")
    with pytest.raises(ValueError, match="mine.1-pairs.json is a result of tm-tvf; choose another name"):
        go(tmp_path, trained("tm"), method="tm", name="mine")
    assert contents(tmp_path / "toy2d") == before


def test_a_result_of_other_weights_is_replaced_only_when_told(trained, tmp_path):
    first, second = trained(scale=0.05), trained(scale=0.1)
    go(tmp_path, first), go(tmp_path, first, split="val", limit=1)
    before = contents(tmp_path / "toy2d")
    for settings in ({}, {"limit": 1}, {"split": "val"}):
        with pytest.raises(ValueError, match="tm-tvf.*json was made with other weights.*--name") as caught:
            go(tmp_path, second, **settings)
        assert "\n" not in str(caught.value) and contents(tmp_path / "toy2d") == before
    go(tmp_path, second, name="mine", limit=1)  # both are kept
    assert before.items() <= contents(tmp_path / "toy2d").items()
    new = go(tmp_path, second, replace=True)
    assert results.read_results(tmp_path, "toy2d")["tm-tvf"] == new
    others = {"mine.1-pairs.json", "mine.1-pairs.csv"}
    assert set(contents(tmp_path / "toy2d")) == {"tm-tvf.json", "tm-tvf.csv"} | others
    assert go(tmp_path, second, limit=1)["n_pairs"] == 1  # nothing of the first weights is in the way


def test_a_result_of_another_shape_or_other_constants_is_not_replaced(toy_data, tmp_path, monkeypatch):
    same = dict(limit=1, out=tmp_path, progress=False)
    evaluate.evaluate("lddmm", "toy2d", constants={"iterations": [1, 1, 1]}, **same)
    with pytest.raises(ValueError, match="lddmm.1-pairs.json was made with other"):
        evaluate.evaluate("lddmm", "toy2d", constants={"iterations": [2, 1, 1]}, **same)
    evaluate.evaluate("identity", "toy2d", **same)
    file = tmp_path / "toy2d" / "identity.1-pairs.json"
    summary = json.loads(file.read_text())
    summary["card"]["settings"]["shape"] = [8, 8]
    file.write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="identity.1-pairs.json was made with other"):
        evaluate.evaluate("identity", "toy2d", **same)
    for key in ("weights", "shape", "constants"):  # a result from before they were written down
        del summary["card"]["settings"][key]
    file.write_text(json.dumps(summary))
    assert "shape" in evaluate.evaluate("identity", "toy2d", **same)["card"]["settings"]
    monkeypatch.setattr(evaluate, "CODE", "another")  # a change of the code alone renews a result
    assert evaluate.evaluate("identity", "toy2d", **same)["card"]["code"] == "another"


@pytest.mark.parametrize("stray", ["[1, 2]", '{"what": "not a result"}', '{"card": 3}', "null"])
def test_stray_files_are_skipped_and_not_overwritten(stray, trained, tmp_path):
    folder = tmp_path / "toy2d"
    folder.mkdir()
    (folder / "notes.json").write_text(stray)
    (folder / "mine.json").write_text(stray)
    whole = go(tmp_path, trained())
    assert results.read_results(tmp_path, "toy2d") == {"tm-tvf": whole}
    results.check_data(folder, "toy2d", whole["card"]["settings"]["origin"])
    with pytest.raises(ValueError, match="mine.json is not a result of tvf evaluate"):
        go(tmp_path, trained(), name="mine")
    with pytest.raises(FileNotFoundError, match="notes.json is not a result of tvf evaluate"):
        results.read_result("notes", "toy2d", tmp_path)
    assert (folder / "mine.json").read_text() == stray


@pytest.mark.parametrize("damage", [b"", b'{"name": "tm', b"\0" * 20, b"\xff\xfe"])
def test_a_damaged_result_is_named(damage, trained, tmp_path):
    go(tmp_path, trained())
    (tmp_path / "toy2d" / "tm-tvf.json").write_bytes(damage)
    for read in (
        lambda: go(tmp_path, trained()),
        lambda: results.read_results(tmp_path, "toy2d"),
        lambda: results.check_data(tmp_path / "toy2d", "toy2d", "origin"),
    ):
        with pytest.raises(ValueError, match="tm-tvf.json is damaged, delete it") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_the_suggested_command_is_quoted_and_tells_of_profiles(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "name_of", lambda data: "scans")  # the folder of a data set of one's own
    for method, hint in (("tm", False), ("lddmm", True), ("convexadam", True), ("identity", False)):
        with pytest.raises(FileNotFoundError) as caught:
            results.find(method, str(tmp_path / "my scans"), tmp_path / "my results")
        command = str(caught.value).split("make it with: ")[1]
        words = shlex.split(command.split(" (")[0])
        assert words[5] == str(tmp_path / "my scans") and words[7:] == [str(tmp_path / "my results")]
        assert ("--profile NAME" in command) == hint


def test_what_is_not_there_comes_with_the_command_that_makes_it(trained, tmp_path):
    go(tmp_path, trained(), name="mine")
    for name, split, command in (
        ("tm", "test", f"tvf evaluate --method tm --data toy2d --out {tmp_path}"),
        ("tm.3-pairs", "val", f"--method tm --data toy2d --split val --limit 3 --out {tmp_path}"),
        ("thin", "test", f"--method METHOD --name thin --data toy2d --out {tmp_path}"),
        ("tm.val", "test", "no result 'tm.val' on the test split (there are: mine)"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            results.read_rows(name, "toy2d", tmp_path, split)
        assert command in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_and_renamed_results_are_read_for_what_they_are(trained, tmp_path):
    go(tmp_path, trained())
    folder = tmp_path / "toy2d"
    for kind in ("json", "csv"):
        (folder / f"tm-tvf.{kind}").rename(folder / f"older.{kind}")
    (folder / "notes.json").write_text('{"what": "not a result"}')
    [(name, summary)] = results.read_results(tmp_path, "toy2d").items()
    assert name == summary["name"] == "older" and results.title(summary) == "TM-TVF (older)"
    assert results.read_results(tmp_path, "no data") == {}


KNOWN = {metric for metric in scores.METRICS if not metric.startswith("landmark")}  # without landmarks


def test_results_of_the_book_lie_where_their_names_say():
    for file in RESULTS.glob("*/*.json"):
        if file.parent.name in ("bench", "scans"):
            continue
        summary = results.read_results(RESULTS, file.parent.name)[json.loads(file.read_text())["name"]]
        assert results.file_of(summary) == file.name
        assert (
            len(results.read_rows(summary["name"], file.parent.name, RESULTS)["pair"]) == summary["n_pairs"]
        )


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), NotImplementedError("no locks")])
def test_without_locks_an_evaluation_runs_and_says_so(error, trained, tmp_path, monkeypatch, capsys):
    expected = go(tmp_path / "locked", trained())["summary"]

    def refuse(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(kept_rows.FileLock, "acquire", refuse)
    other = tmp_path / "open" / "toy2d" / ".other.json.123.part"  # of a process that is writing
    other.parent.mkdir(parents=True)
    other.write_text("half")
    assert go(tmp_path / "open", trained())["summary"] == expected
    assert "cannot be locked" in capsys.readouterr().err
    assert other.read_text() == "half"


def test_without_locks_a_second_process_may_finish_first(trained, tmp_path, monkeypatch):
    weights, score = trained(), evaluate.score
    monkeypatch.setattr(
        kept_rows.FileLock, "acquire", lambda self: (_ for _ in ()).throw(OSError("no locks"))
    )
    inside = []

    def score_while_another_finishes(model, pairs, k, device):
        if not inside:
            inside.append(k)
            go(tmp_path, weights)
        return score(model, pairs, k, device)

    monkeypatch.setattr(evaluate, "score", score_while_another_finishes)
    assert go(tmp_path, weights)["n_pairs"] == 2
    assert not (tmp_path / "toy2d" / ".tm-tvf.rows.jsonl").exists()


def test_rows_that_do_not_follow_the_pairs_are_measured_again(tmp_path):
    file, about, pairs = tmp_path / ".x.rows.jsonl", {"settings": 1}, ["a", "b", "c"]
    lines = [about, *({"pair": name} for name in ("a", "b", "b", "c"))]  # two processes wrote into one file
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with kept_rows.kept_rows(file, about, pairs) as (rows, keep):
        assert [row["pair"] for row in rows] == ["a", "b"]
        keep({"pair": "c"})
        assert [json.loads(line)["pair"] for line in file.read_text().splitlines()[1:]] == pairs
    assert not file.exists()


def test_the_lock_is_held_until_the_files_have_their_names(trained, tmp_path, monkeypatch):
    weights, write = trained(), results.write_result

    def look(summary, rows, folder):
        with (
            pytest.raises(ValueError, match="another process"),
            kept_rows.kept_rows(folder / ".tm-tvf.rows.jsonl", {}, []),
        ):
            pass
        write(summary, rows, folder)

    monkeypatch.setattr(evaluate, "write_result", look)
    go(tmp_path, weights)
    assert results.read_results(tmp_path, "toy2d")


@pytest.fixture
def failing(toy_data, tmp_path, monkeypatch):
    """``failing(of)``: the summary of doing nothing on toy2d, where the pairs ``of`` have no finite map."""
    register = Model.register

    def go(of, out=tmp_path, **settings):
        seen = iter(range(2))

        def fail(self, moving, fixed):
            if next(seen) in of:
                raise FloatingPointError("identity: the displacement has NaN or infinite values")
            return register(self, moving, fixed)

        monkeypatch.setattr(Model, "register", fail)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return evaluate.evaluate("identity", "toy2d", out=out, progress=False, **settings)

    return go


def test_a_pair_without_a_finite_map_is_named_and_the_means_are_those_of_the_others(
    failing, tmp_path, capsys
):
    whole, part = failing([], tmp_path / "whole"), failing([0])
    assert "not_scored" not in whole and part["not_scored"].keys() >= {*KNOWN, "inverse_error_p999"}
    assert set(map(tuple, part["not_scored"].values())) == {("i6->i7",)}
    assert not any("/" in metric for metric in part["not_scored"])
    assert "i6->i7 is not scored: identity: the displacement has NaN" in capsys.readouterr().err
    rows, whole_rows = (results.read_rows("identity", "toy2d", f) for f in (tmp_path, tmp_path / "whole"))
    assert rows.keys() == whole_rows.keys() == {*results.TEXTS, *part["summary"]}
    for metric, value in part["summary"].items():
        assert np.isnan(rows[metric][0]) and value == {"mean": whole_rows[metric][1], "std": 0.0}
    assert json.loads((tmp_path / "toy2d" / "identity.json").read_text()) == part
    assert evaluate.evaluate("identity", "toy2d", out=tmp_path, progress=False) == part  # not made again


def test_a_result_without_any_scored_pair_has_no_means(failing, capsys):
    summary = failing([0, 1])
    assert set(map(tuple, summary["not_scored"].values())) == {("i6->i7", "i7->i6")}
    assert all(np.isnan([v["mean"], v["std"]]).all() for v in summary["summary"].values())
    commands.evaluation.print_summary(summary)
    printed = capsys.readouterr().out
    assert "dice nan (2 of 2 pairs not scored), hd95 nan" in printed and "i6->i7, i7->i6" in printed


def test_what_shows_a_mean_says_how_many_pairs_it_leaves_out(failing, tmp_path, monkeypatch, capsys):
    failing([], tmp_path, name="whole")
    summary = failing([0])
    commands.evaluation.print_summary(summary)
    lines = capsys.readouterr().out.splitlines()
    assert "(1 of 2 pairs not scored), hd95" in lines[0] and lines[1].endswith("could not score: i6->i7")
    table = tables.comparison("table1", results.read_results(tmp_path, "toy2d"))
    [row] = [line for line in table.splitlines() if line.startswith("| Before registration |")]
    assert row.count("(1 of 2 pairs not scored)") == 6
    [row] = [line for line in table.splitlines() if "(whole)" in line]
    assert "not scored" not in row
    test = tables.significance("whole", ["identity"], "toy2d", "ssim", tmp_path).splitlines()[-1]
    assert test.startswith("| Before registration | 1 of 2 |")
    command = f"tvf compare identity whole --data toy2d --results {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    commands.main()
    assert "; 1 of 2 pairs without a finite value left out" in capsys.readouterr().out
    axes = plt.figure().add_subplot()
    both = {name: results.read_rows(name, "toy2d", tmp_path)["ssim"] for name in ("identity", "whole")}
    figures.box_plot(axes, both, "SSIM")
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Before registration\n(1 of 2 pairs not finite)", "whole"]


def test_a_label_that_is_missing_is_no_pair_that_could_not_be_scored(toy_data, tmp_path, monkeypatch):
    part = data.load("toy2d", "test")
    labels = part.labels.copy()
    labels[6][labels[6] == 2] = 0
    monkeypatch.setattr(evaluate, "load_pairs", lambda *args: dataclasses.replace(part, labels=labels))
    summary = evaluate.evaluate("identity", "toy2d", out=tmp_path, progress=False)
    assert "not_scored" not in summary and np.isnan(summary["summary"]["dice/inner"]["mean"])
    labels[6] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = evaluate.evaluate("identity", "toy2d", name="none", out=tmp_path, progress=False)
    assert summary["not_scored"] == {m: ["i6->i7", "i7->i6"] for m in ("dice", "hd95")}


SMALL = {  # images -> metrics that they are too small for; those of few slices may have an SSIM
    (9, 10, 4): {"ssim", "sdlogj", "sdlogj_textbook", "folding_inner_percent"},
    (20, 18, 4): {"sdlogj", "sdlogj_textbook", "folding_inner_percent"},
    (1, 20, 18): {"sdlogj", "sdlogj_textbook", "folding_inner_percent"},
    (8, 9, 5): {"ssim"},
    (9, 5): {"ssim"},
    (3, 12): {"ssim", "sdlogj", "sdlogj_textbook", "folding_inner_percent"},
    (11, 11): set(),
    (11, 12, 11): set(),
}


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
def test_metrics_that_images_are_too_small_for_are_left_out(labelled, shape, tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype(np.uint8)
    labels = {"labels": (images > 100).astype(np.uint8), "label_names": {1: "bright"}} if labelled else {}
    part = data.PairData("thin", "test", images, [(0, 1), (1, 0)], ["a", "b"], **labels)
    monkeypatch.setattr(evaluate, "load_pairs", lambda *args: part)
    summary = evaluate.evaluate("identity", "demo_faces", out=tmp_path, progress=False)
    left, told = summary.get("left_out", {}), capsys.readouterr().err
    assert left.keys() - {"ssim"} == SMALL[shape] - {"ssim"} and left.keys() >= SMALL[shape]
    undefined = {"fsim"} if len(shape) == 3 else set()
    undefined |= set() if labelled else {"dice", "hd95"}
    assert scores.METRICS.keys() & summary["summary"].keys() == KNOWN - undefined - left.keys()
    assert "not_scored" not in summary
    assert told.count("\n") == bool(left) and all(f"{m}" in told and why in told for m, why in left.items())
    assert told.count("Learn2Reg's margin") == ("sdlogj" in left)  # one reason for three metrics
    assert set(scores.columns(part)) == set(summary["summary"])
    row = scores.score(Model(NetworkConfig("identity", part.dim)), part, 0)
    assert list(row) == ["seconds", *scores.columns(part)]


def test_without_labels_and_ssim_a_comparison_names_the_metrics_that_are_there(tmp_path):
    folder = tmp_path / "demo_faces"
    folder.mkdir()
    for name in ("tm", "vm-2"):
        (folder / f"{name}.csv").write_text("pair,person,fsim\na->b,b,0.5\nb->a,a,0.5\n")
    with pytest.raises(ValueError, match="ssim.*known: fsim"):
        compare("tm", "vm-2", "demo_faces", folder=tmp_path)
    assert compare("tm", "vm-2", "demo_faces", "fsim", tmp_path)["n"] == 2
