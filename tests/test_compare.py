"""Paired comparison of two methods' rows, against SciPy on the numbers written here."""

import csv
import sys

import numpy as np
import pytest
from scipy import stats

from tvf_core import commands
from tvf_core.evaluation.compare import compare
from tvf_core.paths import RESULTS


@pytest.fixture
def rows(tmp_path):
    """``rows(method, {pair: ssim})`` writes a results file of demo_faces into the test's folder."""

    def write(method, scores, metric="ssim", data="demo_faces"):
        file = tmp_path / data / f"{method}.csv"
        file.parent.mkdir(exist_ok=True)
        with open(file, "w", newline="") as stream:
            csv.writer(stream).writerows([["pair", metric], *scores.items()])

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


def test_the_person_of_a_pair_of_brains_is_that_of_the_fixed_image(rows, tmp_path):
    for style in ("b{:02d}", "OASIS_{:04d}"):
        pairs = {
            f"{style.format(m)}->{style.format(f)}": 0.7 + 0.01 * m + 0.02 * f
            for m in range(4)
            for f in range(4)
            if m != f
        }
        (
            rows("tm-tvf", pairs, "dice", "demo_brains"),
            rows("tm", {p: v**2 for p, v in pairs.items()}, "dice", "demo_brains"),
        )
        found = compare("tm-tvf", "tm", "demo_brains", folder=tmp_path)
        assert (found["n"], found["subjects"], found["metric"]) == (12, 4, "dice")


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
