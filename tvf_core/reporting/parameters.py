"""Parameters of a notebook: checked before any work, and what they choose (methods, data, results)."""

from __future__ import annotations

import ast
import math
import os
import shlex
from pathlib import Path

from ..checkpoints import shipped
from ..data import PairData
from ..evaluation.results import read_json, read_results
from ..methods import METHODS, available
from ..paths import RESULTS
from ..training.profiles import Profile
from ..training.train import check_recipe
from . import tables

MARK = "# Parameters"  # first line of the cell that papermill adds


def check(
    names: dict,
    at_least: dict[str, float] | None = None,
    at_most: dict[str, float] | None = None,
    choices: dict[str, tuple[str, ...]] | None = None,
) -> dict:
    """Check the parameters of a notebook and return their values by name.

    The cell tagged ``parameters`` declares them as ``name: type = value  # what it is``. Papermill only warns
    about an unknown name and would then run for days with the default value. This function raises an error
    for an unknown name, for a value of the wrong type, and for one that is not allowed.

    Parameters
    ----------
    names : ``globals()`` of the notebook, in a cell after the parameters.
    at_least, at_most : name -> least and largest number that it may be.
    choices : name -> texts of which it must be one.

    Raises
    ------
    ValueError : a name is unknown, or a value has the wrong type or is not allowed. The message, of one line,
        lists the known names, or says what is allowed or how to write the value.
    """
    declared = names.get("__annotations__", {})
    for source in names.get("In", ()):  # every cell that was run
        if source.lstrip().startswith(MARK):
            injected = [
                target.id
                for node in ast.parse(source).body
                if isinstance(node, ast.Assign)
                for target in node.targets
            ]
            for name in injected:
                if name not in declared and not name.startswith("PAPERMILL_"):
                    raise ValueError(f"unknown parameter {name!r}; known: {', '.join(declared)}")
    values = {name: names[name] for name in declared}
    for name, value in values.items():
        kind = declared[name]
        ok = isinstance(value, kind) or (kind is float and type(value) is int)
        if not ok or (isinstance(value, bool) and kind is not bool):
            hint = "; in YAML, and after -y, write 1.0e-4, not 1e-4" * (kind is float)
            raise ValueError(
                f"parameter {name} must be {kind.__name__}, got {value!r} ({type(value).__name__}{hint})"
            )
    for name, least in (at_least or {}).items():
        if not least <= values[name] < math.inf:  # NaN fails too
            raise ValueError(f"parameter {name} must be at least {least}, got {values[name]}")
    for name, most in (at_most or {}).items():
        if not values[name] <= most:
            raise ValueError(f"parameter {name} must be at most {most}, got {values[name]}")
    for name, known in (choices or {}).items():
        if values[name] not in known:
            raise ValueError(f"parameter {name} must be {' or '.join(known)}, got {values[name]!r}")
    return values


def use_data_root(folder: str) -> None:
    """Take prepared data from a folder from now on; an empty name changes nothing.

    ValueError where there is no such folder.
    """
    if folder:
        place = Path(folder).expanduser().resolve()
        if not place.is_dir():
            raise ValueError(f"parameter data_root: {place} is no folder")
        os.environ["TVF_DATA"] = str(place)


def check_images(
    data: PairData, dim: int, parameter: str = "data", chapter: str = "", least: int = 1
) -> None:
    """ValueError where a page cannot show the pairs of a split.

    Parameters
    ----------
    dim : of the images that the page is for.
    parameter : that names the data set.
    chapter : the page for images of the other dimension, if there is one.
    least : pixels or voxels that an axis must have.
    """
    if data.dim != dim:
        other = f"; {chapter} is the page for {data.dim}D" if chapter else ""
        raise ValueError(
            f"parameter {parameter}: this page is for {dim}D images, those of {data.name} are {data.dim}D"
            + other
        )
    if not len(data):
        raise ValueError(f"parameter {parameter}: the split {data.split!r} of {data.name} has no pairs")
    if min(data.shape) < least:
        size = " x ".join(map(str, data.shape))
        raise ValueError(
            f"parameter {parameter}: this page needs images of at least {least} along each axis, "
            f"those of {data.name} have {size}"
        )


def check_shipped(methods: list[str], data: PairData, parameter: str = "data") -> None:
    """ValueError where the book has no weights of some methods for a data set."""
    if lacking := [m for m in methods if not shipped(m, data.name).is_file()]:
        raise ValueError(
            f"parameter {parameter}: the book has no weights of {', '.join(lacking)} for {data.name}"
        )


