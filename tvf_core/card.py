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

    A result is stale once this hash has changed. The hash depends on what the code does and on the names that
    it imports. It does not depend on comments, docstrings, line breaks, the order of imports, the folder of a
    module, nor on modules that are not imported, such as those that only draw or print.

    Parameters
    ----------
    source : valid Python, such as the cells of a notebook, one after the other, or
        ``import tvf_core.evaluation.evaluate``. A module computes its own hash while it is imported, so that
        a process that runs on after an edit records the code that it has loaded.

    Returns
    -------
    16 hexadecimal digits.
    """
    contents = sorted(content(text, package) for text, package in closure(source).values())
    return hashlib.sha256("\n".join(filter(None, contents)).encode()).hexdigest()[:16]


def closure(source: str) -> dict[str, tuple[str, str]]:
    """Source and package, by name, of all modules of this project that a piece of Python imports at all.

    The piece itself is stored under the empty name.
    """
    known, queue = {"": (source, "")}, [(source, "")]
    while queue:
        for name in _imports(*queue.pop()):
            file = _file(name)
            if name not in known and file.is_file():
                package = name if file.name == "__init__.py" else name.rpartition(".")[0]
                known[name] = file.read_text("utf-8"), package
                queue.append(known[name])
    return known


def content(source: str, package: str = "") -> str:
    """What a module does, as text: its imported names, and its code without comments, docstrings and layout.

    The text is the same in every version of Python. Of an imported module it has the name without the
    folders, of a name within a module also that module's name. ``package`` is that of relative imports.
    """
    names = set()
    for base, name, local in _imported(source, package):
        is_module = not base or _file(f"{base}.{name}").is_file()
        names.add(f"{'' if is_module else base.rpartition('.')[2]}.{name.rpartition('.')[2]} {local}")
    parts, statement, imports = sorted(names), [], False
    for kind, text in _tokens(source):
        if kind in ("INDENT", "DEDENT"):
            parts.append(kind)
        elif kind == "end":
            docstring = len(statement) == 1 and statement[0].endswith(("'", '"'))
            if statement and not imports and not docstring:
                parts.append(" ".join(statement))
            statement = []
        else:
            imports = text in ("import", "from") if not statement else imports
            statement.append(text)
    return "\n".join(parts)


def _tokens(source: str):
    """(kind, text) of the tokens of a source without comments; ``end`` ends a statement.

    An f-string is one token, as it was before Python 3.12.
    """
    lines, begin, depth = source.splitlines(keepends=True), None, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        depth += (kind == "FSTRING_START") - (kind == "FSTRING_END")
        if begin is None and depth:
            begin = token.start
        if begin is not None:
            if not depth:
                rows = lines[begin[0] - 1 : token.end[0]]
                rows[-1] = rows[-1][: token.end[1]]
                yield "STRING", "".join([rows[0][begin[1] :], *rows[1:]])
                begin = None
        elif kind in ("NEWLINE", "ENDMARKER") or token.string == ";":
            yield "end", ""
        elif kind not in ("COMMENT", "NL"):
            yield kind, token.string


def _file(name: str) -> Path:
    """Where the source of the module of this full name lies, if the project has such a module."""
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(source: str, package: str) -> set[str]:
    """Full names that a module imports from ``PACKAGES``, and the packages that contain them.

    Some of these are names within a module. For a name that ``tvf_core`` itself offers, the result also has
    the module that defines it.
    """
    imported = _imported(source, package)
    found = {base for base, _, _ in imported} | {f"{base}.{name}".strip(".") for base, name, _ in imported}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{__package__}.{node.attr}"} if node.value.id == __package__ else set()
    offered = (OFFERED.get(name.removeprefix(f"{__package__}.")) for name in found)
    found |= {module for module, _ in filter(None, offered)}
    found = {name for name in found if name.split(".")[0] in PACKAGES}
    return found | {name.rsplit(".", k)[0] for name in found for k in range(1, name.count(".") + 1)}


@functools.cache
def _imported(source: str, package: str) -> list[tuple[str, str, str]]:
    """(module, name, local name) of everything that a module imports; no module for ``import name``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [("", alias.name, alias.asname or "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else node.module
            found += [(base, alias.name, alias.asname or "") for alias in node.names]
    return found


def reset_peak(device) -> None:
    """Reset the peak that :func:`peak_mb` reports; it has an effect on CUDA and on Linux only."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", "utf-8")


def peak_mb(device) -> float:
    """Largest amount of memory in use since :func:`reset_peak`, in units of 2**20 bytes.

    On CUDA it is the memory of tensors, elsewhere that of the whole process; NaN on systems that do not
    report it.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, IndexError):
        return (
            int(Path("/proc/self/status").read_text("utf-8", "replace").split("VmHWM:")[1].split()[0]) / 1024
        )
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
