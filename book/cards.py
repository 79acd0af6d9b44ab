"""Run cards: below every table and figure of a page, folded, what made it.

A card is marked as stale if the code that made its table or figure has changed since. A code cell that shows
stored results names them in its metadata, ``"results": ["demo_faces", "bench/cpu.json"]``, as folders or
files of ``book/results``. Its card lists those files with what they say of themselves. Any other output was
computed when the page was executed; its card is that of the execution, which ``book/build.py`` keeps in the
notebook's metadata. ``python book/cards.py`` lists what is stale, with the command that renews it.
"""

from __future__ import annotations

import functools
import json
import os
from html import escape
from pathlib import Path

import nbformat
import torch
from nbformat import NotebookNode
from nbformat.v4 import new_output

from tvf_core.card import code_hash, run_card

# First folder below book/results -> the module that wrote it.
MAKERS = {"bench": "tvf_core.bench", "scans": "tvf_core.scans.affine_trial"}
STALE = '<strong class="stale">stale</strong>'
SHOWN = ("image/png", "text/markdown")


def execution_card(notebook: NotebookNode, seconds: float) -> dict:
    """The card of a page that was just executed on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = "\n".join(
        cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    return run_card({"parameters": settings}, seconds, device, _notebook_code(notebook))


def stale(root: Path) -> dict[str, str]:
    """Notebooks and results that code other than today's has made -> the command that renews them."""
    old = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if notebook.metadata.get("card", {}).get("code") != _notebook_code(notebook):
            number = path.name.split("_")[0]
            old[path.relative_to(root).as_posix()] = f"make notebooks ARGS='--only {number}'"
    for path in sorted((root / "book" / "results").glob("*/*.json")):
        if json.loads(path.read_text("utf-8"))["card"]["code"] != _module_code(_maker(path.parent.name)):
            old[path.relative_to(root).as_posix()] = "make results"
    return old


def _maker(folder: str) -> str:
    """Module that writes a folder of ``book/results``."""
    return MAKERS.get(folder, "tvf_core.evaluation.evaluate")


def fold(notebook: NotebookNode, name: str, results: Path) -> int:
    """Add a card to every cell that shows a table or a figure; return how many cards are stale.

    ``name`` is the notebook's path in the project, ``results`` the folder ``book/results``. Links lead there
    from a page that lies one folder below the top.
    """
    stale = 0
    for cell in notebook.cells:
        if cell.cell_type != "code" or not any(set(SHOWN) & set(o.get("data", ())) for o in cell.outputs):
            continue
        old, body = (
            _stored(cell.metadata["results"], results)
            if "results" in cell.metadata
            else _executed(notebook, name)
        )
        mark = f" {STALE}" if old else ""
        html = f'<details class="run-card"><summary>Run card{mark}</summary>{body}</details>'
        cell.outputs.append(new_output("display_data", {"text/html": html}))
        stale += old
    return stale


def _executed(notebook: NotebookNode, name: str) -> tuple[bool, str]:
    card = notebook.metadata.get("card")
    source = f'<a href="../_sources/{name}">{escape(name)}</a>'
    if card is None:
        return True, f"<p>Computed by {source}; when and by which code is not known.</p>"
    old = card["code"] != _notebook_code(notebook)
    return old, (
        f"<p>Computed when the page was executed, by {source} (its source, with its numbers) and the modules "
        f"that it imports: code {_code(card['code'], old)}.</p>{_machine([card])}"
        f"<p>The whole page took {card['seconds']:.0f} s, with these parameters:</p>"
        f"<pre>{escape(card['settings']['parameters'])}</pre>"
    )


def _stored(names: list[str], results: Path) -> tuple[bool, str]:
    files = [
        f
        for name in names
        for f in ([results / name] if name.endswith(".json") else sorted((results / name).glob("*.json")))
    ]
    if not files or not all(f.is_file() for f in files):
        raise FileNotFoundError(f"a cell's metadata names results that are not in {results}: {names}")
    current, lines, cards = {}, [], []
    for file in files:
        name = file.relative_to(results).as_posix()
        content = json.loads(file.read_text("utf-8"))
        card, module = content["card"], _maker(name.split("/")[0])
        cards.append(card)
        current.setdefault(module, _module_code(module))
        old = card["code"] != current[module]
        lines.append(
            (
                old,
                [
                    _link(results, file, name),
                    *_details(file, content, results),
                    f"{card['seconds']:.0f}",
                    f"{card['peak_mb']:.0f}" if "peak_mb" in card else "–",
                    _code(card["code"], old),
                ],
            )
        )
    header = (
        "file",
        "rows",
        "pairs",
        "data (hash)",
        "list of pairs (hash)",
        "weights (hash)",
        "weights: seed",
        "seconds",
        "peak MB",
        "code",
    )
    table = "".join("<tr>" + "".join(f"<td>{x}</td>" for x in line) + "</tr>" for _, line in lines)
    ledger = _link(results, results.parent / "claims.yml", "claims.yml")
    body = (
        f"<p>Drawn from these stored files: what was measured stands in one of them or is computed from "
        f"their rows; what the paper says stands in {ledger}.</p>{_machine(cards)}<table><tr>"
        + "".join(f"<th>{x}</th>" for x in header)
        + f"</tr>{table}</table>"
    )
    return any(old for old, _ in lines), body


def _details(file: Path, content: dict, results: Path) -> list[str]:
    """Rows, pairs, hashes of data, pairs and weights, seed of the training; dashes where a file has none."""
    settings, rows = content["card"]["settings"], file.with_suffix(".csv")
    weights = results.parent / "weights" / content.get("dataset", "") / f"{content.get('method')}.json"
    hashed = settings.get("weights") or "–"
    return [
        _link(results, rows, "csv") if rows.is_file() else "–",
        str(content.get("n_pairs", "–")),
        *(settings.get(key, "–") for key in ("origin", "pairs")),
        _link(results, weights, hashed) if hashed != "–" and weights.is_file() else hashed,
        str(content.get("training", {}).get("seed", "–")),
    ]


def _machine(cards: list[dict]) -> str:
    """Device and versions, once for all cards that have the same."""
    texts = dict.fromkeys(
        f"{c['device']}, {c['threads']} threads, Python {c['python']}, PyTorch {c['torch']}, "
        f"tvf_core {c['tvf_core']}"
        for c in cards
    )
    return f"<p>{escape('; '.join(texts))}</p>"


def _code(value: str, old: bool) -> str:
    return f"<code>{escape(value)}</code>" + (f" {STALE}: the code has changed since" if old else "")


def _link(results: Path, target: Path, text: str) -> str:
    path = Path(os.path.relpath(target, results.parents[1])).as_posix()
    return f'<a href="../{path}">{escape(text)}</a>'


def _notebook_code(notebook: NotebookNode) -> str:
    lines = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").split("\n")
    return code_hash(
        "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    )  # without IPython's commands


@functools.cache
def _module_code(module: str) -> str:
    return code_hash(f"import {module}")


if __name__ == "__main__":
    for name, command in stale(Path(__file__).resolve().parents[1]).items():
        print(f"{name}: {command}")
