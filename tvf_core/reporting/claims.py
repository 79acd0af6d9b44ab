"""The ledger of the paper's numbers and claims (``book/claims.yml``), each with a verdict per data set.

The paper's values and the rules stand in the ledger. What was measured and the verdict are taken from results
files every time. A method is judged by the result under its own name, or by the one that ``names`` (method ->
name) gives for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.compare import against, compare
from ..evaluation.results import file_of, read_results, title, unscored
from ..methods import METHODS
from ..paths import RESULTS
from .tables import anchor, ledger, markdown, over_pairs, plus_minus, results_folder
from .verdicts import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, judge_bound, judge_order

NO_NAMES: dict[str, str] = {}


@dataclass(frozen=True)
class Finding:
    """What one data set says of one entry of the ledger.

    Attributes
    ----------
    data : the data set.
    regime : ``paper data`` where that is the paper's data set; ``real faces``, ``demo`` or ``anatomies``
        where it stands in for it.
    measured : our value or values, as text.
    verdict : one of ``tvf_core.reporting.verdicts.VERDICTS``.
    why : the reason of a verdict that the values do not show by themselves.
    files : results files that it comes from, relative to the results folder.
    """

    data: str
    regime: str
    measured: str
    verdict: str
    why: str = ""
    files: tuple[str, ...] = ()


def split_of(data: str) -> str:
    """Split that a data set is judged on: the paper's where it names one (OASIS: val), else test."""
    return next((t["split"] for t in ledger()["tables"].values() if t.get("paper_data") == data), "test")


def number(
    table: str, method: str, metric: str, folder: Path | None = None, names: dict[str, str] = NO_NAMES
) -> list[Finding]:
    """Our values beside a number of one of the ledger's tables, a finding per data set that was measured.

    The finding on the paper's own data comes last, and only it can have a verdict: other data cannot test a
    number, only stand beside it.

    Parameters
    ----------
    table, method, metric : as the ledger calls them.
    folder : of results; default where :func:`tvf_core.reporting.tables.results_folder` finds each data set's.
    names : method -> name of the result that is to stand for it, default the method's own.
    """
    regimes, content = ledger()["regimes"], ledger()["tables"][table]
    column = content["metrics"][metric]
    measured, findings = column["measured"], []
    for data in content.get("here", []):
        why, result = _incomplete(data, method, folder or results_folder(data), names)
        if result and result["method"] != method:  # its number must not stand beside this method's
            findings.append(Finding(data, regimes[data], "–", NOT_TESTABLE, why))
        elif result and measured in result["summary"]:
            ours = over_pairs(result, measured)
            why = "other data than the paper's" + f"; {why}" * bool(why)
            findings.append(Finding(data, regimes[data], ours, NOT_TESTABLE, why, _files(result)))
    if "untestable" in content:
        return [*findings, Finding("", "paper data", "–", NOT_TESTABLE, content["untestable"])]
    data = content["paper_data"]
    why, result = _incomplete(data, method, folder or results_folder(data, content["split"]), names)
    if method in content.get("differs", {}):
        why = f"the paper's row is another method ({content['differs'][method]})"
    if result is None or measured not in result["summary"]:
        why = why or f"results without {measured}; evaluate again"
        return [*findings, Finding(data, "paper data", "–", NOT_TESTABLE, why)]
    ours, printed = result["summary"][measured], content["values"][method][metric]
    why = why or column.get("untestable", "")
    if not why and (lost := unscored(result, measured)):
        why = lost.strip(" ()")
    if not why and not math.isfinite(ours["mean"]):
        why = "not finite: a warp lost a label"
    if why:
        verdict = NOT_TESTABLE
    else:
        verdict = REPRODUCED if abs(ours["mean"] - printed["mean"]) <= column["tolerance"] else NOT_REPRODUCED
    why = why or column.get("remark", "")
    return [
        *findings,
        Finding(data, "paper data", over_pairs(result, measured), verdict, why, _files(result)),
    ]


def _incomplete(data: str, method: str, folder: Path, names: dict[str, str]) -> tuple[str, dict | None]:
    """Why a method's result on a data set cannot test a claim, or nothing; and its summary, if any."""
    name = names.get(method, method)
    result, called = read_results(folder, data, split_of(data)).get(name), METHODS[method].title
    if result is None:
        return f"no results of {called} here" + f" under the name {name}" * (name != method), None
    called = title(result)
    if result["method"] != method:
        return (
            f"the result {name} is of {METHODS[result['method']].title}, not of {METHODS[method].title}",
            result,
        )
    table = next((t for t in ledger()["tables"].values() if t.get("paper_data") == data), None)
    shape = result["card"]["settings"]["shape"]
    if table and result["n_pairs"] != table["pairs"]:
        return f"{called}: {result['n_pairs']} of the paper's {table['pairs']} pairs", result
    if result["n_pairs"] < result["of_pairs"]:
        return f"{called}: {result['n_pairs']} of {result['of_pairs']} pairs", result
    if table and shape != table["shape"]:
        sizes = (" x ".join(map(str, s)) for s in (shape, table["shape"]))
        return f"{called}: images of {' instead of '.join(sizes)}", result
    if result["card"]["settings"].get("integrator") == "released" != METHODS[method].integrator:
        return f"{called}: measured by the rules of the released code", result
    return "", result


