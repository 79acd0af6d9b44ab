"""Is one method better than another, and are two evaluations the same? Both from the rows that :mod:`tvf_core.evaluation.evaluate` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import stats

from ..checks import one_of
from .results import exact_name, read_results, read_rows


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
    a, b : names of results on ``data`` (:mod:`tvf_core.evaluation.results`): a method's name for its usual result.
        Both may be results of one method.
    metric : a column of their rows; default ``dice`` where there is one, else ``ssim``.
    folder : of results; default ``runs/results``.
    split : on which both were evaluated.
    metric_b : the column of b, where it is another one.

    Returns
    -------
    ``n`` pairs, without those ``left_out`` for want of a finite score; the means ``a``, ``b`` and ``difference``, its ``std`` over pairs (ddof 1), the share of pairs on which
    a's score is ``higher``; two-sided p values of the paired t-test (``t_test``, the paper's) and of Wilcoxon's signed
    ranks (``wilcoxon``); and ``subjects`` with ``subject_t_test``, the t-test on one mean difference per person: pairs that
    share a person are not independent, and tests over pairs give too small a p. (Where a pair shows two people, each is also
    the moving one of other pairs: that dependence is left.) A p value is NaN where it is not defined (fewer than two
    values, or all differences equal).

    Raises
    ------
    FileNotFoundError : there is no result of that name; the message says how to make it.
    ValueError : the rows have no such column, or no pair in common.

    Notes
    -----
    The person of a pair is that of its fixed image, as its name tells up to an expression (``s60_happy`` is s60).
    The paper compares TM-TVF with TM by paired t-tests, p < 0.0001 (text with Tables 1 and 2), with neither the number of
    pairs nor a word on their dependence.
    """
    metric, first, second, people, left_out = _paired(a, b, data, metric, folder, split, metric_b)
    difference = first - second
    means = _means(difference, people)
    return {
        "data": data,
        "metric": metric,
        "n": len(people),
        "left_out": left_out,
        "a": float(first.mean()),
        "b": float(second.mean()),
        "difference": float(difference.mean()),
        "subject_difference": float(means.mean()),
        "std": float(difference.std(ddof=1)) if len(people) > 1 else np.nan,
        "higher": float((difference > 0).mean()),
        "t_test": _t_test(difference),
        "wilcoxon": float(stats.wilcoxon(difference).pvalue) if np.ptp(difference) else np.nan,
        "subjects": len(means),
        "subject_t_test": _t_test(means),
    }


def per_person(
    a: str, b: str, data: str, metric: str = "", folder: Path | None = None, split: str = "test"
) -> np.ndarray:
    """Mean difference of two results' scores for each person, as :func:`compare` tests them: (persons,)."""
    _, first, second, people, _ = _paired(a, b, data, metric, folder, split)
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
        "n": len(people),
        "left_out": left_out,
        "mean": float(scores.mean()),
        "max": float(scores.max()),
        "subjects": len(means),
        "subject_difference": float(means.mean() - value),
        "subject_t_test": _t_test(means - value),
    }


def _paired(a: str, b: str, data: str, metric: str, folder: Path | None, split: str, metric_b: str = ""):
    """Name of the metric, scores of both methods on their common pairs, the person of each, and how many pairs have no finite score."""
    rows = {name: read_rows(name, data, folder, split) for name in (a, b)}
    columns = [c for c in rows[a] if c in rows[b] and c not in ("pair", "seconds")]
    metric = (
        one_of(metric, columns, f"metric of these rows of {data}")
        if metric
        else "dice"
        if "dice" in columns
        else "ssim"
    )
    metric_b = one_of(metric_b, columns, f"metric of these rows of {data}") if metric_b else metric
    scores = [dict(zip(rows[m]["pair"], rows[m][column])) for m, column in ((a, metric), (b, metric_b))]
    common = [p for p in scores[0] if p in scores[1]]
    pairs = [p for p in common if np.isfinite(scores[0][p]) and np.isfinite(scores[1][p])]
    if not pairs:
        raise ValueError(f"{a} and {b} have no pair of {data} with a finite {metric} in common")
    first, second = (np.array([s[p] for p in pairs]) for s in scores)
    people = [p.split("->")[1].rsplit("_", 1)[0] if _one_person(p) else p.split("->")[1] for p in pairs]
    return metric, first, second, np.array(people), len(common) - len(pairs)


def _means(difference: np.ndarray, people: np.ndarray) -> np.ndarray:
    return np.array([difference[people == who].mean() for who in dict.fromkeys(people)])


def agreement(
    summaries: dict[str, dict], data: str, folder: Path, other: Path, split: str = "test"
) -> dict[str, float]:
    """Largest difference between results and those of the same names in another folder: metric -> difference.

    Taken over the pairs that both have. Columns per label are left out; what only one of them cannot measure differs
    infinitely.

    Parameters
    ----------
    summaries : name -> summary, as ``evaluate`` gave it; its rows lie in ``folder``.
    other : folder of the results that they are compared with, where these have a result of that name.

    Raises
    ------
    ValueError : they have nothing in common.
    """
    worst = {}
    for name in [n for n in summaries if n in read_results(other, data, split)]:
        ours = read_rows(exact_name(summaries[name]), data, folder, split)
        theirs = read_rows(name, data, other, split)
        _, here, there = np.intersect1d(ours["pair"], theirs["pair"], return_indices=True)
        for metric in [m for m in ours if m in theirs and m != "pair" and "/" not in m] if len(here) else ():
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


def _one_person(pair: str) -> bool:
    """Whether both images show the same person: the names differ in what follows the last underscore, an expression."""
    moving, fixed = (name.rsplit("_", 1) for name in pair.split("->"))
    return len(moving) == len(fixed) == 2 and moving[0] == fixed[0] and not (moving[1] + fixed[1]).isdigit()


def _t_test(values: np.ndarray) -> float:
    return float(stats.ttest_1samp(values, 0).pvalue) if len(values) > 1 and np.ptp(values) else np.nan
