"""On Google Colab: install what it lacks, leave alone what it has, keep runs on Google Drive.

The first code cell of every notebook brings the repository and calls :func:`install_missing`. This module
imports nothing that Colab does not have.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

# Colab's own versions fit its drivers, its compiled packages and its notebooks.
KEPT = ("torch", "numpy", "matplotlib")
DRIVE = "/content/drive"


def missing(project: Path) -> list[str]:
    """Requirements of the package, as in its pyproject.toml, of which no version is installed."""
    requirements = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
    return [
        requirement for requirement in requirements if _version(re.match(r"[\w.-]+", requirement)[0]) is None
    ]


def install_missing() -> list[str]:
    """Install what is missing, and give it; packages in ``KEPT`` stay at the version that they have.

    What is there in a version that is not among the tested ones is left, too. RuntimeError: pip cannot do it.
    """
    wanted = missing(Path(__file__).parents[2] / "pyproject.toml")
    if not wanted:
        return []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("".join(f"{name}=={version}\n" for name in KEPT if (version := _version(name))))
        constraints.flush()
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints.name, *wanted],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        raise RuntimeError(
            f"pip could not install {', '.join(wanted)}: {lines[-1] if lines else 'no reason given'}"
        )
    return wanted


def keep_on_drive(folder: str = "MyDrive/tvf") -> Path:
    """Ask for the user's Google Drive and let every run (states, weights, results) go into a folder there.

    After a disconnect, the same cells continue from the last state. Give the folder.
    """
    from google.colab import drive  # there on Colab only

    drive.mount(DRIVE)
    place = Path(DRIVE) / folder / "runs"
    place.mkdir(parents=True, exist_ok=True)
    os.environ["TVF_RUNS"] = str(place)
    return place


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
