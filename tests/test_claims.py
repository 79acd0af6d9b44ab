"""The ledger of claims: its rules, its verdicts on given rows, and the agreement of pages and README."""

import csv
import json
import re
import sys

import nbformat
import numpy as np
import pytest
from scipy import stats

from tvf_core import commands
from tvf_core.data import DATASETS
from tvf_core.evaluation.compare import agreement, per_person
from tvf_core.evaluation.results import file_of, read_results
from tvf_core.evaluation.scores import METRICS
from tvf_core.methods import METHODS
from tvf_core.paths import RESULTS, ROOT
from tvf_core.reporting import claims, figures, tables, verdicts

LEDGER = tables.ledger()
ENTRIES = {entry["id"]: entry for entry in LEDGER["claims"]}


@pytest.fixture
def stored(tmp_path):
    """``stored(data, method, {column: values})`` writes rows and summary of six pairs of three people."""
    names = {
        "demo_faces": ["s1_a->s1_b", "s1_b->s1_a", "s2_a->s2_b", "s2_b->s2_a", "s3_a->s3_b", "s3_b->s3_a"]
    }

    def write(data, method, columns, split="test", pairs_told=0, shape=(), integrator="rk4", name="", of=0):
        pairs = names.get(data, ["b1->b2", "b3->b2", "b1->b3", "b2->b3", "b2->b1", "b3->b1"])
        file = tmp_path / data / ((name or method) + ("" if split == "test" else f".{split}"))
        file.parent.mkdir(exist_ok=True)
        with open(f"{file}.csv", "w", newline="") as stream:
            people = [p.split("->")[1].split("_")[0] for p in pairs]
            rows = zip(pairs, people, *columns.values())
            csv.writer(stream).writerows([["pair", "person", *columns], *rows])
        with np.errstate(invalid="ignore"):  # infinite values give warnings
            summary = {m: {"mean": float(np.mean(v)), "std": float(np.std(v))} for m, v in columns.items()}
        (file.parent / f"{file.name}.json").write_text(
            json.dumps(
                {
                    "dataset": data,
                    "name": name or method,
                    "method": method,
                    "split": split,
                    "n_pairs": pairs_told or 6,
                    "of_pairs": of or pairs_told or 6,
                    "summary": summary,
                    "card": {"settings": {"shape": list(shape), "integrator": integrator}},
                }
            )
        )

    return write


def test_the_ledger_names_what_exists():
    assert len(ENTRIES) == len(LEDGER["claims"])
    assert set(LEDGER["regimes"]) <= set(DATASETS)
    for table in LEDGER["tables"].values():
        assert set(table["values"]) <= set(METHODS) and {
            c["measured"] for c in table["metrics"].values()
        } <= set(METRICS)
        assert all(set(row) == set(table["metrics"]) for row in table["values"].values())
        assert ("untestable" in table) != ("paper_data" in table)
        assert "untestable" in table or all(
            ("untestable" in c) != ("tolerance" in c) for c in table["metrics"].values()
        )
    for entry in LEDGER["claims"]:
        check = entry["check"]
        assert entry["says"].endswith((".", ")")) and entry["where"]
        assert set(entry.get("data", ())) <= set(LEDGER["regimes"]) and bool(entry.get("data")) != (
            "untestable" in check
        )
        assert {check.get(key) for key in ("metric", "their_metric")} - {None} <= set(METRICS)
        assert {check.get("first"), check.get("of"), *check.get("than", ())} - {None} <= set(METHODS)


@pytest.mark.parametrize("table", ["table1", "table2"])
def test_tolerances_are_half_of_the_gap_between_tm_tvf_and_tm(table):
    for key, column in LEDGER["tables"][table]["metrics"].items():
        values = [LEDGER["tables"][table]["values"][m][key].get("mean", np.nan) for m in ("tm", "tm-tvf")]
        # The tolerance in the ledger is cut to three digits.
        assert "untestable" in column or 0 <= abs(np.subtract(*values)) / 2 - column["tolerance"] < 0.001, key


RAFD = {"pairs_told": 392, "shape": (256, 256)}
OASIS = {"split": "val", "pairs_told": 19, "shape": (160, 192, 224)}


