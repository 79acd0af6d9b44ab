"""Results in files: how they are named, found, read and written.

| file in ``<results>/<data set>/`` | what it holds |
|---|---|
| ``tm.json``, ``tm.csv`` | the summary of TM on all pairs of the test split, and a row per pair |
| ``tm.val.json`` | the same on another split |
| ``tm.2-pairs.json`` | the same on two pairs only, which are evenly spread over the split |
| ``wide.json`` | a result under another name (``tvf evaluate --name wide``); its summary tells the method |

A result is asked for by its name. ``tm`` is the evaluation of that name on the most pairs; ``tm.2-pairs`` is
the one on two pairs, whatever else is there.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np

from ..data import name_of
from ..methods import METHODS
from ..paths import runs, write_json, write_then_rename

TEXTS = ("pair", "person")  # columns of the rows that are not numbers; the person is that of the fixed image
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PART = re.compile(r"(.+)\.(\d+)-pairs")
_SPLIT = re.compile(r"(.+)\.(train|val|test)")


def check_name(name: str, method: str) -> str:
    """Give back the name of a result of ``method``; ValueError where it cannot be one."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            "name: expected up to 100 letters, digits, dashes, dots and underscores, "
            f"the first a letter or a digit, got {name!r}"
        )
    if _PART.fullmatch(name) or _SPLIT.fullmatch(name):
        raise ValueError(f"name: {name!r} ends as the files of a split or of a part of the pairs do")
    if name != method and name.lower() in METHODS:
        raise ValueError(f"name: {name!r} would be taken for the results of the method {name.lower()}")
    return name


def check_owner(name: str, method: str, folder: Path) -> None:
    """ValueError where the folder of a data set's results has one of this name and of another method."""
    for file, summary in _named(name, folder):
        if (owner := summary.get("method", method)) != method:
            raise ValueError(f"{file} is a result of {owner}; choose another name for one of {method}")


def check_data(folder: Path, name: str, origin: str) -> None:
    """ValueError where a folder holds results on other data of the same name, which would be mixed up."""
    for file in sorted(folder.glob("*.json")):
        if (summary := read_summary(file)) and summary["card"]["settings"].get("origin", origin) != origin:
            raise ValueError(
                f"{file} is of another data set, or of another state of this one, with the same name "
                f"{name!r}: choose another out folder, delete these results, or give the data another "
                '"name" in dataset.json'
            )


def made_otherwise(name: str, folder: Path, settings: dict, replace: bool) -> list[Path]:
    """Summaries of this name, on any split or part, that were made with other weights, shape or constants.

    What the settings of an older result do not tell counts as equal. Unless they are to be replaced, a
    ValueError names the first.
    """
    known = _named(name, folder)
    others = [file for file, summary in known if differ(summary["card"]["settings"], settings)]
    if others and not replace:
        raise ValueError(
            f"{others[0]} was made with other weights, image size or constants: to keep both, give the new "
            "result a name of its own (--name NAME); else delete that file, or replace it (--replace)"
        )
    return others


def differ(old: dict, new: dict) -> bool:
    """Whether two results were made with other weights, shape or constants, as their settings tell."""
    one, two = old.get("constants") or {}, new.get("constants") or {}
    return any(old.get(key, new[key]) != new[key] for key in ("weights", "shape")) or any(
        one[constant] != two[constant] for constant in one.keys() & two.keys()
    )


def _named(name: str, folder: Path) -> list[tuple[Path, dict]]:
    """The results of a name in the folder of a data set, on any split or part: file and summary."""
    files = [file for file in sorted(folder.glob("*.json")) if _parse(file.stem)[0] == name]
    return [(file, summary) for file in files if (summary := read_summary(file))]


def read_summary(file: Path) -> dict:
    """The summary in a results file; empty where the file holds other JSON, so that it is not a result.

    ValueError as in :func:`read_json`.
    """
    content = read_json(file)
    card = content.get("card") if isinstance(content, dict) else None
    return content if isinstance(card, dict) and isinstance(card.get("settings"), dict) else {}


def read_json(file: Path):
    """The content of a JSON file; a ValueError that names the file where it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # also where the bytes are no text
        raise ValueError(f"{file} is damaged, delete it ({error})") from None


def file_name(name: str, split: str, kind: str, pairs: int = 0) -> str:
    """Name of a results file of a ``kind`` (json, csv) on a number of ``pairs`` of the split, 0 for all."""
    return f"{name}{f'.{split}' * (split != 'test')}{f'.{pairs}-pairs' * bool(pairs)}.{kind}"


def exact_name(summary: dict) -> str:
    """The name that finds this result and no other: ``tm``, or ``tm.2-pairs`` for a part of the pairs."""
    return summary["name"] + f".{summary['n_pairs']}-pairs" * (summary["n_pairs"] < summary["of_pairs"])


def file_of(summary: dict, kind: str = "json") -> str:
    """Name of the file that a summary (or its rows) lies in."""
    part = summary["n_pairs"] if summary["n_pairs"] < summary["of_pairs"] else 0
    return file_name(summary["name"], summary["split"], kind, part)


def title(summary: dict) -> str:
    """What tables call a result: the title of its method, with its name where that is not the method's."""
    known = METHODS[summary["method"]].title
    return known if summary["name"] == summary["method"] else f"{known} ({summary['name']})"


