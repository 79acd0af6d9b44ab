"""Is one method better than another, and are two evaluations the same?

Both are answered from the rows that :mod:`tvf_core.evaluation.evaluate` wrote.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from scipy import stats

from ..checks import one_of
from ..data import DATASETS, name_of, without_pairs
from ..data.pairs import PREPARED
from .results import TEXTS, differ, exact_name, read_result, read_results, read_rows


def compare(
    a: str,
    b: str,
    data: str,
    metric: str = "",
    folder: Path | None = None,
    split: str = "test",
    metric_b: str = "",
) -> dict:
    """Scores of result ``a`` minus those of ``b`` on the pairs that both have, with paired tests.

    Parameters
    ----------
    a, b : names of results on ``data`` (:mod:`tvf_core.evaluation.results`): a method's name for its usual
        result. Both may be results of one method.
    data : a name, or the path of a folder. Only results are read.
    metric : a column of their rows; default ``dice`` where there is one, else ``ssim``.
    folder : of results; default ``runs/results``.
    split : on which both were evaluated.
    metric_b : the column of b, where it is another one.

    Returns
    -------
    ``n``, the number of pairs, without those ``left_out`` because a score is not finite; the means ``a``,
    ``b`` and ``difference``; ``std`` of the difference over pairs (ddof 1); ``higher``, the share of pairs
    on which a's score is higher; two-sided p values over pairs of the paired t-test (``t_test``, the
    paper's) and of Wilcoxon's signed ranks (``wilcoxon``); ``subjects``, the number of persons, and
    ``subject_t_test``, the p value of the paired t-test on the mean scores of each person. A p value is NaN
    where it is not defined: for fewer than two values, or if all differences are equal.

    Raises
    ------
    FileNotFoundError : there is no result of that name; the message says how to make it.
    ValueError : the rows have no such column or no pair in common, or are of different data of the same name;
        or there is no result, because the split has no pairs.

    Notes
    -----
    The person of a pair is that of its fixed image, as the column ``person`` of the rows tells. Pairs that
    share a person are not independent, so that tests over pairs give too small a p. Where a pair shows two
    persons, each of them is in the moving image of other pairs too; the test over persons does not take
    that into account. Rows that an earlier version wrote have no column ``person``: ``subjects`` is then 0
    and ``subject_t_test`` NaN, until ``tvf evaluate`` writes new ones.

    The paper compares TM-TVF with TM by paired t-tests, p < 0.0001 (text with Tables 1 and 2). It tells
    neither the number of pairs nor whether their dependence was considered.
    """
    metric, first, second, people, left_out = _paired(a, b, data, metric, folder, split, metric_b)
    difference = first - second
    return {
        "data": name_of(data),
        "metric": metric,
        "n": len(first),
        "left_out": left_out,
        "a": float(first.mean()),
        "b": float(second.mean()),
        "difference": float(difference.mean()),
        "subject_difference": float(_means(difference, people).mean()) if len(people) else np.nan,
        "std": float(difference.std(ddof=1)) if len(first) > 1 else np.nan,
        "higher": float((difference > 0).mean()),
        "t_test": _p_value(stats.ttest_rel, first, second),
        "wilcoxon": _p_value(stats.wilcoxon, first, second),
        "subjects": len(set(people)),
        "subject_t_test": _p_value(stats.ttest_rel, _means(first, people), _means(second, people)),
    }


def per_person(
    a: str, b: str, data: str, metric: str = "", folder: Path | None = None, split: str = "test"
) -> np.ndarray:
    """Mean difference of two results' scores for each person, as :func:`compare` tests them: (persons,).

    It raises what :func:`compare` raises, and a ValueError where the rows do not tell the persons.
    """
    _, first, second, people, _ = _paired(a, b, data, metric, folder, split)
    if not len(people):
        raise ValueError(
            f"the rows of {a} and {b} on {data} have no column 'person'; make new ones with: tvf evaluate"
        )
    return _means(first - second, people)


def against(
    value: float, name: str, data: str, metric: str, folder: Path | None = None, split: str = "test"
) -> dict:
    """Scores of one result beside a fixed value, such as a bound, with a t-test over persons.

    Returns
    -------
    ``n`` pairs, without those ``left_out`` for want of a finite score; ``mean`` and ``max`` over these pairs;
    ``subjects``, ``subject_difference`` (mean over persons minus the value) and the two-sided p value
    ``subject_t_test``, all as in :func:`compare`, which also has the errors.
    """
    _, scores, _, people, left_out = _paired(name, name, data, metric, folder, split)
    means = _means(scores, people)
    return {
        "n": len(scores),
        "left_out": left_out,
        "mean": float(scores.mean()),
        "max": float(scores.max()),
        "subjects": len(means),
        "subject_difference": float(means.mean() - value) if len(means) else np.nan,
        "subject_t_test": _p_value(stats.ttest_rel, means, np.full_like(means, value)),
    }


def _paired(a: str, b: str, data: str, metric: str, folder: Path | None, split: str, metric_b: str = ""):
    """What two results have in common.

    Returns
    -------
    The metric, the scores of both results and the person of each common pair (no person at all where the
    rows do not tell), and the number of pairs that were left out because a score is not finite.
    """
    try:
        rows = {name: read_rows(name, data, folder, split) for name in (a, b)}
    except FileNotFoundError:
        # There can be no result on a split without pairs. Those of the program's own data have some.
        if str(data) not in DATASETS or str(data) in PREPARED:
            if told := without_pairs(data, split):
                raise ValueError(told) from None
        raise
    _same_data(a, b, data, folder, split)
    columns = [c for c in rows[a] if c in rows[b] and c not in (*TEXTS, "seconds")]
    metric = metric or ("dice" if "dice" in columns else "ssim")
    metric = one_of(metric, columns, f"metric of these rows of {data}")
    metric_b = one_of(metric_b, columns, f"metric of these rows of {data}") if metric_b else metric
    scores = [dict(zip(rows[m]["pair"], rows[m][column])) for m, column in ((a, metric), (b, metric_b))]
    common = [p for p in scores[0] if p in scores[1]]
    pairs = [p for p in common if np.isfinite(scores[0][p]) and np.isfinite(scores[1][p])]
    if not pairs:
        raise ValueError(f"{a} and {b} have no pair of {data} with a finite {metric} in common")
    first, second = (np.array([s[p] for p in pairs]) for s in scores)
    told = next((rows[m] for m in (a, b) if "person" in rows[m]), None)
    person = dict(zip(told["pair"], told["person"])) if told else {}
    people = np.array([person[p] for p in pairs if told])
    return metric, first, second, people, len(common) - len(pairs)


def _same_data(a: str, b: str, data: str, folder: Path | None, split: str) -> None:
    """ValueError where the summaries beside the rows tell of different data."""
    origins = set()
    for name in (a, b):
        with contextlib.suppress(FileNotFoundError):  # rows without their summary
            origins.add(read_result(name, data, folder, split)["card"]["settings"].get("origin"))
    if len(origins - {None}) > 1:
        raise ValueError(
            f"{a} and {b} were evaluated on different data of the name {data!r}; evaluate both on the same"
        )


def _means(values: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Mean over the pairs of each person: (persons,)."""
    return np.array([values[people == who].mean() for who in dict.fromkeys(people)])