@pytest.mark.parametrize(
    "ours, verdict",
    [(0.910, "reproduced"), (0.9149, "reproduced"), (0.9152, "not reproduced"), (0.9049, "not reproduced")],
)
def test_a_number_is_judged_on_the_papers_data_only(ours, verdict, stored, tmp_path):
    stored("demo_faces", "tm-tvf", {"ssim": [0.910] * 6})
    demo, paper = claims.number("table1", "tm-tvf", "ssim", tmp_path)
    assert (demo.verdict, demo.measured) == (claims.NOT_TESTABLE, tables.plus_minus({"mean": 0.91, "std": 0}))
    assert (paper.data, paper.verdict) == ("rafd", claims.NOT_TESTABLE) and "no results" in paper.why
    stored("rafd", "tm-tvf", {"ssim": [ours] * 6, "folding_percent": [0.0009] * 6}, **RAFD)
    last = claims.number("table1", "tm-tvf", "ssim", tmp_path)[-1]
    assert (last.verdict, last.files) == (verdict, ("rafd/tm-tvf.json",))
    folding, fsim = (claims.number("table1", "tm-tvf", key, tmp_path)[-1] for key in ("folding", "fsim"))
    assert (
        folding.verdict == claims.NOT_TESTABLE
        and "unit" in folding.why
        and folding.measured == "0.001\xa0±\xa00.000"
    )
    # The rows are from before FSIM was measured.
    assert fsim.verdict == claims.NOT_TESTABLE and "evaluate again" in fsim.why
    # A bar in a name must not end a cell of the table.
    assert "|J|" in folding.why and "\\|J\\|" in claims.numbers_table("table1", tmp_path)


@pytest.mark.parametrize(
    "told, words",
    [
        ({"pairs_told": 2}, "2 of the paper's 392 pairs"),
        ({"shape": (64, 64)}, "64 x 64 instead of 256 x 256"),
    ],
)
def test_a_part_of_the_papers_data_is_not_the_papers_data(told, words, stored, tmp_path):
    stored("rafd", "tm-tvf", {"ssim": [0.91] * 6, "folding_percent": [0] * 6}, **RAFD | told)
    found = claims.number("table1", "tm-tvf", "ssim", tmp_path)[-1]
    assert (found.verdict, found.measured) == (
        claims.NOT_TESTABLE,
        "0.910\xa0±\xa00.000",
    ) and words in found.why
    found = claims.claim(ENTRIES["inverse-accurate"], tmp_path)
    assert {f.data: words in f.why for f in found}["rafd"] and {f.verdict for f in found} == {
        claims.NOT_TESTABLE
    }


def test_a_part_of_stand_in_data_gives_no_verdict(stored, tmp_path):
    entry = ENTRIES["inverse-accurate"]
    values = {"inverse_error": [0.01, 0.012, 0.011, 0.01, 0.013, 0.01], "dice": [0.8] * 6}
    for data in ("demo_brains", "anatomies"):
        for of, verdict in ((6, "reproduced"), (56, claims.NOT_TESTABLE)):
            stored(data, "tm-tvf", values, of=of)
            found = next(f for f in claims.claim(entry, tmp_path) if f.data == data)
            assert found.verdict == verdict and ("6 of 56 pairs" in found.why) == (of == 56)
    assert "6 of 56 pairs" in claims.number("table2", "tm-tvf", "dice", tmp_path)[0].why
    # A result on all pairs that the paper has, of data that have more, is a part as well.
    stored("rafd", "tm-tvf", {"ssim": [0.91] * 6}, **RAFD, of=400)
    found = claims.number("table1", "tm-tvf", "ssim", tmp_path)[-1]
    assert found.verdict == claims.NOT_TESTABLE and "392 of 400 pairs" in found.why


def test_a_number_of_another_method_does_not_stand_beside_the_papers(stored, tmp_path):
    stored("demo_faces", "tm-tvf", {"ssim": [0.9] * 6}, name="wide")
    found = claims.number("table1", "tm", "ssim", tmp_path, {"tm": "wide"})[0]
    assert (found.measured, found.verdict) == ("–", claims.NOT_TESTABLE)
    assert "the result wide is of TM-TVF, not of TM" in found.why


