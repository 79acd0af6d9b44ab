"""Build the book: run every notebook afresh in a copy of the project, then make the pages.

The work tree is not touched (except by ``--store``): everything happens in ``_build/stage``, and the pages
replace ``_build/html`` only when they are complete. Run it with ``make book``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
STAGE = BUILD / "stage"
HTML = BUILD / "html"
LOG = BUILD / "book.log"
SKIPPED_FOLDERS = {"_build", "runs", "__pycache__"}


def project_files() -> list[Path]:
    """Files of the project relative to ROOT: those that git tracks or would track, else all not hidden."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        listing = b""
    names = os.fsdecode(listing).split("\0")
    if "_config.yml" in names:
        return [Path(name) for name in names if name and (ROOT / name).is_file()]
    files = []
    for folder, subfolders, names in os.walk(ROOT):
        here = Path(folder)
        subfolders[:] = [
            s
            for s in subfolders
            if not s.startswith(".") and s not in SKIPPED_FOLDERS and not (here / s / "pyvenv.cfg").exists()
        ]
        files += [(here / name).relative_to(ROOT) for name in names if not name.startswith(".")]
    return files


def stage() -> None:
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this interpreter, not one of the home folder
    shutil.rmtree(STAGE, ignore_errors=True)
    for path in project_files():
        (STAGE / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, STAGE / path)
    os.environ["PYTHONPATH"] = str(STAGE)
    os.environ["TVF_RUNS"] = str(STAGE / "runs")  # an empty folder: nothing computed earlier is found
    os.environ.setdefault("TVF_DATA", str(ROOT / "data"))  # prepared data sets stay where they are
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # silences a debugger's remark on stderr
    # The caller's settings of these two would change the figures or the warnings of a notebook.
    for name in ("MPLBACKEND", "PYTHONWARNINGS"):
        os.environ.pop(name, None)


def execute(only: str) -> list[Path]:
    """Run the staged notebooks in order, each in place; stop at the first error."""
    import cards  # imported here: it imports torch, for which other uses of this file need not wait
    import nbformat
    import papermill
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    notebooks = sorted((STAGE / "notebooks").glob(f"{only}*.ipynb"))
    if not notebooks:
        sys.exit(f"Error: no notebook matches notebooks/{only}*.ipynb")
    print(f"Executing {len(notebooks)} notebook{'s' * (len(notebooks) > 1)}", flush=True)
    for path in notebooks:
        started = time.perf_counter()
        problem = None
        try:
            papermill.execute_notebook(
                str(path),
                str(path),
                cwd=str(path.parent),
                kernel_name="python3",
                progress_bar=sys.stderr.isatty(),
                log_output=False,
                extra_arguments=["--log-level=50"],  # silences the kernel's remarks about transport
            )
        except papermill.PapermillExecutionError as error:
            problem = f"In [{error.exec_count}]: {error.ename}: {error.evalue}".splitlines()[0]
        except (CellControlSignal, DeadKernelError) as error:
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        print(
            f"  {path.stem:<28}{time.perf_counter() - started:8.1f} s{'  FAILED' * bool(problem)}", flush=True
        )
        if problem:
            sys.exit(
                f"Error in notebooks/{path.name}, {problem}\n"
                f"The notebook up to the error, with the traceback: {path}"
            )
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["card"] = cards.execution_card(notebook, time.perf_counter() - started)
        nbformat.write(notebook, path)
    return notebooks


def store(notebooks: list[Path]) -> None:
    """Copy executed notebooks back to the work tree, without the cells' times, which differ at every run."""
    import nbformat

    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        for holder in [notebook, *notebook.cells]:
            for key in ("papermill", "execution"):
                holder.metadata.pop(key, None)
        nbformat.write(notebook, ROOT / "notebooks" / path.name)
    print(f"Stored the outputs of {len(notebooks)} notebooks in notebooks/")


def fold_cards() -> None:
    """Add a run card below every table and figure of the staged notebooks; the work tree stays as it is."""
    import cards
    import nbformat

    for path in sorted((STAGE / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        stale = cards.fold(notebook, path.relative_to(STAGE).as_posix(), STAGE / "book" / "results")
        nbformat.write(notebook, path)
        if stale:
            print(
                f"  {path.stem}: {stale} table{'s' * (stale > 1)} or figure{'s' * (stale > 1)} made by code "
                "that has changed since, marked as stale"
            )


def make_pages() -> None:
    """Run Jupyter Book on the stage, every warning an error; replace HTML only if all went well."""
    print("Building the pages", flush=True)
    fold_cards()
    output = BUILD / "pages"
    shutil.rmtree(output, ignore_errors=True)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(STAGE),
        "-n",
        "-W",
        "--keep-going",
        "--path-output",
        str(output),
    ]
    with LOG.open("w", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=STAGE, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode
    pages = output / "_build" / "html"
    if code or not (pages / "index.html").exists():
        lines = LOG.read_text("utf-8", "replace").splitlines()
        remarks = [line for line in lines if "WARNING" in line or "ERROR" in line or "Error" in line]
        print(*(remarks or lines)[-20:], sep="\n", file=sys.stderr)
        sys.exit(
            f"Error: the pages were not built; the whole log: {LOG}\nAn earlier {HTML}, if any, is as it was."
        )
    old = BUILD / "html.old"
    shutil.rmtree(old, ignore_errors=True)
    if HTML.exists():
        HTML.rename(old)
    pages.rename(HTML)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)


def recomputed() -> list[str]:
    """One line per result file that this build's notebooks have written."""
    lines = []
    for path in sorted((STAGE / "runs" / "results").glob("*/*.json")):
        result = json.loads(path.read_text("utf-8"))
        metrics = [
            f"{name} {value['mean']:.3g} +- {value['std']:.2g}"
            for name, value in result.get("summary", {}).items()
            if "/" not in name
        ]  # no "dice/<label>"
        lines.append(
            f"  {result['dataset']}/{result['method']}: {result['n_pairs']} pairs; {', '.join(metrics[:4])}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the notebooks and build the book into _build/html.")
    parser.add_argument("--fast", action="store_true", help="use the stored outputs; execute nothing")
    parser.add_argument(
        "--only", default="", metavar="NN", help="execute only the notebooks whose name starts so"
    )
    parser.add_argument(
        "--store", action="store_true", help="store the new outputs in notebooks/; build no pages"
    )
    options = parser.parse_args()
    if options.fast and (options.only or options.store):
        parser.error("--fast executes nothing; it goes with neither --only nor --store")

    started = time.perf_counter()
    stage()
    executed = [] if options.fast else execute(options.only)
    if options.store:
        store(executed)
    else:
        make_pages()
    lines = recomputed()
    print("Recomputed in this build:" if lines else "No result file was recomputed in this build.")
    print(*lines, sep="\n", end="\n" if lines else "")
    if not options.store:
        print(f"The book: {(HTML / 'index.html').as_uri()}\nor run `make serve`")
    print(f"Total time: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
