"""Paired comparison of two methods' rows, against SciPy on the numbers written here."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from scipy import special, stats

from tvf_core import commands, data
from tvf_core.evaluation import evaluate
from tvf_core.evaluation.compare import compare, per_person
from tvf_core.evaluation.results import read_rows
from tvf_core.paths import RESULTS


@pytest.fixture
def rows(tmp_path):
    """``rows(method, {pair: ssim})`` writes a results file of demo_faces into the test's folder.

    ``person(pair)`` fills the column of that name, which is left out where it is None.
    """

    def write(method, scores, metric="ssim", data="demo_faces", person=lambda pair: pair.split("_")[0]):
        file = tmp_path / data / f"{method}.csv"
        file.parent.mkdir(exist_ok=True)
        lines = [["pair", "person", metric], *([p, person and person(p), v] for p, v in scores.items())]
        with open(file, "w", newline="") as stream:
            csv.writer(stream).writerows([line[:1] + line[1 if person else 2 :] for line in lines])
        about = {"name": method, "method": method, "split": "test", "n_pairs": len(scores)}
        file.with_suffix(".json").write_text(json.dumps(about | {"card": {"settings": {}}}))

    return write


def faces(people, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return {
        f"s{p:02d}_{a}->s{p:02d}_{b}": shift + rng.normal(0.9, 0.02)
        for p in range(people)
        for a in ("sad", "happy", "angry")
        for b in ("sad", "happy", "angry")
        if a != b
    }


def test_tests_are_those_of_scipy_on_the_common_pairs(rows, tmp_path):
    a, b = faces(4, 0, 0.01), faces(5, 1)  # one person more, who is left out
    rows("tm-tvf", a), rows("tm", dict(reversed(b.items())))  # in another order
    found = compare("tm-tvf", "tm", "demo_faces", folder=tmp_path)
    x, y = np.array(list(a.values())), np.array([b[p] for p in a])
    assert (found["n"], found["subjects"], found["metric"]) == (24, 4, "ssim")
    assert found["t_test"] == pytest.approx(stats.ttest_rel(x, y).pvalue)
    assert found["wilcoxon"] == pytest.approx(stats.wilcoxon(x, y).pvalue)
    assert found["subject_t_test"] == pytest.approx(
        stats.ttest_rel(*(v.reshape(4, 6).mean(1) for v in (x, y))).pvalue
    )
    assert found["difference"] == pytest.approx((x - y).mean()) and found["std"] == pytest.approx(
        (x - y).std(ddof=1)
    )
    assert found["higher"] == pytest.approx((x > y).mean())


def by_hand(first, second, people):
    """Two-sided p of the paired t-test on the persons' means, from the formula and the beta function."""
    gains = [np.mean([x - y for x, y, p in zip(first, second, people) if p == who]) for who in set(people)]
    n = len(gains)
    mean = sum(gains) / n
    t = mean / (sum((g - mean) ** 2 for g in gains) / (n - 1) / n) ** 0.5
    return special.betainc((n - 1) / 2, 0.5, (n - 1) / (n - 1 + t**2))


