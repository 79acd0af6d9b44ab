"""Tables as rows and as Markdown: the paper's two, its printed values (``book/claims.yml``) beside those measured here; the methods; their numbers' sources."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from ..evaluation.compare import compare
from ..evaluation.evaluate import read_results, result_name
from ..methods import METHODS, RECIPE, NetworkConfig
from ..model import Model
from ..paths import RESULTS, ROOT, runs, write_then_rename
from ..training import profiles

# Columns of a table that the paper does not have: metric measured here -> heading.
BEYOND = {
    "table1": {"sdlogj": "SDlogJ", "ndv_percent": "NDA (%)", "inverse_error": "inverse error (pixels)"},
    "table2": {
        "folding_percent": "folding (%)",
        "ndv_percent": "NDV (%)",
        "inverse_error": "inverse error (voxels)",
    },
}


@functools.cache
def ledger() -> dict:
    """``book/claims.yml``: numbers and claims of the paper (``tables``, ``claims``), and the rules by which they are judged."""
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
    """Where the results on a data set lie: ``book/results`` if any come with the book, else your own, ``runs/results``."""
    return RESULTS if read_results(RESULTS, data, split) else runs() / "results"


def comparison(table: str, results: dict[str, dict], link: str = "", beyond: bool = True) -> str:
    """``table1`` or ``table2`` in Markdown: a row per method of the paper or of ``results`` (see ``evaluate.read_results``).

    A method that was scored on fewer pairs than the others says on how many. ``link`` is the relative path of the results
    folder, to which the names of the methods then point; without ``beyond`` there are only the paper's columns.
    """
    content, rows = ledger()["tables"][table], []
    printed, columns = content["values"], content["metrics"]
    extra = BEYOND[table] if beyond else {}
    pairs = max((result["n_pairs"] for result in results.values()), default=0)
    for m in [m for m in METHODS if m in printed or m in results or m == "identity"]:
        title = METHODS[m].title
        if link and m in results:
            title = anchor(
                title, f"{link}/{results[m]['dataset']}/{result_name(m, results[m]['split'], 'json')}"
            )
        if m in content.get("differs", {}):
            title += f" (paper: {content['differs'][m]})"
        if m in results and results[m]["n_pairs"] < pairs:
            title += f" ({results[m]['n_pairs']} pairs)"
        theirs = [plus_minus(printed.get(m, {}).get(key)) for key in columns]
        ours = [
            plus_minus(results[m]["summary"].get(metric) if m in results else None)
            for metric in [*(c["measured"] for c in columns.values()), *extra]
        ]
        rows.append(
            [
                title,
                *theirs,
                *(
                    [("yes" if METHODS[m].uses_labels else "no") if m in results else "–"]
                    if table == "table2"
                    else []
                ),
                *ours,
            ]
        )
    header = [
        "method",
        *(f"paper: {c['title']}" for c in columns.values()),
        *["here: labels"] * (table == "table2"),
        *(f"here: {title}" for title in [*(c["title"] for c in columns.values()), *extra.values()]),
    ]
    return markdown(header, rows)


def significance(
    first: str, others: list[str], data: str, metric: str, folder: Path, split: str = "test"
) -> str:
    """Markdown table of :func:`compare` of one method with each of the others."""
    rows = []
    for other in others:
        t = compare(first, other, data, metric, folder, split)
        rows.append(
            [
                METHODS[other].title,
                t["n"],
                f"{t['difference']:+.4f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{t['std']:.4f}",
                f"{100 * t['higher']:.0f}",
                *(p_value(t[test]) for test in ("t_test", "wilcoxon", "subject_t_test")),
            ]
        )
    header = [
        f"{METHODS[first].title} minus",
        "pairs",
        f"difference of {heading(metric)}",
        "above 0 (% of pairs)",
        "t-test p",
        "Wilcoxon p",
        "p over persons",
    ]
    return markdown(header, rows)


def methods(size: str = "demo") -> tuple[list[str], list[list[str]]]:
    """Header and a row per method: name, title, dimensions, parameters for a network size, field, inverse, losses, code,
    source. Networks that come in one size are counted in that (``METHODS[name].sizes``)."""
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
    """Header and a row per number of every method: where it is from, and what is open. Below the numbers of a method
    without a network stand those with which the profiles replace them for their data."""
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
    """A Markdown table; the first column is text, the others are right-aligned if they hold numbers. A bar in a cell stays one."""
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
