"""Tables as rows and as Markdown: the paper's two, its printed values beside those measured here; the methods; their numbers' sources."""

from __future__ import annotations

import re

import torch
import yaml

from .methods import METHODS, RECIPE, NetworkConfig
from .model import Model
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
    """Table ``number`` in Markdown: a row per method of the paper or of ``results`` (see ``evaluate.read_results``).

    A method that was scored on fewer pairs than the others says on how many.
    """
    printed, columns, rows = paper_values()[f"table{number}"], COLUMNS[number], []
    pairs = max((result["n_pairs"] for result in results.values()), default=0)
    for m in [m for m in METHODS if m in printed or m in results or m == "identity"]:
        title = METHODS[m].title
        if "differs" in printed.get(m, {}):
            title += f" (paper: {printed[m]['differs']})"
        if m in results and results[m]["n_pairs"] < pairs:
            title += f" ({results[m]['n_pairs']} pairs)"
        theirs = [plus_minus(printed.get(m, {}).get(key)) for key, _, _ in columns if key]
        ours = [plus_minus(results[m]["summary"][metric]) if m in results else plus_minus(None)
                for _, metric, _ in columns if metric]
        rows.append([title, *theirs, *([("yes" if METHODS[m].uses_labels else "no") if m in results else "–"] if number == 2 else []), *ours])
    header = ["method", *(f"paper: {name}" for key, _, name in columns if key), *["here: labels"] * (number == 2),
              *(f"here: {name}" for _, metric, name in columns if metric)]
    return markdown(header, rows)


def methods(size: str = "demo") -> tuple[list[str], list[list[str]]]:
    """Header and a row per method: name, title, dimensions, parameters for a network size, field, inverse, losses, code, source."""
    rows = []
    for name, m in METHODS.items():
        counts = ["–", "–"]
        if m.build:
            with torch.device("meta"):  # takes no memory
                networks = [Model(NetworkConfig(name, dim, size)).network if dim in m.dims else None for dim in (2, 3)]
            counts = [f"{sum(p.numel() for p in n.parameters()):,}" if n is not None else "–" for n in networks]
        terms = dict.fromkeys(term for dim in m.dims for term in m.losses.get(dim, ()))
        losses = ", ".join(term + " (3D)" * (2 in m.dims and term not in m.losses[2]) for term in terms) or "–"
        rows.append([name, m.title, "/".join(f"{d}D" for d in m.dims), *counts, m.field, m.inverse, losses, m.code, m.source])
    return ["name", "title", "dim", "2D", "3D", "field", "inverse", "losses", "code", "source"], rows


def sources() -> tuple[list[str], list[list[str]]]:
    """Header and a row per number of every method's training: where it is from, and what is open."""
    rows = [["all", "", what, value, source] for what, value, source in RECIPE]
    for name, m in METHODS.items():
        numbers = {dim: m.losses.get(dim, {}) | m.constants.get(dim, {}) for dim in m.dims}
        for what, number in {item: None for by_name in numbers.values() for item in by_name.items()}:
            dims = "/".join(f"{dim}D" for dim in m.dims if numbers[dim].get(what) == number)
            value = number.value if isinstance(number.value, str | tuple) else f"{number.value:.4g}"
            rows.append([name, dims, what, str(value), number.source])
    return ["method", "dim", "what", "value", "source"], rows


def plain(header: list[str], rows: list[list[str]]) -> str:
    """A table in columns of plain text."""
    widths = [max(len(line[k]) for line in (header, *rows)) for k in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in (header, *rows))


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


def markdown(header: list[str], rows: list[list[str]], numbers: bool = True) -> str:
    """A Markdown table; the first column is text, the others are right-aligned if they hold numbers."""
    lines = [header, ["---"] + ["---:" if numbers else "---"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def plus_minus(value: dict | None, digits: int = 3) -> str:
    """``0.910 ± 0.028`` from ``{"mean": ..., "std": ...}``; ``< x`` for an upper bound; a dash for nothing."""
    if not value:
        return "–"
    if "upper_bound" in value:
        return f"< {value['upper_bound']:.{digits}f}"
    return f"{value['mean']:.{digits}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{value['std']:.{digits}f}"