def made_alike(summaries: dict[str, dict], data: str, other: Path, split: str = "test") -> dict[str, dict]:
    """Those of the summaries that another folder has under the same name and made in the same way.

    That is, on the same data, with the same weights, shape of the images and constants.
    """
    stored, alike = read_results(other, data, split), {}
    for name, summary in summaries.items():
        if name in stored:
            old, new = (s["card"]["settings"] for s in (stored[name], summary))
            if not differ(old, new) and old.get("origin", new["origin"]) == new["origin"]:
                alike[name] = summary
    return alike


def agreement(
    summaries: dict[str, dict], data: str, folder: Path, other: Path, split: str = "test"
) -> dict[str, float]:
    """Largest difference between results and those of the same names in another folder.

    Parameters
    ----------
    summaries : name -> summary, as ``evaluate`` gave it; its rows lie in ``folder``.
    other : folder of the results that they are compared with, where these have a result of that name.

    Returns
    -------
    Metric -> difference, over the pairs that both have and without the columns of single labels. Where one
    folder has a number and the other has none, the difference is infinite.

    Raises
    ------
    ValueError : the folders have no pair in common.
    """
    worst = {}
    for name in [n for n in summaries if n in read_results(other, data, split)]:
        ours = read_rows(exact_name(summaries[name]), data, folder, split)
        theirs = read_rows(name, data, other, split)
        _, here, there = np.intersect1d(ours["pair"], theirs["pair"], return_indices=True)
        shared = [m for m in ours if m in theirs and m not in TEXTS and "/" not in m]
        for metric in shared if len(here) else ():
            one, two = ours[metric][here], theirs[metric][there]
            with np.errstate(invalid="ignore"):
                difference = np.where(
                    (one == two) | (np.isnan(one) & np.isnan(two)),
                    0,
                    np.nan_to_num(np.abs(one - two), nan=np.inf),
                )
            worst[metric] = max(worst.get(metric, 0.0), float(difference.max()))
    if not worst:
        raise ValueError(f"{folder} and {other} have no pair of {data} in common")
    return worst


def _p_value(test, first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p value of a paired test of SciPy; NaN where it is not defined.

    SciPy is not asked for fewer than two values, nor where all differences are equal but for rounding: its
    t-test would divide by a spread of zero, warn, and call any constant difference certain (p = 0).
    """
    difference = first - second
    rounding = 1e-12 * max(np.abs(first).max(initial=0), np.abs(second).max(initial=0))
    if len(difference) < 2 or np.ptp(difference) <= rounding:
        return np.nan
    return float(test(first, second).pvalue)
