"""Google Colab: install missing packages, keep the installed ones, and store runs on Google Drive.

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

# Packages that stay at Colab's versions, which fit its drivers, its compiled packages and its notebooks.
KEPT = ("torch", "numpy", "matplotlib")
DRIVE = "/content/drive"


def missing(project: Path) -> list[str]:
    """Requirements in the pyproject.toml at ``project`` of which no version is installed."""
    requirements = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
    return [
        requirement for requirement in requirements if _version(re.match(r"[\w.-]+", requirement)[0]) is None
    ]


def install_missing() -> list[str]:
    """Install the missing requirements and return them; packages in ``KEPT`` keep their versions.

    A requirement that is installed in an untested version is also left as it is. RuntimeError if pip fails.
    """
    wanted = missing(Path(__file__).parents[2] / "pyproject.toml")
    if not wanted:
        return []
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as constraints:
        constraints.write("".join(f"{name}=={version}\n" for name in KEPT if (version := _version(name))))
        constraints.flush()
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints.name, *wanted],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    if done.returncode:
        lines = done.stderr.splitlines()
        lines = [line for line in lines if line.startswith("ERROR")] or lines
        raise RuntimeError(
            f"pip could not install {', '.join(wanted)}: {lines[-1] if lines else 'no reason given'}"
        )
    return wanted


def keep_on_drive(folder: str = "MyDrive/tvf") -> Path:
    """Mount the user's Google Drive and store every run (states, weights, results) in a folder there.

    Colab asks the user for access. After a disconnect, the same cells continue from the last state. The
    folder is returned.
    """
    from google.colab import drive  # exists on Colab only

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
