"""Tables as rows and as Markdown.

The paper's two tables with its printed values (``book/claims.yml``) beside those measured here, the methods,
and where the numbers of their training come from.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from ..evaluation.compare import compare
from ..evaluation.results import file_of, read_results, title, unscored
from ..methods import METHODS, NetworkConfig
from ..model import Model
from ..paths import RESULTS, ROOT, runs, write_then_rename
from ..sources import RECIPE
from ..training import profiles

# Columns of a table that the paper does not have: metric measured here -> heading.
BEYOND = {
    "table1": {"sdlogj": "SDlogJ", "ndv_percent": "NDA (%)", "inverse_error": "inverse error (pixels)"},
    "table2": {
        "folding_inner_percent": "folding (%, inner voxels)",
        "ndv_percent": "NDV (%)",
        "inverse_error": "inverse error (voxels)",
    },
}


@functools.cache
def ledger() -> dict:
    """``book/claims.yml``: the paper's ``tables`` and ``claims``, and the ``rules`` that judge them."""
    return yaml.safe_load((ROOT / "book" / "claims.yml").read_text(encoding="utf-8"))


def heading(metric: str) -> str:
    """How the paper's tables head a metric measured here; its own name if they do not have it."""
    return next(
        (
            c["title"]
            for t in ledger()["tables"].values()
            for c in t["metrics"].values()
            if c["measured"] == metric
        ),
        metric,
    )


def results_folder(data: str, split: str = "test") -> Path:
    """Where results on a data set lie: ``book/results`` if it has any, else your own, ``runs/results``."""
    return RESULTS if read_results(RESULTS, data, split) else runs() / "results"


def comparison(table: str, results: dict[str, dict], link: str = "", beyond: bool = True) -> str:
    """``table1`` or ``table2`` in Markdown: a row per method of the paper and per result.

    A result under another name than its method's has a row below that of the method, without the paper's
    values. A result on a part of the pairs says on how many.

    Parameters
    ----------
    results : name -> summary, as :func:`tvf_core.evaluation.results.read_results` gives them.
    link : relative path of the results folder, if the names of the rows are to lead to the files.
    beyond : whether there are also columns that the paper does not have.
    """
    content, rows = ledger()["tables"][table], []
    printed, columns = content["values"], content["metrics"]
    extra = BEYOND[table] if beyond else {}
    for m in METHODS:
        if m in printed or m in results or m == "identity":
            rows.append(_row(table, m, printed.get(m, {}), results.get(m), list(extra), link))
        others = [s for name, s in results.items() if s["method"] == m != name]
        rows += [_row(table, m, {}, other, list(extra), link) for other in others]
    header = [
        "method",
        *(f"paper: {c['title']}" for c in columns.values()),
        *["here: labels"] * (table == "table2"),
        *(f"here: {title}" for title in [*(c["title"] for c in columns.values()), *extra.values()]),
    ]
    return markdown(header, rows)


def _row(table: str, method: str, paper: dict, result: dict | None, extra: list[str], link: str) -> list[str]:
    """A row of :func:`comparison`: the paper's values of a method, and those of a result if there is one."""
    content = ledger()["tables"][table]
    columns = content["metrics"]
    differs = content.get("differs", {}) if paper else {}
    remark = f" (paper: {differs[method]})" if method in differs else ""
    name = _linked(result, link, remark) if result else METHODS[method].title + remark
    labels = ("yes" if METHODS[method].uses_labels else "no") if result else "–"
    measured = [*(c["measured"] for c in columns.values()), *extra]
    return [
        name,
        *(plus_minus(paper.get(key)) for key in columns),
        *[labels] * (table == "table2"),
        *(over_pairs(result, metric) for metric in measured),
    ]


def scores(results: dict[str, dict], columns: dict[str, tuple[str, int]], link: str = "") -> str:
    """Markdown table with a row per result, and the means ± deviations of some metrics.

    Parameters
    ----------
    results, link : as in :func:`comparison`.
    columns : metric -> heading, and the number of digits.
    """
    rows = []
    for result in results.values():
        values = [plus_minus(result["summary"].get(m), digits) for m, (_, digits) in columns.items()]
        rows.append([_linked(result, link), *values])
    return markdown(["method", *(heading for heading, _ in columns.values())], rows)


def _linked(result: dict, link: str, remark: str = "") -> str:
    """What a row is called: the title of a result, which leads to its file, and on how many pairs it is."""
    name = title(result)
    if link:
        name = anchor(name, f"{link}/{result['dataset']}/{file_of(result)}")
    return name + remark + f" ({result['n_pairs']} pairs)" * (result["n_pairs"] < result["of_pairs"])


def over_pairs(result: dict | None, metric: str) -> str:
    """Mean and deviation of a result's metric, and how many pairs they leave out; a dash for nothing."""
    value = result["summary"].get(metric) if result else None
    return plus_minus(value) + (unscored(result, metric) if value else "")


