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
from tvf_core.evaluation.evaluate import METRICS, read_results
from tvf_core.methods import METHODS
from tvf_core.paths import RESULTS, ROOT
from tvf_core.reporting import claims, tables

LEDGER = tables.ledger()
ENTRIES = {entry["id"]: entry for entry in LEDGER["claims"]}


@pytest.fixture
def stored(tmp_path):
    """``stored(data, method, {column: values})`` writes rows and summary of six pairs of three people."""
    names = {
        "demo_faces": ["s1_a->s1_b", "s1_b->s1_a", "s2_a->s2_b", "s2_b->s2_a", "s3_a->s3_b", "s3_b->s3_a"]
    }

    def write(data, method, columns, split="test", pairs_told=0, shape=(), integrator="rk4"):
        pairs = names.get(data, ["b1->b2", "b3->b2", "b1->b3", "b2->b3", "b2->b1", "b3->b1"])
        file = tmp_path / data / (method + ("" if split == "test" else f".{split}"))
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
                    "method": method,
                    "split": split,
                    "n_pairs": pairs_told or 6,
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


def test_released_rules_and_lost_labels_do_not_test_a_number(stored, tmp_path):
    stored("oasis", "tm-tvf", {"dice": [0.869] * 6, "hd95": [1.4] * 5 + [np.inf]}, **OASIS)
    dice, hd95 = (claims.number("table2", "tm-tvf", key, tmp_path)[-1] for key in ("dice", "hd95"))
    assert dice.verdict == "reproduced" and "half-resolution" in dice.why
    assert hd95.verdict == claims.NOT_TESTABLE and "lost a label" in hd95.why
    stored("oasis", "tm-tvf", {"dice": [0.869] * 6}, **OASIS, integrator="released")
    found = claims.number("table2", "tm-tvf", "dice", tmp_path)[-1]
    assert found.verdict == claims.NOT_TESTABLE and "released code" in found.why


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
        found.verdict == claims.NOT_REPRODUCED
        and "chance" in found.why
        and "better than 1 of 2" in found.measured
        and "VM-2" in found.measured
    )
    entry["check"] |= {"than": ["tm"], "p_below": 1e-9}
    assert judge().verdict == claims.NOT_REPRODUCED and "larger p" in judge().why
    entry["check"] |= {"better": "lower", "p_below": 1}
    assert judge().verdict == claims.NOT_REPRODUCED and judge().why == ""
    # A pair with an infinite score must not be left out in favour of the method that lost it.
    stored("demo_faces", "tm-tvf", {"ssim": [*(base + lead)[:5], np.inf]})
    entry["check"] |= {"better": "higher"}
    assert judge().verdict == claims.NOT_TESTABLE and "1 pairs have no finite value" in judge().why
    stored("demo_faces", "tm-tvf", {"fsim": base})  # the rows lack a metric
    assert judge().verdict == claims.NOT_TESTABLE and "evaluate again" in judge().why


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
        ("mean", 0.05, "reproduced"),
        ("max", 0.05, "not reproduced"),
        ("max", 0.1, "reproduced"),
        ("mean", 0.01, "not reproduced"),
    ],
)
def test_bounds_on_the_mean_and_on_the_largest(over, limit, verdict, stored, tmp_path):
    stored("anatomies", "tm-tvf", {"folding_percent": [0, 0, 0, 0, 0.1, 0.08]})
    entry = {
        "data": ["anatomies"],
        "check": {"metric": "folding_percent", "of": "tm-tvf", "over": over, "at_most": limit},
    }
    assert claims.claim(entry, tmp_path)[0].verdict == verdict


def test_every_claim_is_judged_on_what_comes_with_the_book():
    found = {name: claims.claim(entry, RESULTS) for name, entry in ENTRIES.items()}
    for findings in found.values():
        for f in findings:
            assert f.verdict in claims.VERDICTS
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
            link = f'{ours} <a href="../book/results/{data}/{method}.json">[1]</a>'
            row, printed = f"{METHODS[method].title}, {column['title']}", tables.plus_minus(value)
            pattern = rf"^\| {re.escape(row)} \| {re.escape(printed)} \|.*{re.escape(link)}"
            assert re.search(pattern, ledger, re.M)
    metric = LEDGER["tables"][table]["metrics"]["ssim" if table == "table1" else "dice"]["measured"]
    others = [m for m in results if m not in ("identity", "tm-tvf")]
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
        (other / f"{method}.json").write_text(json.dumps({"split": "test"}))
    both = ["tm", "vm-2"]
    assert agreement(both, "demo_faces", tmp_path, tmp_path / "other") == {"ssim": pytest.approx(0.05)}
    stored("demo_faces", "tm", {"ssim": [np.nan] * 6})
    assert agreement(both, "demo_faces", tmp_path, tmp_path / "other") == {"ssim": np.inf}
    assert agreement(["tm"], "demo_faces", tmp_path, tmp_path) == {"ssim": 0}
    with pytest.raises(ValueError, match="no pair of demo_faces in common"):
        agreement(["vm-2"], "demo_faces", tmp_path, tmp_path / "other")


def test_differences_per_person(stored, tmp_path):
    stored("demo_faces", "tm-tvf", {"ssim": [0.9, 0.8, 0.9, 0.7, 0.9, 0.9]})
    stored("demo_faces", "tm", {"ssim": [0.8, 0.8, 0.8, 0.8, 0.8, 0.6]})
    np.testing.assert_allclose(
        per_person("tm-tvf", "tm", "demo_faces", "ssim", tmp_path), [0.05, 0.0, 0.2], atol=1e-12
    )
