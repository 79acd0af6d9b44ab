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

from . import __version__
from .paths import ROOT

PACKAGES = ("tvf_core", "data_download")


def code_hash(source: str) -> str:
    """Hash of a piece of Python and of every module of this project that it imports, and that these import.

    Results of code with another hash are stale. Comments, docstrings and empty lines do not count, nor does a module that
    is not imported, as those that only draw or print.

    Parameters
    ----------
    source : code that parses: the cells of a notebook, one after the other, or ``import tvf_core.evaluate``. A module takes
        its own hash while it is imported: a process that outlives an edit then names the code that it has loaded.
    """
    digest = hashlib.sha256()
    for name, text in sorted(closure(source).items()):
        digest.update(f"{name}\n{_bare(text)}\n".encode())
    return digest.hexdigest()[:16]


def closure(source: str) -> dict[str, str]:
    """Sources of all modules of this project that a piece of Python imports, directly or not, by name; itself under ``""``."""
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
    """Full names of what a module imports from ``PACKAGES``, with the packages that hold it; some are no modules but names in one."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    found = {name for name in found if name.split(".")[0] in PACKAGES}
    return found | {name.rsplit(".", k)[0] for name in found for k in range(1, name.count(".") + 1)}


@functools.cache
def _bare(source: str) -> str:
    """Source without comments, docstrings and empty lines, the same under every version of Python."""
    cut, before = [], tokenize.NEWLINE
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type != tokenize.NL]
    for token, following in zip(tokens, [*tokens[1:], None]):
        if token.type == tokenize.COMMENT:
            cut.append((token.start, token.end))
            continue
        alone = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type == tokenize.STRING and alone and following.type in (tokenize.NEWLINE, tokenize.COMMENT, tokenize.ENDMARKER):
            cut.append((token.start, token.end))
        before = token.type
    lines = source.splitlines()
    for (first, begin), (last, end) in reversed(cut):
        lines[first - 1 : last] = [lines[first - 1][:begin] + lines[last - 1][end:]]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def reset_peak(device) -> None:
    """Let the memory that :func:`peak_mb` tells begin here, where the system can do that (a GPU, and Linux)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device) -> float:
    """Most memory in use, in megabytes: a GPU's by tensors, else the whole process's; NaN on a system that does not tell."""
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