def unscored(summary: dict, metric: str) -> str:
    """`` (2 of 12 pairs not scored)`` behind a mean that leaves pairs out, else nothing."""
    pairs = summary.get("not_scored", {}).get(metric, ())
    return f" ({len(pairs)} of {summary['n_pairs']} pairs not scored)" if pairs else ""


def find(name: str, data: str, folder: Path | None = None, split: str = "test", kind: str = "json") -> Path:
    """The file of a result, default in ``runs/results``.

    Raises
    ------
    FileNotFoundError : there is none; the message says how to make it.
    """
    place = (Path(folder) if folder else runs() / "results") / name_of(data)
    part = _PART.fullmatch(name)
    if part and (file := place / file_name(part[1], split, kind, int(part[2]))).is_file():
        return file
    known = {}
    for file in place.glob(f"*.{kind}"):
        known.setdefault(_parse(file.stem)[:2], {})[_parse(file.stem)[2]] = file
    if found := known.get((name, split)):
        return found.get(0) or found[max(found)]
    plain, pairs = (part[1], part[2]) if part else (name, "")
    method = plain if plain in METHODS else f"METHOD --name {shlex.quote(plain)}"
    command = f"tvf evaluate --method {method} --data {shlex.quote(str(data))}"
    command += f" --split {split}" * (split != "test") + f" --limit {pairs}" * bool(pairs)
    command += f" --out {shlex.quote(str(folder))}" * bool(folder)
    if plain in METHODS and METHODS[plain].build is None and any(METHODS[plain].constants.values()):
        command += " (with --profile NAME it takes the constants of a profile of the book)"
    there = ", ".join(sorted(n for n, s in known if s == split))
    raise FileNotFoundError(
        f"{place} has no result {name!r} on the {split} split (there are: {there or 'none'}); "
        f"make it with: {command}"
    )


def read_rows(name: str, data: str, folder: Path | None = None, split: str = "test") -> dict[str, np.ndarray]:
    """Columns of a result's rows, one value per pair; ``TEXTS`` are text, the rest are numbers.

    FileNotFoundError as in :func:`find`.
    """
    with open(find(name, data, folder, split, "csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([row[key] if key in TEXTS else float(row[key]) for row in rows]) for key in rows[0]}


def read_result(name: str, data: str, folder: Path | None = None, split: str = "test") -> dict:
    """The summary of a result; FileNotFoundError as in :func:`find`, and where the file is not a result.

    Its ``name`` is that of the file, which may have been renamed. Without ``of_pairs`` it is of all pairs.
    A damaged file is a ValueError, which names it.
    """
    content = read_summary(file := find(name, data, folder, split))
    if not content:
        raise FileNotFoundError(f"{file} is not a result of tvf evaluate")
    part = _PART.fullmatch(name)
    return {"of_pairs": content.get("n_pairs")} | content | {"name": part[1] if part else name}


def read_results(folder: Path, data: str, split: str = "test") -> dict[str, dict]:
    """Summaries of a data set that lie in a results folder, name -> summary, each the one on the most pairs.

    The order is that of the methods in the tables; of one method, the result under its own name comes first.
    """
    names = {_parse(file.stem)[0] for file in (Path(folder) / name_of(data)).glob("*.json")}
    found = {}
    for name in names:
        try:
            summary = read_result(name, data, folder, split)
        except FileNotFoundError:  # it is there on another split only, or it is not a result
            continue
        if summary.get("method") in METHODS and summary.get("split") == split:
            found[name] = summary
    place = {method: number for number, method in enumerate(METHODS)}
    order = sorted((place[s["method"]], name != s["method"], name) for name, s in found.items())
    return {name: found[name] for _, _, name in order}


def write_result(summary: dict, rows: list[dict], folder: Path) -> None:
    """Write the rows, then the summary, so that a summary always has its rows."""
    with (
        write_then_rename(folder / file_of(summary, "csv")) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / file_of(summary), summary)


def delete(summaries: list[Path]) -> None:
    """Delete results, each with its rows."""
    for file in summaries:
        file.unlink(missing_ok=True)
        file.with_suffix(".csv").unlink(missing_ok=True)


def _parse(stem: str) -> tuple[str, str, int]:
    """Name, split and number of pairs (0 is all) of a results file, from its name without the ending."""
    stem, pairs = (part[1], int(part[2])) if (part := _PART.fullmatch(stem)) else (stem, 0)
    return (*((split[1], split[2]) if (split := _SPLIT.fullmatch(stem)) else (stem, "test")), pairs)
