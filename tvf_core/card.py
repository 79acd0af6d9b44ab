"""Run cards: what produced a file, with which code, on what machine, in how long."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import io
import math
import platform
import sys
import tokenize
from pathlib import Path

import torch

from . import OFFERED, __version__
from .paths import ROOT

PACKAGES = ("tvf_core", "data_download")


def code_hash(source: str) -> str:
    """Hash of what a piece of Python does: of its own code, and of every module of this project that it imports.

    A result ages when any of that code changes, directly imported or not. It does not age with comments, docstrings,
    line breaks and spaces, with import statements, with the name or the place of a module, nor with a module that is
    not imported, such as those that only draw or print.

    Parameters
    ----------
    source : code that parses: the cells of a notebook, one after the other, or ``import tvf_core.evaluation.evaluate``.
        A module takes its own hash while it is imported: a process that outlives an edit then names the code that it
        has loaded.
    """
    contents = sorted(filter(None, map(_content, closure(source).values())))
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]


def closure(source: str) -> dict[str, str]:
    """Sources, by module name, of all modules of this project that a piece of Python imports, directly or not.

    The piece itself stands under the empty name.
    """
    known, queue = {"": source}, [(source, "")]
    while queue:
        for name in _imports(*queue.pop()):
            file = ROOT.joinpath(*name.split("."))
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            if name not in known and file.is_file():
                known[name] = file.read_text("utf-8")
                queue.append((known[name], name if file.name == "__init__.py" else name.rpartition(".")[0]))
    return known


@functools.cache
def _imports(source: str, package: str) -> set[str]:
    """Full names of what a module imports from ``PACKAGES``, with the packages that hold it.

    Some of them are not modules but names within one. A name that the top of ``tvf_core`` offers stands for its module.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else node.module
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == __package__
        ):
            found.add(f"{__package__}.{node.attr}")  # tvf_core.load_data(...)
    found |= {
        module for name in found if (module := OFFERED.get(name.removeprefix(f"{__package__}."), ("",))[0])
    }
    found = {name for name in found if name.split(".")[0] in PACKAGES}
    return found | {name.rsplit(".", k)[0] for name in found for k in range(1, name.count(".") + 1)}


@functools.cache
def _content(source: str) -> str:
    """Source without comments, docstrings, import statements and blanks; the same under every version of Python."""
    cut, start, tokens = [], None, list(tokenize.generate_tokens(io.StringIO(source).readline))
    begins = True  # whether the next token begins a statement
    for token, following in zip(tokens, [*tokens[1:], tokens[-1]]):
        if token.type == tokenize.COMMENT:
            cut.append((token.start, token.end))
        elif token.type == tokenize.NEWLINE:
            if start is not None:
                cut.append((start, token.start))
            begins, start = True, None
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            if begins and token.string in ("import", "from"):
                start = token.start
            ends = following.type in (tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER)
            if begins and token.type == tokenize.STRING and ends:
                cut.append((token.start, token.end))
            begins = False
    lines = source.splitlines()
    for (first, begin), (last, end) in sorted(cut, reverse=True):
        lines[first - 1 : last] = [lines[first - 1][:begin] + lines[last - 1][end:]]
    return "".join("".join(lines).split())


def reset_peak(device) -> None:
    """Start a new measurement for :func:`peak_mb`, on a GPU and on Linux; other systems cannot."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device) -> float:
    """Largest amount of memory in use since :func:`reset_peak`, in megabytes.

    On a GPU that is the memory of tensors, elsewhere that of the whole process; NaN on a system that does not tell.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    with contextlib.suppress(ImportError):
        import resource  # not on Windows

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return math.nan


def run_card(settings: dict, seconds: float, device, code: str) -> dict:
    """Settings of a run together with versions, device, time and the hash of the code that did it (:func:`code_hash`)."""
    return {
        "settings": settings,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tvf_core": __version__,
        "code": code,
    }