def test_the_rules_say_what_becomes_of_pairs_without_a_finite_value():
    [rule] = [line for line in claims.rules().splitlines() if "no finite value" in line]
    assert f"*{claims.NOT_TESTABLE}*" in rule


def test_released_rules_and_lost_labels_do_not_test_a_number(stored, tmp_path):
    stored("oasis", "tm-tvf", {"dice": [0.869] * 6, "hd95": [1.4] * 5 + [np.inf]}, **OASIS)
    dice, hd95 = (claims.number("table2", "tm-tvf", key, tmp_path)[-1] for key in ("dice", "hd95"))
    assert dice.verdict == "reproduced" and "half-resolution" in dice.why
    assert hd95.verdict == claims.NOT_TESTABLE and "lost a label" in hd95.why
    stored("oasis", "tm-tvf", {"dice": [0.869] * 6}, **OASIS, integrator="released")
    stored("oasis", "tm", {"dice": [0.862] * 6}, **OASIS, integrator="released")
    for method in ("tm-tvf", "tm"):
        found = claims.number("table2", method, "dice", tmp_path)[-1]
        assert found.verdict == claims.NOT_TESTABLE and "released code" in found.why


def test_a_mean_that_leaves_pairs_out_does_not_test_a_number(stored, tmp_path):
    shape, pairs = (LEDGER["tables"]["table2"][key] for key in ("shape", "pairs"))
    stored("oasis", "tm-tvf", {"dice": [0.83] * 6}, split="val", pairs_told=pairs, shape=shape)
    judge = lambda: claims.number("table2", "tm-tvf", "dice", tmp_path)[-1]  # noqa: E731
    assert judge().verdict != claims.NOT_TESTABLE
    file = tmp_path / "oasis" / "tm-tvf.val.json"
    summary = json.loads(file.read_text()) | {"not_scored": {"dice": ["b1->b2", "b3->b2"]}}
    file.write_text(json.dumps(summary))
    assert (judge().verdict, judge().why) == (claims.NOT_TESTABLE, f"2 of {pairs} pairs not scored")
    assert judge().measured.endswith(f"(2 of {pairs} pairs not scored)")


def test_rows_of_another_method_and_of_private_labels_are_not_testable(stored, tmp_path):
    for method in ("lapirn", "tm"):
        assert ("Learn2Reg" in claims.number("table2", method, "dice", tmp_path)[-1].why) == (
            method == "lapirn"
        )
        stored("oasis", method, {"dice": [0.862] * 6}, **OASIS)
        stored("oasis", method, {"dice": [0.1] * 6})  # the table is not about the test split
    assert "Learn2Reg" in claims.number("table2", "lapirn", "dice", tmp_path)[-1].why
    assert claims.number("table2", "tm", "dice", tmp_path)[-1].verdict == "reproduced"
    assert [f.verdict for f in claims.number("table2_test", "tm", "dice", tmp_path)] == [claims.NOT_TESTABLE]


