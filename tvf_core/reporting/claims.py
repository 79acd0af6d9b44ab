"""The ledger of the paper's numbers and claims (``book/claims.yml``), judged by results files: reproduced or not, and on which data.

Paper values and rules stand in the ledger; what was measured and the verdict are taken from the files every time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.compare import compare
from ..evaluation.evaluate import read_results, read_rows, result_name
from ..methods import METHODS
from ..paths import RESULTS
from .tables import anchor, ledger, markdown, p_value, plus_minus, results_folder

REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE = VERDICTS = ("reproduced", "not reproduced", "not testable here")


@dataclass(frozen=True)
class Finding:
    """What one data set says of one entry of the ledger.

    Attributes
    ----------
    data, regime : the data set, and whether it stands in for the paper's (``demo``, ``anatomies``) or is it (``paper data``).
    measured : our value or values, as text.
    verdict : one of ``VERDICTS``.
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


def number(table: str, method: str, metric: str, folder: Path | None = None) -> list[Finding]:
    """Our values beside a number of one of the ledger's tables: a finding per data set that was measured, the paper's own last.

    The verdict is that on the paper's data; other data cannot test a number, only stand beside it. ``folder`` of results:
    default where :func:`tvf_core.reporting.tables.results_folder` finds each data set's.
    """
    regimes, content = ledger()["regimes"], ledger()["tables"][table]
    column = content["metrics"][metric]
    measured, findings = column["measured"], []
    for data in content.get("here", []):
        result = read_results(folder or results_folder(data), data).get(method)
        if result and measured in result["summary"]:
            findings.append(
                Finding(
                    data,
                    regimes[data],
                    plus_minus(result["summary"][measured]),
                    NOT_TESTABLE,
                    "other data than the paper's",
                    _files(data, method),
                )
            )
    if "untestable" in content:
        return [*findings, Finding("", "paper data", "–", NOT_TESTABLE, content["untestable"])]
    data = content["paper_data"]
    why, result = _incomplete(data, method, folder or results_folder(data, content["split"]))
    if method in content.get("differs", {}):
        why = f"the paper's row is another method ({content['differs'][method]})"
    if result is None or measured not in result["summary"]:
        return [
            *findings,
            Finding(
                data, "paper data", "–", NOT_TESTABLE, why or f"results without {measured}; evaluate again"
            ),
        ]
    ours, printed = result["summary"][measured], content["values"][method][metric]
    why = (
        why
        or column.get("untestable", "")
        or ("" if math.isfinite(ours["mean"]) else "not finite: a warp lost a label")
    )
    if why:
        verdict = NOT_TESTABLE
    else:
        verdict = REPRODUCED if abs(ours["mean"] - printed["mean"]) <= column["tolerance"] else NOT_REPRODUCED
    return [
        *findings,
        Finding(
            data,
            "paper data",
            plus_minus(ours),
            verdict,
            why or column.get("remark", ""),
            _files(data, method),
        ),
    ]


def _incomplete(data: str, method: str, folder: Path) -> tuple[str, dict | None]:
    """Why a method's results on a data set cannot test the paper, or nothing; and its summary, if there is one."""
    result, title = read_results(folder, data, split_of(data)).get(method), METHODS[method].title
    if result is None:
        return f"no results of {title} here", None
    table = next((t for t in ledger()["tables"].values() if t.get("paper_data") == data), None)
    shape = result["card"]["settings"]["shape"]
    if table and result["n_pairs"] != table["pairs"]:
        return f"{title}: {result['n_pairs']} of the paper's {table['pairs']} pairs", result
    if table and shape != table["shape"]:
        return (
            f"{title}: images of {' x '.join(map(str, shape))} instead of {' x '.join(map(str, table['shape']))}",
            result,
        )
    if result["card"]["settings"].get("integrator") == "released" != METHODS[method].integrator:
        return f"{title}: measured by the rules of the released code", result
    return "", result