CASES = {  # images -> the person that each shows, in names that no rule could tell it from
    "underscores": {f"scan_{k}": f"scan_{k}" for k in "ABCDE"},
    "two visits": {f"p_{k}_visit_{v}": f"p_{k}" for k in range(4) for v in range(2)},
    "the person last": {f"happy_{k}": f"{k}" for k in "XYZ"} | {f"sad_{k}": f"{k}" for k in "XYZ"},
    "numbers": {str(k): str(k // 3) for k in range(12)},
}


@pytest.mark.parametrize("case", CASES)
def test_the_persons_are_those_of_the_rows_whatever_the_names(case, rows, tmp_path):
    images, rng = CASES[case], np.random.default_rng(3)
    pairs = [f"{m}->{f}" for m in images for f in images if m != f]
    person = lambda pair: images[pair.split("->")[1]]  # noqa: E731
    a, b = ({p: rng.normal(mean, 0.05) for p in pairs} for mean in (0.82, 0.8))
    rows("tm-tvf", a, "dice", "mine", person), rows("tm", b, "dice", "mine", person)
    found = compare("tm-tvf", "tm", "mine", folder=tmp_path)
    people = [person(p) for p in pairs]
    assert (found["n"], found["subjects"], found["metric"]) == (len(pairs), len(set(people)), "dice")
    assert found["subject_t_test"] == pytest.approx(by_hand(a.values(), b.values(), people))
    assert len(per_person("tm-tvf", "tm", "mine", folder=tmp_path)) == len(set(people))


@pytest.mark.parametrize(
    "name, persons, style", [("demo_faces", 7, r"s\d\d"), ("demo_brains", 8, r"b\d\d"), ("toy3d", 2, r"i\d")]
)
def test_an_evaluation_writes_the_person_of_the_fixed_image(
    name, persons, style, toy_data, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "score", lambda model, pairs, k, device: {"seconds": 1.0, "ssim": k / 1000})
    evaluate.evaluate("identity", name, out=tmp_path, progress=False)
    rows, part = read_rows("identity", name, tmp_path), data.load(name, "test")
    assert len(set(rows["person"])) == persons and all(re.fullmatch(style, who) for who in rows["person"])
    for pair, who in zip(rows["pair"], rows["person"]):
        fixed = part.names.index(pair.split("->")[1])
        assert part.subjects[fixed] == who and part.names[fixed].startswith(who)


def test_rows_without_persons_are_compared_over_pairs_only(rows, tmp_path, monkeypatch, capsys):
    a, b = faces(3, 0, 0.01), faces(3, 1)
    rows("tm-tvf", a, person=None), rows("tm", b, person=None)
    found = compare("tm-tvf", "tm", "demo_faces", folder=tmp_path)
    assert found["t_test"] == pytest.approx(stats.ttest_rel(list(a.values()), list(b.values())).pvalue)
    assert found["subjects"] == 0 and np.isnan(found["subject_t_test"])
    with pytest.raises(ValueError, match="no column 'person'.*tvf evaluate"):
        per_person("tm-tvf", "tm", "demo_faces", folder=tmp_path)
    command = ["tvf", "compare", "tm-tvf", "tm", "--data", "demo_faces", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    commands.main()
    assert "no test over persons: these rows do not tell them" in capsys.readouterr().out


def test_a_constant_lead_has_no_p_value(rows, tmp_path):
    """Its spread over pairs is only rounding, from which SciPy would make p = 0."""
    a = {p: v + 0.1 for p, v in faces(3, 0).items()}
    rows("tm-tvf", a), rows("tm", faces(3, 0))
    found = compare("tm-tvf", "tm", "demo_faces", folder=tmp_path)
    assert found["difference"] == pytest.approx(0.1)
    assert np.isnan([found[k] for k in ("t_test", "wilcoxon", "subject_t_test")]).all()


def test_results_on_different_data_of_one_name_are_not_compared(rows, tmp_path):
    for method, origin in (("tm-tvf", "a"), ("tm", "b")):
        rows(method, faces(3, 0))
        card = {"card": {"settings": {"origin": origin}}}
        (tmp_path / "demo_faces" / f"{method}.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="different data of the name 'demo_faces'"):
        compare("tm-tvf", "tm", "demo_faces", folder=tmp_path)


def test_what_has_no_p_value_says_so_and_wrong_names_are_one_line(rows, tmp_path, monkeypatch):
    rows("tm-tvf", faces(2, 0)), rows("tm", faces(2, 0)), rows("vm-2", {"x->y": 1.0})
    same = compare("tm-tvf", "tm", "demo_faces", folder=tmp_path)
    assert (
        same["difference"] == 0
        and np.isnan([same[k] for k in ("t_test", "wilcoxon", "subject_t_test")]).all()
    )
    with pytest.raises(ValueError, match="no pair of demo_faces"):
        compare("tm-tvf", "vm-2", "demo_faces", folder=tmp_path)
    with pytest.raises(ValueError, match="known: ssim"):
        compare("tm-tvf", "tm", "demo_faces", "dice", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="tvf evaluate --method lddmm --data demo_faces"):
        compare("tm-tvf", "lddmm", "demo_faces", folder=tmp_path)
    command = ["tvf", "compare", "tm-tvf", "nobody", "--data", "demo_faces", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(
        SystemExit, match="no result 'nobody' .*--method METHOD --name nobody --data demo_faces"
    ):
        commands.main()


def test_the_command_prints_the_tests_of_the_stored_results(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["tvf", "compare", "tm-tvf", "tm", "--data", "anatomies", "--results", str(RESULTS)]
    )
    commands.main()
    printed, expected = capsys.readouterr().out, compare("tm-tvf", "tm", "anatomies", folder=RESULTS)
    assert "12 pairs" in printed and f"{expected['difference']:+.4f}" in printed
    assert all(f"p = {expected[k]:.2g}" in printed for k in ("t_test", "wilcoxon", "subject_t_test"))