def test_an_order_needs_the_sign_and_a_test_over_persons(stored, tmp_path):
    base = np.array([0.80, 0.82, 0.84, 0.86, 0.88, 0.90])
    lead = np.array([0.05, 0.06, 0.04, 0.05, 0.06, 0.05])
    entry = {
        "data": ["demo_faces"],
        "check": {"metric": "ssim", "first": "tm-tvf", "than": ["tm", "vm-2"], "better": "higher"},
    }

    def judge():
        return claims.claim(entry, tmp_path)[0]

    assert judge().verdict == claims.NOT_TESTABLE
    stored("demo_faces", "tm-tvf", {"ssim": base + lead}), stored("demo_faces", "tm", {"ssim": base})
    assert judge().verdict == claims.NOT_TESTABLE  # VM-2 is missing
    stored("demo_faces", "vm-2", {"ssim": base})
    found = judge()
    assert found.verdict == claims.REPRODUCED and found.files == tuple(
        f"demo_faces/{m}.json" for m in ("tm-tvf", "tm", "vm-2")
    )
    persons = stats.ttest_1samp(lead.reshape(3, 2).mean(1), 0).pvalue
    assert f"{persons:.2g} over 3 persons" in found.measured and "better than 2 of 2" in found.measured
    # The method is better on average, but because of one person only.
    stored("demo_faces", "vm-2", {"ssim": base + [0.2, 0.2, 0, 0, -0.1, -0.1]})
    found = judge()
    assert (
        found.verdict == verdicts.INCONCLUSIVE
        and found.why == "TM-TVF has the better mean, but the test over persons does not exclude chance"
        and "better than 1 of 2; undecided for VM-2" in found.measured
    )
    entry["check"] |= {"than": ["tm"], "p_below": 1e-9}
    assert judge().verdict == verdicts.INCONCLUSIVE and "not below the claim's 1e-09" in judge().why
    entry["check"] |= {"better": "lower", "p_below": 1}
    assert judge().verdict == claims.NOT_REPRODUCED and judge().why == ""
    # A pair with an infinite score must not be left out in favour of the method that lost it.
    stored("demo_faces", "tm-tvf", {"ssim": [*(base + lead)[:5], np.inf]})
    entry["check"] |= {"better": "higher"}
    assert judge().verdict == claims.NOT_TESTABLE and "1 pairs have no finite value" in judge().why
    stored("demo_faces", "tm-tvf", {"fsim": base})  # the rows lack a metric
    assert judge().verdict == claims.NOT_TESTABLE and "evaluate again" in judge().why


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize(
    "leads, verdict",
    [
        ([3, 1, 2], "inconclusive"),  # p = 0.074
        ([3, 2, 2], "reproduced"),  # p = 0.020
        ([-3, -1, -2], "inconclusive"),
        ([-3, -2, -2], "not reproduced"),
        ([3, 1, -1], "inconclusive"),
        ([0, 0, 0], "not reproduced"),  # equal for every person is not better
        ([2, 2, 2], "reproduced"),  # no spread: nothing is left to chance
        ([-2, -2, -2], "not reproduced"),
    ],
)
def test_verdicts_for_and_against_a_claim_are_mirror_images(leads, verdict, better, stored, tmp_path):
    sign = 1 if better == "higher" else -1
    stored(
        "demo_faces", "tm", {"ssim": [50.0] * 6}
    )  # whole numbers, so that equal leads are equal in all digits
    stored("demo_faces", "tm-tvf", {"ssim": [50.0 + sign * lead for lead in leads for _ in range(2)]})
    check = {"metric": "ssim", "first": "tm-tvf", "than": ["tm"], "better": better}
    [found] = claims.claim({"data": ["demo_faces"], "check": check}, tmp_path)
    assert found.verdict == verdict
    if np.ptp(leads):
        assert (stats.ttest_1samp(leads, 0).pvalue < 0.05) == (verdict != "inconclusive")
    if verdict == "inconclusive":
        ahead = "TM-TVF" if sum(leads) > 0 else "TM"
        assert found.why == f"{ahead} has the better mean, but the test over persons does not exclude chance"


def test_one_of_several_comparisons_refutes_a_claim(stored, tmp_path):
    stored("demo_faces", "tm-tvf", {"ssim": [50.0] * 6})
    for method in ("vm-2", "vm-diff", "cyclemorph"):
        stored("demo_faces", method, {"ssim": [40.0, 40.0, 41.0, 41.0, 40.0, 40.0]})
    check = {"metric": "ssim", "first": "tm-tvf", "better": "higher"}
    judge = lambda *than: claims.claim({"data": ["demo_faces"], "check": check | {"than": than}}, tmp_path)[0]  # noqa: E731
    others = ("vm-2", "vm-diff", "cyclemorph")
    assert judge(*others).verdict == "reproduced"
    stored("demo_faces", "tm", {"ssim": [53.0, 53.0, 52.0, 52.0, 52.0, 52.0]})  # ahead, p = 0.02 over persons
    assert stats.ttest_1samp([3, 2, 2], 0).pvalue < 0.05
    found = judge("tm", *others)
    assert found.verdict == "not reproduced" and "better than 3 of 4; not better than TM:" in found.measured
    stored("demo_faces", "tm", {"ssim": [59.0, 59.0, 52.0, 52.0, 51.0, 51.0]})  # ahead, p = 0.24 over persons
    found = judge("tm", *others)
    assert found.verdict == "inconclusive" and "better than 3 of 4; undecided for TM:" in found.measured


