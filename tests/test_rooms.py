"""Which part of the package may import which, read from the import statements."""

import ast
import importlib.util

import pytest

from tvf_core.paths import ROOT

# From the bottom to the top. A module may import from its own floor and from those below it.
FLOORS = (
    (
        "checks",
        "paths",
        "labels",
        "fields",
        "released",
        "integrate",
        "registration",
        "card",
        "sources",
        "console",
    ),
    ("networks", "metrics"),
    ("losses",),
    ("pairwise", "data"),
    ("methods", "model", "checkpoints"),
    ("training", "evaluation", "scans"),
    ("reporting", "bench"),
    ("commands", "__main__"),
)
# Rooms of one floor that know nothing of each other.
APART = {
    "networks",
    "metrics",
    "pairwise",
    "data",
    "training",
    "evaluation",
    "scans",
    "reporting",
    "bench",
}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def module_files():
    """Full name -> file of every module of the package."""
    found = {}
    for file in sorted((ROOT / "tvf_core").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


FILES = module_files()


def imports(name):
    """Full names of the modules of the package that a module imports, wherever in it the statement stands."""
    file = FILES[name]
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else node.module
            candidates = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names
            ]
        else:
            continue
        yield from (found for found in candidates if found in FILES)


GRAPH = {name: set(imports(name)) - {name} for name in FILES}


def room(name):
    """First part of a module's name below ``tvf_core``; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def test_every_module_has_a_floor():
    assert {room(name) for name in FILES} - {""} == set(FLOOR)


def test_no_arrow_points_upwards_and_rooms_of_one_floor_stay_apart():
    arrows = {(a, b) for a, targets in GRAPH.items() for b in targets if room(a) != room(b) and room(b)}
    assert len(arrows) > 100  # the test sees the imports
    upwards = {(a, b) for a, b in arrows if FLOOR[room(b)] > FLOOR[room(a)]}
    sideways = {(a, b) for a, b in arrows if FLOOR[room(b)] == FLOOR[room(a)] and room(a) in APART}
    assert not upwards | sideways


def test_there_is_no_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in done:
            return
        path.append(name)
        for target in sorted(GRAPH[name]):
            # a room's front door imports its own modules; they may not use that door
            visit(target)
        path.pop()
        done.add(name)

    for name in GRAPH:
        visit(name)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_module_says_what_it_is_for(name):
    assert ast.get_docstring(ast.parse(FILES[name].read_text()))


def functions():
    """(name, lines) of every function of the project's Python files."""
    for folder in ("tvf_core", "data_download", "book"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield f"{file.relative_to(ROOT)}: {node.name}", node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_a_page():
    assert not {name: lines for name, lines in functions() if lines > 85}