def claim(entry: dict, folder: Path | None = None) -> list[Finding]:
    """What each data set of a claim (an entry of ``claims`` in the ledger) says of it; ``folder`` as in :func:`number`."""
    check = entry["check"]
    if "untestable" in check:
        return [Finding("", "–", "–", NOT_TESTABLE, check["untestable"])]
    findings = []
    for data in entry["data"]:
        where = folder or results_folder(data, split_of(data))
        methods = [check["first"], *check["than"]] if "first" in check else [check["of"]]
        why = next(filter(None, (_incomplete(data, m, where)[0] for m in methods)), "")
        if why:
            findings.append(Finding(data, ledger()["regimes"][data], "–", NOT_TESTABLE, why))
            continue
        try:
            found = (_order if "first" in check else _bound)(check, data, where)
        except (ValueError, KeyError, OSError):
            found = (
                "–",
                NOT_TESTABLE,
                "rows without this metric, with no finite value or no pair in common; evaluate again",
            )
        findings.append(Finding(data, ledger()["regimes"][data], *found, _files(data, *methods)))
    return findings


def claims_table(folder: Path | None = None, link: str = "") -> str:
    """Every claim with what each data set says of it, in Markdown; ``link`` is the relative path of the results folder, if any."""
    rows = []
    for entry in ledger()["claims"]:
        said = f"{entry['says']} *{entry['where']}*"
        for finding, data in _merged(claim(entry, folder)):
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


def numbers_table(table: str, folder: Path | None = None, link: str = "") -> str:
    """Every number of one of the ledger's tables beside ours, in Markdown; ``link`` as in :func:`claims_table`."""
    content, rows = ledger()["tables"][table], []
    here = content.get("here", [])
    for method, columns in content["values"].items():
        for metric, value in columns.items():
            column, findings = content["metrics"][metric], number(table, method, metric, folder)
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


def _order(check: dict, data: str, folder: Path):
    """First scores better than each of the others, more than chance over persons would explain."""
    sign = {"higher": 1, "lower": -1}[check["better"]]
    limit, tests = ledger()["rules"]["p_persons"], {}
    for other in check["than"]:
        tests[other] = compare(
            check["first"],
            other,
            data,
            check["metric"],
            folder,
            split_of(data),
            check.get("their_metric", ""),
        )
    ahead = [
        m
        for m, t in tests.items()
        if sign * t["difference"] > 0
        and t["subject_t_test"] < limit
        and t["t_test"] < check.get("p_below", math.inf)
    ]
    shown = {m: t for m, t in tests.items() if m not in ahead} or tests
    closest = min(shown, key=lambda m: sign * shown[m]["difference"])
    t = tests[closest]
    text = f"{METHODS[check['first']].title} {t['a']:.4f}, {METHODS[closest].title} {t['b']:.4f}"
    if not all(test["subjects"] for test in tests.values()):
        return text, NOT_TESTABLE, "the rows do not tell the persons; evaluate again"
    text += f" (p {p_value(t['t_test'])} over {t['n']} pairs, {p_value(t['subject_t_test'])} over {t['subjects']} persons)"
    if len(tests) > 1:
        text = f"better than {len(ahead)} of {len(tests)}; {'closest' if len(ahead) == len(tests) else 'not ahead of'} {METHODS[closest].title}: {text}"
    if lost := max(t["left_out"] for t in tests.values()):
        return text, NOT_TESTABLE, f"{lost} pairs have no finite value, as where a warp loses a label"
    why = ""
    if len(ahead) < len(tests) and sign * t["difference"] > 0:
        why = (
            "the mean is better, but a test over persons does not exclude chance"
            if not t["subject_t_test"] < limit
            else "better, with a larger p than the claim's"
        )
    return text, REPRODUCED if len(ahead) == len(tests) else NOT_REPRODUCED, why


def _bound(check: dict, data: str, folder: Path):
    """Mean or largest value over pairs at most a bound."""
    values = read_rows(check["of"], data, folder, split_of(data))[check["metric"]]
    value = {"mean": values.mean(), "max": values.max()}[check["over"]]
    text = f"{METHODS[check['of']].title} {value:.3g} ({check['over']} over {len(values)} pairs)"
    return text, REPRODUCED if value <= check["at_most"] else NOT_REPRODUCED, ""


def _files(data: str, *methods: str) -> tuple[str, ...]:
    return tuple(f"{data}/{result_name(m, split_of(data), 'json')}" for m in methods)