def test_one_person_decides_nothing(stored, tmp_path):
    one = {"difference": 1.0, "subject_difference": 1.0, "subjects": 1, "subject_t_test": np.nan}
    assert verdicts.side(one, 1, 0.05) == verdicts.side(one, -1, 0.05) == 0
    both = one | {"left_out": 0, "a": 1, "b": 0, "t_test": 1e-5, "n": 6}
    _, verdict, why = verdicts.judge_order({"tm": both}, {"tm": "TM", "x": "X"}, "x", 1, 0.05)
    assert verdict == "inconclusive" and why == "X has the better mean, but one person is too few for a test"


def test_a_mean_over_pairs_on_the_other_side_than_the_persons_decides_nothing():
    split = {"difference": 1.0, "subject_difference": -1.0, "subjects": 5, "subject_t_test": 0.01}
    assert verdicts.side(split, 1, 0.05) == verdicts.side(split, -1, 0.05) == 0


def test_the_bound_that_all_persons_reach_is_kept_and_lost_values_are_no_test(stored, tmp_path):
    check = {"metric": "folding_percent", "of": "tm-tvf", "over": "mean", "at_most": 0.5}
    judge = lambda: claims.claim({"data": ["anatomies"], "check": check}, tmp_path)[0]  # noqa: E731
    for value, verdict in ((0.0, "reproduced"), (0.5, "reproduced"), (0.75, "not reproduced")):
        stored("anatomies", "tm-tvf", {"folding_percent": [value] * 6})
        assert judge().verdict == verdict and "the same for all 3 persons" in judge().measured
    stored("anatomies", "tm-tvf", {"folding_percent": [0, 0, 0, 0, 0, np.nan]})
    assert judge().verdict == claims.NOT_TESTABLE


def test_the_examples_in_the_rules_are_right():
    text = claims.rules()
    values = LEDGER["tables"]["table1"]["values"]
    ours, theirs = (values[m]["ssim"]["mean"] for m in ("tm-tvf", "tm"))
    gap = round(ours - theirs, 4)
    assert f"prints {ours:.3f} and {theirs:.3f}. The gap is {gap} and half of it {gap / 2}" in text
    assert f"the tolerance is {LEDGER['tables']['table1']['metrics']['ssim']['tolerance']}" in text
    assert f"a p below {LEDGER['rules']['p_persons']}" in text
    for leads in ([3, 1, 2, 2], [3, 1, 2, -1]):
        p = stats.ttest_1samp(leads, 0).pvalue
        one, *rest = map(str, leads)
        assert f"{one}, {', '.join(rest[:-1])} and {rest[-1]} hundredths" in text
        assert f"{np.mean(leads):g} hundredths" in text and f"{p:.2g}:" in text
        found = [
            verdicts.side(
                {"subject_difference": s * np.mean(leads), "subjects": 4, "subject_t_test": p}, 1, 0.05
            )
            for s in (1, -1)
        ]
        assert found == ([1, -1] if leads[-1] > 0 else [0, 0])


