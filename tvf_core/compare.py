"""Is one method better than another? Paired tests on the rows that :mod:`tvf_core.evaluate` wrote."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from scipy import stats

from .checks import one_of
from .evaluate import read_rows
from .methods import METHODS


def compare(a: str, b: str, data: str, metric: str = "", folder: Path | None = None) -> dict:
    """Scores of method ``a`` minus those of ``b`` on the pairs that both have registered, with paired tests.

    Parameters
    ----------
    a, b : methods that have been evaluated on ``data``.
    metric : a column of their rows; default ``dice`` where there is one, else ``ssim``.
    folder : of results; default ``runs/results``.

    Returns
    -------
    ``n`` pairs; the means ``a``, ``b`` and ``difference``, its ``std`` over pairs (ddof 1), the share of pairs on which
    a's score is ``higher``; two-sided p values of the paired t-test (``t_test``, the paper's) and of Wilcoxon's signed
    ranks (``wilcoxon``); and ``subjects`` with ``subject_t_test``, the t-test on one mean difference per person: pairs that
    share a person are not independent, and tests over pairs give too small a p. (Where a pair shows two people, each is also
    the moving one of other pairs: that dependence is left.) A p value is NaN where it is not defined (fewer than two
    values, or all differences equal).

    Raises
    ------
    FileNotFoundError : a method has no rows there. ValueError : the rows have no such column, or no pair in common.

    Notes
    -----
    The person of a pair is that of its fixed image, as its name tells up to an expression (``s60_happy`` is s60).
    The paper compares TM-TVF with TM by paired t-tests, p < 0.0001 (text with Tables 1 and 2), with neither the number of
    pairs nor a word on their dependence.
    """
    rows = {}
    for method in (a, b):
        one_of(method, METHODS, "method")
    for method in (a, b):
        try:
            rows[method] = read_rows(method, data, folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{method} has no rows for {data} ({error.filename}); "
                                    f"make them with: tvf evaluate --method {method} --data {data}") from None
    columns = [c for c in rows[a] if c in rows[b] and c not in ("pair", "seconds")]
    metric = one_of(metric, columns, f"metric of these rows of {data}") if metric else "dice" if "dice" in columns else "ssim"
    scores = [dict(zip(rows[m]["pair"], rows[m][metric])) for m in (a, b)]
    pairs = [p for p in scores[0] if p in scores[1] and np.isfinite(scores[0][p]) and np.isfinite(scores[1][p])]
    if not pairs:
        raise ValueError(f"{a} and {b} have no pair of {data} with a finite {metric} in common")
    first, second = (np.array([s[p] for p in pairs]) for s in scores)
    difference = first - second
    people = np.array([re.split("->", p)[1].rsplit("_", 1)[0] if _one_person(p) else p.split("->")[1] for p in pairs])
    per_person = np.array([difference[people == who].mean() for who in dict.fromkeys(people)])
    return {
        "data": data, "metric": metric, "n": len(pairs), "a": float(first.mean()), "b": float(second.mean()),
        "difference": float(difference.mean()), "std": float(difference.std(ddof=1)) if len(pairs) > 1 else np.nan,
        "higher": float((difference > 0).mean()),
        "t_test": _t_test(difference), "wilcoxon": float(stats.wilcoxon(difference).pvalue) if np.ptp(difference) else np.nan,
        "subjects": len(per_person), "subject_t_test": _t_test(per_person),
    }


def _one_person(pair: str) -> bool:
    """Whether both images show the same person: the names differ in what follows the last underscore, an expression."""
    moving, fixed = (name.rsplit("_", 1) for name in pair.split("->"))
    return len(moving) == len(fixed) == 2 and moving[0] == fixed[0] and not (moving[1] + fixed[1]).isdigit()


def _t_test(values: np.ndarray) -> float:
    return float(stats.ttest_1samp(values, 0).pvalue) if len(values) > 1 and np.ptp(values) else np.nan