def methods(profile: Profile, data: PairData) -> list[str]:
    """Names of the methods that a page runs on its data, in the order of the tables, ``identity`` first.

    They are those that the parameter ``methods`` names or, where it is empty, all for images of this
    dimension. A page that takes the weights of the book leaves out those of all that have none for these
    data, and prints which.

    Raises
    ------
    ValueError : a method is not for images of this dimension; the book has no weights of it for these data,
        and the page is to take those; or the page is to train it, with a recipe that it cannot follow.
    """
    named, known = profile.methods.split(), available(data.dim)
    for name in named:
        if name not in known:
            raise ValueError(
                f"parameter methods: {name} is not for {data.dim}D images; known for them: {', '.join(known)}"
            )
    chosen = [m for m in known if not named or m in ("identity", *named)]
    networks = [m for m in chosen if METHODS[m].build]
    if profile.weights == "train":
        for m in networks:
            check_recipe(m, profile, data)
        return chosen
    lacking = [m for m in networks if not shipped(m, data.name).is_file()]
    if lacking and named:
        can = [m for m in known if not METHODS[m].build or shipped(m, data.name).is_file()]
        raise ValueError(
            f"parameter methods: the book has no weights of {', '.join(lacking)} for {data.name}; "
            f"train them here with the parameter weights 'train', or choose among: {', '.join(can)}"
        )
    if lacking:
        print(
            f"left out, as the book has no weights of them for {data.name}: {', '.join(lacking)} "
            "(the parameter weights 'train' of chapters 3 and 4 trains them)"
        )
    return [m for m in chosen if m not in lacking]


def stand_in(method: str, chosen: list[str], what: str) -> str:
    """The method itself where it is among the chosen ones, else the last of them; empty where there is none.

    Where it is not the method itself, a printed line says what ``what`` shows instead. Among the chosen ones
    may be results under names of their own.
    """
    if method in chosen:
        return method
    other, title = chosen[-1] if chosen else "", METHODS[method].title
    if other:
        shown = METHODS[other].title if other in METHODS else other
        print(f"{title} is not among the methods: {what} shows {shown}")
    else:
        print(f"{title} is not among the methods, nor another that could stand in: without {what}")
    return other


def results_folder(folder: str) -> Path | None:
    """The folder that the parameter ``results`` names; None for an empty name.

    ValueError where there is no such folder.
    """
    if folder and not Path(folder).expanduser().is_dir():
        raise ValueError(f"parameter results: {folder} is no folder")
    return Path(folder).expanduser() if folder else None


def results(
    data: str, split: str, folder: str, needs: tuple[str, ...], parameter: str = "data"
) -> tuple[Path, dict[str, dict]]:
    """Where the results on a data set lie, and their summaries by name, for a page that shows them.

    Parameters
    ----------
    folder : of results; empty is ``book/results`` if it has any on these data, else ``runs/results``.
    needs : metrics that the page shows.

    Raises
    ------
    ValueError : there is no such folder, no result on the split, or a result without one of the metrics.
    """
    place = results_folder(folder) or tables.results_folder(data, split)
    found = read_results(place, data, split)
    if not found:
        raise ValueError(
            f"parameter {parameter}: no results on {data} in {place} for the split {split!r}; "
            f"make them with: tvf evaluate --method METHOD --data {shlex.quote(data)} --split {split}"
        )
    for name, summary in found.items():
        if lacking := [metric for metric in needs if metric not in summary["summary"]]:
            raise ValueError(
                f"parameter {parameter}: this page shows {', '.join(needs)}, "
                f"and the results of {name} on {data} have no {', '.join(lacking)}"
            )
    return place, found


def measured(file: str, parameter: str, operation: str = "") -> dict:
    """What ``tvf bench`` wrote into a file of ``book/results/bench``.

    ValueError where there is no such file, where it is something else, or has no rows of ``operation``.
    """
    folder = RESULTS / "bench"
    if not (folder / file).is_file():
        known = ", ".join(sorted(path.name for path in folder.glob("*.json")))
        raise ValueError(f"parameter {parameter}: no file {file!r} in {folder}; there are: {known}")
    content = read_json(folder / file)
    if not isinstance(content, dict) or not {"rows", "rates", "card", "device"} <= content.keys():
        raise ValueError(f"parameter {parameter}: {folder / file} is not what tvf bench --out writes")
    if operation and operation not in {row["op"] for row in content["rows"]}:
        raise ValueError(f"parameter {parameter}: {file} has no measurement of {operation}")
    return content