def test_a_named_result_can_stand_for_its_method(stored, tmp_path, monkeypatch, capsys):
    stored("demo_faces", "tm", {"ssim": [50.0] * 6})
    stored("demo_faces", "tm-tvf", {"ssim": [40.0, 41.0] * 3})
    stored("demo_faces", "tm-tvf", {"ssim": [60.0, 61.0] * 3}, name="wide")
    entry = ENTRIES["significance-ssim"] | {"data": ["demo_faces"]}
    assert (
        claims.claim(entry, tmp_path)[0].verdict == "not reproduced"
    )  # the names are not looked at unless told
    found = claims.claim(entry, tmp_path, {"tm-tvf": "wide"})[0]
    assert found.verdict != "not reproduced" and "TM-TVF (wide) 60.5000, TM 50.0000" in found.measured
    assert found.files == ("demo_faces/wide.json", "demo_faces/tm.json")
    assert "no results of TM here under the name thin" in claims.claim(entry, tmp_path, {"tm": "thin"})[0].why
    assert "is of TM-TVF, not of TM" in claims.claim(entry, tmp_path, {"tm": "wide"})[0].why
    number = claims.number("table1", "tm-tvf", "ssim", tmp_path, {"tm-tvf": "wide"})[0]
    assert number.measured.startswith("60.5")
    table = tables.comparison("table1", read_results(tmp_path, "demo_faces"), "results")
    own, named = (line for line in table.splitlines() if "TM-TVF<" in line or "TM-TVF (wide)<" in line)
    assert '<a href="results/demo_faces/wide.json">TM-TVF (wide)</a> | – | – | – | 60.5' in named
    assert '<a href="results/demo_faces/tm-tvf.json">TM-TVF</a> | 0.910' in own
    assert "| TM-TVF (wide) | 6 |" in tables.significance("tm", ["wide"], "demo_faces", "ssim", tmp_path)
    command = f"tvf claims --results {tmp_path} --names tm-tvf wide"
    monkeypatch.setattr(sys, "argv", command.split())
    commands.main()
    assert "TM-TVF (wide) 60.5000" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", f"tvf claims --results {tmp_path} --names wide tm".split())
    with pytest.raises(SystemExit, match="unknown method 'wide'"):
        commands.main()


def test_another_column_of_the_other_method_can_be_compared(stored, tmp_path):
    stored(
        "demo_faces",
        "tm-tvf",
        {"inverse_error": [0.01, 0.02, 0.01, 0.02, 0.01, 0.01], "negation_error": [9] * 6},
    )
    stored("demo_faces", "tm", {"inverse_error": [0] * 6, "negation_error": [0.1, 0.12, 0.1, 0.1, 0.13, 0.1]})
    check = {"metric": "inverse_error", "first": "tm-tvf", "than": ["tm"], "better": "lower"}
    entry = {"data": ["demo_faces"], "check": check}
    assert claims.claim(entry, tmp_path)[0].verdict == claims.NOT_REPRODUCED
    check["their_metric"] = "negation_error"
    assert claims.claim(entry, tmp_path)[0].verdict == claims.REPRODUCED


@pytest.mark.parametrize(
    "over, limit, verdict",
    [
        ("mean", 0.02, "not reproduced"),  # persons' means are 0.06, 0.08 and 0.07
        ("mean", 0.06, "inconclusive"),
        ("mean", 0.08, "inconclusive"),
        ("mean", 0.12, "reproduced"),
        ("max", 0.1, "not reproduced"),  # one pair has more
        ("max", 0.11, "reproduced"),
    ],
)
def test_bounds_on_the_mean_and_on_the_largest(over, limit, verdict, stored, tmp_path):
    stored("anatomies", "tm-tvf", {"folding_percent": [0.06, 0.06, 0.05, 0.11, 0.06, 0.08]})
    entry = {
        "data": ["anatomies"],
        "check": {"metric": "folding_percent", "of": "tm-tvf", "over": over, "at_most": limit},
    }
    assert claims.claim(entry, tmp_path)[0].verdict == verdict


def test_every_claim_is_judged_on_what_comes_with_the_book():
    found = {name: claims.claim(entry, RESULTS) for name, entry in ENTRIES.items()}
    for findings in found.values():
        for f in findings:
            assert f.verdict in verdicts.VERDICTS
            assert (f.verdict == claims.NOT_TESTABLE) == (f.regime in ("paper data", "–")), f
            assert all((RESULTS / file).is_file() for file in f.files)


