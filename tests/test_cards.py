"""Run cards below tables and figures: their content, and when they are marked stale."""

import importlib.util
import json
import re
import warnings

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tvf_core.card import code_hash
from tvf_core.paths import RESULTS, ROOT

spec = importlib.util.spec_from_file_location("cards", ROOT / "book" / "cards.py")
cards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cards)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def shows(cell):
    return cell.cell_type == "code" and any(set(cards.SHOWN) & set(o.get("data", ())) for o in cell.outputs)


def page(**metadata):
    figure = new_code_cell(
        "from tvf_core import figures",
        outputs=[new_output("display_data", {"image/png": "aGk=", "text/plain": "a figure"})],
    )
    figure.metadata.update(metadata)
    text = new_code_cell("print(1)", outputs=[new_output("stream", text="1\n")])
    parameters = new_code_cell("n: int = 3  # how many <of them>", metadata={"tags": ["parameters"]})
    return new_notebook(cells=[new_markdown_cell("# A page"), parameters, figure, text])


def card_of(cell):
    [html] = [o["data"]["text/html"] for o in cell.outputs if "text/html" in o.get("data", ())]
    return html


def test_a_computed_output_has_the_card_of_its_page():
    notebook = page()
    notebook.metadata["card"] = cards.execution_card(notebook, 12.3)
    assert cards.fold(notebook, "notebooks/01_x.ipynb", RESULTS) == 0
    html = card_of(notebook.cells[2])
    assert html.startswith('<details class="run-card">') and "stale" not in html
    assert (
        "how many &lt;of them&gt;" in html and "12 s" in html and '"../_sources/notebooks/01_x.ipynb"' in html
    )
    assert code_hash("n: int = 3\nfrom tvf_core import figures\nprint(1)") in html
    # These cells show neither a table nor a figure.
    assert len(notebook.cells[1].outputs) == 0 and len(notebook.cells[3].outputs) == 1


def test_a_page_is_stale_when_its_code_has_changed_or_has_no_card():
    notebook = page()
    assert cards.fold(page(), "notebooks/01_x.ipynb", RESULTS) == 1
    notebook.metadata["card"] = cards.execution_card(notebook, 1)
    notebook.cells[3].source = "%matplotlib inline\nprint(2)"
    assert cards.fold(notebook, "notebooks/01_x.ipynb", RESULTS) == 1
    assert 'Run card <strong class="stale">stale</strong>' in card_of(notebook.cells[2])


@pytest.fixture
def results(tmp_path):
    """A results folder with a summary by the present code, one by other code, and a benchmark."""
    folder = tmp_path / "book" / "results"
    machine = {
        "device": "cpu",
        "threads": 2,
        "python": "3.11.7",
        "torch": "2.13",
        "tvf_core": "0.1.0",
        "seconds": 7.0,
    }

    def write(name, module, code=None, settings=None):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        card = machine | {"code": code or code_hash(f"import {module}"), "settings": settings or {}}
        data, method = name.removesuffix(".json").split("/")
        (folder / name).write_text(
            json.dumps(
                {"dataset": data, "method": method, "n_pairs": 4, "training": {"seed": 5}, "card": card}
            )
        )

    write(
        "toy/tm.json",
        "tvf_core.evaluation.evaluate",
        settings={"origin": "d4ta", "pairs": "9a125", "weights": "3e1947"},
    )
    (folder / "toy" / "tm.csv").write_text("pair\n")
    (tmp_path / "book" / "weights" / "toy").mkdir(parents=True)
    (tmp_path / "book" / "weights" / "toy" / "tm.json").write_text("{}")
    write("old/tm.json", "tvf_core.evaluation.evaluate", "0123456789abcdef")
    write("bench/cpu.json", "tvf_core.bench")
    return folder


def test_an_output_of_stored_results_lists_the_files(results):
    notebook = page(results=["toy", "bench/cpu.json"])
    assert cards.fold(notebook, "notebooks/01_x.ipynb", results) == 0
    html = card_of(notebook.cells[2])
    assert re.findall(r'href="(.*?)"', html) == [
        f"../book/{x}"
        for x in (
            "claims.yml",
            "results/toy/tm.json",
            "results/toy/tm.csv",
            "weights/toy/tm.json",
            "results/bench/cpu.json",
        )
    ]
    for text in (
        "d4ta",
        "9a125",
        "3e1947",
        "<td>5</td>",
        "<td>4</td>",
        "PyTorch 2.13",
        code_hash("import tvf_core.evaluation.evaluate"),
        code_hash("import tvf_core.bench"),
    ):
        assert text in html
    assert html.count("cpu, 2 threads") == 1 and "stale" not in html


def test_one_stale_file_makes_the_output_stale(results):
    notebook = page(results=["toy", "old"])
    assert cards.fold(notebook, "notebooks/01_x.ipynb", results) == 1
    html = card_of(notebook.cells[2])
    assert html.count("stale") == 4  # in the summary and at the file, class and word
    assert "0123456789abcdef</code> <strong" in html


@pytest.mark.parametrize("name", ["nothing", "toy/vm-2.json"])
def test_results_that_are_not_there_stop_the_build(name, results):
    with pytest.raises(FileNotFoundError, match=name):
        cards.fold(page(results=[name]), "notebooks/01_x.ipynb", results)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pages_name_the_results_that_they_show_and_keep_the_card_of_their_execution(path):
    notebook = nbformat.read(path, as_version=4)
    assert {"settings", "seconds", "device", "threads", "python", "torch", "tvf_core", "code"} <= set(
        notebook.metadata["card"]
    )
    for cell in filter(shows, notebook.cells):
        from_files = path.stem in ("05_table1", "06_table2", "07_claims") or "RESULTS" in cell.source
        from_files = from_files and "claims.rules()" not in cell.source  # these stand in the ledger
        assert not from_files or cell.metadata.get("results"), cell.source
        for name in cell.metadata.get("results", ()):
            assert (RESULTS / name).exists()


def test_what_other_code_has_made_is_named_with_the_command_that_renews_it(results):
    root = results.parents[1]
    (root / "notebooks").mkdir()
    for name, change in (("01_fresh", False), ("02_old", True), ("03_unknown", None)):
        notebook = page()
        if change is not None:
            notebook.metadata["card"] = cards.execution_card(notebook, 1)
        if change:
            notebook.cells[3].source = "print(2)"
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    assert cards.stale(root) == {
        "notebooks/02_old.ipynb": "make notebooks ARGS='--only 02'",
        "notebooks/03_unknown.ipynb": "make notebooks ARGS='--only 03'",
        "book/results/old/tm.json": "make results",
    }


def test_no_stored_number_is_older_than_the_code_that_makes_it():
    old = cards.stale(ROOT)
    # Times belong to a machine, which has to be quiet for most of an hour to measure them. Where they are
    # older than the code, their page says so, and here they are named without a failure.
    times = {name: old.pop(name) for name in list(old) if name.startswith("book/results/bench/")}
    for name, command in times.items():
        warnings.warn(
            f"{name} is older than the code that it measures; renew it with: {command}", stacklevel=1
        )
    assert not old, "\n".join(["stale, with the command that renews it:", *map(": ".join, old.items())])
