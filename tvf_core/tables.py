"""Tables 1 and 2 as Markdown: the paper's printed values beside those measured here."""

from __future__ import annotations

import re

import yaml

from .methods import METHODS
from .paths import ROOT, write_then_rename

# Table -> (key in book/paper_values.yaml or None, metric measured here or None, heading).
COLUMNS = {
    1: [("ssim", "ssim", "SSIM"), ("fsim", None, "FSIM"), ("folding", "folding_percent", "folding"),
        (None, "inverse_error", "inverse error (pixels)")],
    2: [("dice", "dice", "Dice"), ("sdlogj", "sdlogj", "SDlogJ"), ("hd95", None, "HD95"),
        (None, "folding_percent", "folding (%)"), (None, "inverse_error", "inverse error (voxels)")],
}


def paper_values() -> dict:
    """The numbers printed in the paper: ``table1`` and ``table2``, method -> metric -> mean and std."""
    return yaml.safe_load((ROOT / "book" / "paper_values.yaml").read_text(encoding="utf-8"))


def comparison(number: int, results: dict[str, dict]) -> str:
    """Table ``number`` in Markdown: a row per method of the paper or of ``results`` (see ``evaluate.read_results``)."""
    printed, columns, rows = paper_values()[f"table{number}"], COLUMNS[number], []
    for m in dict.fromkeys(["identity", *printed, *results]):
        title = printed[m]["title"] if m in printed else METHODS[m].title
        theirs = [plus_minus(printed.get(m, {}).get(key)) for key, _, _ in columns if key]
        ours = [plus_minus(results[m]["summary"][metric]) if m in results else plus_minus(None)
                for _, metric, _ in columns if metric]
        rows.append([title, *theirs, *ours])
    header = ["method", *(f"paper: {name}" for key, _, name in columns if key),
              *(f"here: {name}" for _, metric, name in columns if metric)]
    return markdown(header, rows)


def update_readme(tables: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end name -->`` in the README."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        text, count = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise ValueError(f"README.md: expected one block '<!-- {name} --> ... <!-- end {name} -->', found {count}")
    with write_then_rename(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are right-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def plus_minus(value: dict | None, digits: int = 3) -> str:
    """``0.910 ± 0.028`` from ``{"mean": ..., "std": ...}``; ``< x`` for an upper bound; a dash for nothing."""
    if not value:
        return "–"
    if "upper_bound" in value:
        return f"< {value['upper_bound']:.{digits}f}"
    return f"{value['mean']:.{digits}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{value['std']:.{digits}f}"