def claim(entry: dict, folder: Path | None = None, names: dict[str, str] = NO_NAMES) -> list[Finding]:
    """What each data set of a claim (an entry of ``claims`` in the ledger) says of it.

    ``folder`` and ``names`` are those of :func:`number`.
    """
    check = entry["check"]
    if "untestable" in check:
        return [Finding("", "–", "–", NOT_TESTABLE, check["untestable"])]
    findings = []
    for data in entry["data"]:
        where, regime = folder or results_folder(data, split_of(data)), ledger()["regimes"][data]
        methods = [check["first"], *check["than"]] if "first" in check else [check["of"]]
        known = {m: _incomplete(data, m, where, names) for m in methods}
        if why := next((why for why, _ in known.values() if why), ""):
            findings.append(Finding(data, regime, "–", NOT_TESTABLE, why))
            continue
        results = {m: result for m, (_, result) in known.items()}
        try:
            found = (_order if "first" in check else _bound)(check, data, where, results)
        except (ValueError, OSError):
            why = "rows without this metric, with no finite value or no pair in common; evaluate again"
            found = ("–", NOT_TESTABLE, why)
        findings.append(Finding(data, regime, *found, _files(*results.values())))
    return findings


def _order(check: dict, data: str, folder: Path, results: dict[str, dict]) -> tuple[str, str, str]:
    """Measured, verdict and reason of a claim that a first method scores better than each of others."""
    split, first = split_of(data), check["first"]
    tests = {}
    for m in check["than"]:
        names = (results[first]["name"], results[m]["name"])
        tests[m] = compare(*names, data, check["metric"], folder, split, check.get("their_metric", ""))
    titles = {m: title(result) for m, result in results.items()}
    sign, limit = {"higher": 1, "lower": -1}[check["better"]], ledger()["rules"]["p_persons"]
    return judge_order(tests, titles, first, sign, limit, check.get("p_below", math.inf))


def _bound(check: dict, data: str, folder: Path, results: dict[str, dict]) -> tuple[str, str, str]:
    """Measured, verdict and reason of a claim that a mean or largest value keeps a bound."""
    result, bound = results[check["of"]], check["at_most"]
    tests = against(bound, result["name"], data, check["metric"], folder, split_of(data))
    return judge_bound(tests, title(result), check["over"], bound, ledger()["rules"]["p_persons"])


def rules() -> str:
    """The ledger's rules in words, as a Markdown list."""
    return "\n".join(f"- {' '.join(text.split())}" for text in ledger()["rules"]["in_words"])


def claims_table(folder: Path | None = None, link: str = "", names: dict[str, str] = NO_NAMES) -> str:
    """Every claim with what each data set says of it, in Markdown.

    ``link`` is the relative path of the results folder, if there are to be links; ``folder`` and ``names``
    are those of :func:`number`.
    """
    rows = []
    for entry in ledger()["claims"]:
        said = f"{entry['says']} *{entry['where']}*"
        for finding, data in _merged(claim(entry, folder, names)):
            rows.append(
                [
                    said,
                    f"{data} ({finding.regime})" if data else "–",
                    finding.measured + _links(finding, link),
                    _judged(finding),
                ]
            )
            said = ""
    return markdown(["claim, and where it stands", "data", "measured", "verdict"], rows, numbers=False)


def numbers_table(
    table: str, folder: Path | None = None, link: str = "", names: dict[str, str] = NO_NAMES
) -> str:
    """Every number of one of the ledger's tables beside ours, in Markdown, as in :func:`claims_table`."""
    content, rows = ledger()["tables"][table], []
    here = content.get("here", [])
    for method, columns in content["values"].items():
        for metric, value in columns.items():
            column, findings = content["metrics"][metric], number(table, method, metric, folder, names)
            stand_in = {f.data: f.measured + _links(f, link) for f in findings[:-1]}
            last = findings[-1]
            rows.append(
                [
                    f"{METHODS[method].title}, {column['title']}",
                    plus_minus(value),
                    *(stand_in.get(d, "–") for d in here),
                    *(
                        [last.measured + _links(last, link), str(column.get("tolerance", "–"))]
                        if "paper_data" in content
                        else []
                    ),
                    _judged(last),
                ]
            )
    header = [
        "",
        "paper",
        *(f"here: {d}" for d in here),
        *([f"here: {content['paper_data']}", "tolerance"] if "paper_data" in content else []),
        "verdict",
    ]
    return markdown(header, rows, numbers=False)


def _merged(findings: list[Finding]):
    """Findings with their data set's name; those on the paper's data that are alike together."""
    groups = {}
    for f in findings:
        alike = (f.regime, f.measured, f.verdict, f.why) if f.regime == "paper data" and not f.files else f
        groups.setdefault(alike, []).append(f)
    return [(group[0], ", ".join(f.data for f in group)) for group in groups.values()]


def _judged(finding: Finding) -> str:
    return f"**{finding.verdict}**" + f": {finding.why}" * bool(finding.why)


def _links(finding: Finding, link: str) -> str:
    """Links to a finding's files, a number each."""
    if not link or not all((RESULTS / file).is_file() for file in finding.files):
        return ""
    return "".join(" " + anchor(f"[{k}]", f"{link}/{file}") for k, file in enumerate(finding.files, start=1))


def _files(*results: dict) -> tuple[str, ...]:
    return tuple(f"{result['dataset']}/{file_of(result)}" for result in results)