def cells(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells


def shown(name):
    """The Markdown that a notebook's stored outputs show."""
    return "\n".join(
        o["data"]["text/markdown"]
        for c in cells(name)
        if c.cell_type == "code"
        for o in c.outputs
        if "text/markdown" in o.get("data", {})
    )


@pytest.mark.parametrize(
    "notebook, table, data",
    [
        ("05_table1", "table1", "london"),
        ("05_table1", "table1", "demo_faces"),
        ("06_table2", "table2", "demo_brains"),
        ("06_table2", "table2", "anatomies"),
    ],
)
def test_page_table_and_ledger_agree(notebook, table, data):
    results, ledger = read_results(RESULTS, data), shown("07_claims")
    assert tables.comparison(table, results, "../book/results") in shown(notebook)
    for method, columns in LEDGER["tables"][table]["values"].items():
        for key, value in columns.items():
            column = LEDGER["tables"][table]["metrics"][key]
            ours = tables.plus_minus(results[method]["summary"][column["measured"]])
            link = f'{ours} <a href="../book/results/{data}/{file_of(results[method])}">[1]</a>'
            row, printed = f"{METHODS[method].title}, {column['title']}", tables.plus_minus(value)
            pattern = rf"^\| {re.escape(row)} \| {re.escape(printed)} \|.*{re.escape(link)}"
            assert re.search(pattern, ledger, re.M)
    metric = LEDGER["tables"][table]["metrics"]["ssim" if table == "table1" else "dice"]["measured"]
    others = [m for m in results if m not in ("identity", "tm-tvf") and "-seed" not in m]
    assert tables.significance("tm-tvf", others, data, metric, RESULTS) in shown(notebook)


def test_the_page_shows_every_claim_with_its_verdict():
    page = shown("07_claims")
    for entry in ENTRIES.values():
        first = claims.claim(entry, RESULTS)[0]
        links = "".join(
            f' <a href="../book/results/{file}">[{k}]</a>' for k, file in enumerate(first.files, 1)
        )
        data = f"{first.data} ({first.regime})" if first.data else "–"
        verdict = f"**{first.verdict}**{': ' * bool(first.why)}{first.why}"
        row = f"| {entry['says']} *{entry['where']}* | {data} | {first.measured}{links} | {verdict} |"
        assert row in page


def printed_numbers():
    return {
        f"{v:.{digits}f}"
        for t in LEDGER["tables"].values()
        for row in t["values"].values()
        for value in row.values()
        for key, v in value.items()
        if key != "digits"
        for digits in (2, 3, 4)
    }


PAGES = [
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "book").glob("*.md")),
    ROOT / "README.md",
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_prose_types_no_measured_number(path):
    text = (
        path.read_text()
        if path.suffix == ".md"
        else "\n\n".join(c.source for c in cells(path.stem) if c.cell_type == "markdown")
    )
    # Tables have a test of their own.
    text = re.sub(r"<!-- (table\d) -->.*?<!-- end \1 -->|```.*?```", "", text, flags=re.S)
    # Roles take their numbers from the files.
    text = re.sub(r"\{\w+\}`[^`]*`|`[^`]*`|\(https?:[^)]*\)|doi [\w./-]+", "", text)
    typed = set(re.findall(r"(?<![\w.])\d+\.\d{2,}(?!\w)", text))
    others = {"0.0001", "3.11", "3.12", "3.13"}  # the p of the paper, versions of Python
    assert typed <= printed_numbers() | others, (
        f"say {{result}}`data/method metric` instead of typing {typed}"
    )


