"""Run cards: the settings, code, machine and duration that produced a file; and peak memory."""

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
    """Hash of a piece of Python and of every module of this project that it imports, directly or not.

    A result is stale once this hash has changed. The hash does not depend on comments, docstrings, white
    space, import statements, names and places of modules, nor on modules that are not imported, such as those
    that only draw or print.

    Parameters
    ----------
    source : valid Python, such as the cells of a notebook, one after the other, or
        ``import tvf_core.evaluation.evaluate``. A module computes its own hash while it is imported, so that
        a process that runs on after an edit records the code that it has loaded.

    Returns
    -------
    16 hexadecimal digits.
    """
    contents = sorted(filter(None, map(_content, closure(source).values())))
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]


def closure(source: str) -> dict[str, str]:
    """Source, by module name, of all modules of this project that a piece of Python imports, directly or not.

    The piece itself is stored under the empty name.
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
    """Full names that a module imports from ``PACKAGES``, and the packages that contain them.

    Some of these are names within a module. For a name that ``tvf_core`` itself offers, the result also has
    the module that defines it.
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
    """Source without comments, docstrings, imports and white space; the same in every version of Python."""
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
    """Reset the peak that :func:`peak_mb` reports; it has an effect on CUDA and on Linux only."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device) -> float:
    """Largest amount of memory in use since :func:`reset_peak`, in units of 2**20 bytes.

    On CUDA it is the memory of tensors, elsewhere that of the whole process; NaN on systems that do not
    report it.
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
    """Settings of a run with versions, device, seconds and the hash of its code (:func:`code_hash`)."""
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