def significance(
    first: str, others: list[str], data: str, metric: str, folder: Path, split: str = "test"
) -> str:
    """Markdown table that compares one result with each of the others, all by their names."""
    titles = {name: title(result) for name, result in read_results(folder, data, split).items()}
    rows = []
    for other in others:
        t = compare(first, other, data, metric, folder, split)
        rows.append(
            [
                titles[other],
                f"{t['n']} of {t['n'] + t['left_out']}" if t["left_out"] else t["n"],
                f"{t['difference']:+.4f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{t['std']:.4f}",
                f"{100 * t['higher']:.0f}",
                *(p_value(t[test]) for test in ("t_test", "wilcoxon", "subject_t_test")),
            ]
        )
    header = [
        f"{titles[first]} minus",
        "pairs",
        f"difference of {heading(metric)}",
        "above 0 (% of pairs)",
        "t-test p",
        "Wilcoxon p",
        "p over persons",
    ]
    return markdown(header, rows)


def methods(size: str = "demo") -> tuple[list[str], list[list[str]]]:
    """Header and a row per method; the numbers of parameters are those of a network ``size``.

    Networks that come in one size only are counted in that (``METHODS[name].sizes``).
    """
    rows = []
    for name, m in METHODS.items():
        counts = ["–", "–"]
        if m.build:
            with torch.device("meta"):  # takes no memory
                networks = [
                    Model(NetworkConfig.fitting(name, dim, size=size)[0]).network if dim in m.dims else None
                    for dim in (2, 3)
                ]
            counts = [
                f"{sum(p.numel() for p in n.parameters()):,}" if n is not None else "–" for n in networks
            ]
        terms = dict.fromkeys(term for dim in m.dims for term in m.losses.get(dim, ()))
        losses = (
            ", ".join(term + " (3D)" * (2 in m.dims and term not in m.losses[2]) for term in terms) or "–"
        )
        rows.append(
            [
                name,
                m.title,
                "/".join(f"{d}D" for d in m.dims),
                *counts,
                m.field,
                m.inverse,
                losses,
                m.code,
                m.source,
            ]
        )
    return ["name", "title", "dim", "2D", "3D", "field", "inverse", "losses", "code", "source"], rows


def sources() -> tuple[list[str], list[list[str]]]:
    """Header and a row per number of every method: where it is from, and what is open.

    Below the numbers of a method without a network stand those that profiles use instead for their data.
    """
    rows = [["all", "", what, value, source] for what, value, source in RECIPE]
    for name, m in METHODS.items():
        numbers = {dim: m.losses.get(dim, {}) | m.constants.get(dim, {}) for dim in m.dims}
        for what, number in {item: None for by_name in numbers.values() for item in by_name.items()}:
            dims = "/".join(f"{dim}D" for dim in m.dims if numbers[dim].get(what) == number)
            rows.append([name, dims, what, _value(number.value), number.source])
        replaced: dict[tuple, list[str]] = {}
        for profile in profiles.names() if m.build is None else ():
            for what, value in profiles.read(profile).to_register(name).items():
                replaced.setdefault((what, _value(value)), []).append(profile)
        for (what, value), where in sorted(replaced.items()):
            rows.append([name, "", what, value, f"profile {', '.join(where)}"])
    return ["method", "dim", "what", "value", "source"], rows


def _value(value) -> str:
    """A number with four digits; a name, or a number for every scale, as it is."""
    if isinstance(value, str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else f"{value:.4g}"


def plain(header: list[str], rows: list[list[str]]) -> str:
    """A table in columns of plain text."""
    widths = [max(len(line[k]) for line in (header, *rows)) for k in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in (header, *rows)
    )


def update_readme(tables: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end name -->`` in the README."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)",
            lambda m: f"{m[1]}{table}\n{m[2]}",
            text,
            flags=re.S,
        )
        if count != 1:
            raise ValueError(
                f"README.md: expected one block '<!-- {name} --> ... <!-- end {name} -->', found {count}"
            )
    with write_then_rename(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(header: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """A Markdown table whose columns but the first are right-aligned if they hold ``numbers``.

    A bar in a cell is escaped, so that it does not end the cell.
    """
    lines = [header, ["---"] + ["---:" if numbers else "---"] * (len(header) - 1), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def anchor(text: str, target: str) -> str:
    """A link that a browser opens. (In the book, a Markdown link to a file would download it.)"""
    return f'<a href="{target}">{text}</a>'


def plus_minus(value: dict | None, digits: int = 3) -> str:
    """``0.910 ± 0.028`` from ``{"mean": ..., "std": ...}``; ``< x`` for an upper bound; a dash for nothing.

    A value with ``digits`` of its own is printed with so many."""
    if not value:
        return "–"
    digits = value.get("digits", digits)
    if "upper_bound" in value:
        return f"< {value['upper_bound']:.{digits}f}"
    if "std" not in value:
        return f"{value['mean']:.{digits}f}"
    return f"{value['mean']:.{digits}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{value['std']:.{digits}f}"


def p_value(p: float) -> str:
    """A p value with two digits, no smaller than 1e-10; a dash where it is not defined."""
    return "–" if np.isnan(p) else f"{p:.2g}" if p >= 1e-10 else "<\N{NO-BREAK SPACE}1e-10"