def test_the_command_lists_every_claim(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tvf", "claims", "--results", str(RESULTS)])
    commands.main()
    printed = capsys.readouterr().out
    for name, entry in ENTRIES.items():
        assert f"{name}: {entry['says']}" in printed
    assert "\n    demo_faces   inconclusive " in printed and "has the better mean, but" in printed
    assert (
        "demo_faces   reproduced " in printed
        and "not reproduced " in printed
        and "rafd         not testable here" in printed
    )


def test_tables_and_claims_count_folds_as_the_challenge_in_3d_and_as_the_released_script_in_2d(
    stored, tmp_path
):
    assert {m for columns in tables.BEYOND.values() for m in columns} <= set(METRICS)

    def judge(name, data):
        return next(f for f in claims.claim(ENTRIES[name], tmp_path) if f.data == data)

    for table, data, heading, column, name in (
        (
            "table1",
            "demo_faces",
            "folding (%, one-sided border)",
            "folding_percent",
            "tvf-folds-less-than-tm",
        ),
        (
            "table2",
            "demo_brains",
            "folding (%, inner voxels)",
            "folding_inner_percent",
            "tvf-folds-less-than-tm-3d",
        ),
    ):
        folds = {"folding_percent": 9.0, "folding_inner_percent": 9.0, column: 0.125}
        stored(data, "tm-tvf", {key: [value] * 6 for key, value in folds.items()})
        stored(data, "tm", {key: np.linspace(2, 2.5, 6) * value for key, value in folds.items()})
        header, _, *rows = tables.comparison(table, read_results(tmp_path, data)).split("\n")
        [row] = [row.split(" | ") for row in rows if row.startswith("| TM-TVF |")]
        assert dict(zip(header.split(" | "), row))[f"here: {heading}"] == "0.125\xa0±\xa00.000"
        found = judge(name, data)
        assert found.verdict == claims.REPRODUCED and "TM-TVF 0.1250, TM 0.2812" in found.measured
        stored(data, "tm-tvf", {"ndv_percent": [0.1] * 6})  # rows from before it was measured
        assert judge(name, data).verdict == claims.NOT_TESTABLE and "evaluate again" in judge(name, data).why


def test_agreement_is_the_largest_difference_on_common_pairs(stored, tmp_path):
    (tmp_path / "other").mkdir()
    stored("demo_faces", "tm", {"ssim": [0.8] * 6, "dice/L x": [0.5] * 6})
    stored("demo_faces", "vm-2", {"ssim": [0.7] * 6})
    other = tmp_path / "other" / "demo_faces"
    other.mkdir()
    for method, rows in {
        "tm": [["s2_a->s2_b", 0.75], ["s1_a->s1_b", 0.81]],
        "vm-2": [["s9_a->s9_b", 0.1]],
    }.items():
        with open(other / f"{method}.csv", "w", newline="") as stream:
            csv.writer(stream).writerows([["pair", "ssim"], *rows])
        told = {"method": method, "split": "test", "n_pairs": len(rows), "card": {"settings": {}}}
        (other / f"{method}.json").write_text(json.dumps(told))
    both = read_results(tmp_path, "demo_faces")
    assert list(both) == ["vm-2", "tm"]
    assert agreement(both, "demo_faces", tmp_path, tmp_path / "other") == {"ssim": pytest.approx(0.05)}
    stored("demo_faces", "tm", {"ssim": [np.nan] * 6})
    assert agreement(both, "demo_faces", tmp_path, tmp_path / "other") == {"ssim": np.inf}
    assert agreement({"tm": both["tm"]}, "demo_faces", tmp_path, tmp_path) == {"ssim": 0}
    with pytest.raises(ValueError, match="no pair of demo_faces in common"):
        agreement({"vm-2": both["vm-2"]}, "demo_faces", tmp_path, tmp_path / "other")


def test_differences_per_person(stored, tmp_path):
    stored("demo_faces", "tm-tvf", {"ssim": [0.9, 0.8, 0.9, 0.7, 0.9, 0.9]})
    stored("demo_faces", "tm", {"ssim": [0.8, 0.8, 0.8, 0.8, 0.8, 0.6]})
    np.testing.assert_allclose(
        per_person("tm-tvf", "tm", "demo_faces", "ssim", tmp_path), [0.05, 0.0, 0.2], atol=1e-12
    )


def test_a_further_training_has_the_colour_of_its_method():
    assert figures.color_of("tm-tvf-seed1") == figures.COLORS["tm-tvf"] != figures.COLORS["tm"]
    assert figures.color_of("lddmm-lncc") == figures.COLORS["lddmm"]
    assert figures.color_of("wide") not in figures.COLORS.values()


def test_a_table_of_scores_names_the_result_and_dashes_what_was_not_measured(stored, tmp_path):
    stored("demo_faces", "tm", {"ssim": [0.5, 0.7] * 3}, name="wide")
    table = tables.scores(
        read_results(tmp_path, "demo_faces"), {"ssim": ("SSIM", 1), "dice": ("Dice", 3)}, "r"
    )
    assert table.splitlines()[0] == "| method | SSIM | Dice |"
    row = (
        '| <a href="r/demo_faces/wide.json">TM (wide)</a> | 0.6\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.1 | – |'
    )
    assert table.splitlines()[2] == row
