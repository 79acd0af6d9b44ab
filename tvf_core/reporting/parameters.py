"""Parameters of a notebook: what papermill put in must be known and of the declared type."""

from __future__ import annotations

import ast

MARK = "# Parameters"  # with which papermill begins the cell that it adds


def check(names: dict) -> dict:
    """Values of the parameters of the notebook whose ``globals()`` these are, by name.

    The cell tagged ``parameters`` declares them, ``name: type = value  # what it is``. Papermill, told another name, would only
    warn, and run for days with the value that was meant to change; here that is an error, and so is a value of another type.

    Parameters
    ----------
    names : ``globals()`` of the notebook, in a cell after the parameters.

    Raises
    ------
    ValueError : an unknown name, or a value of the wrong type; says what is known, or how to write it.
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
    return values
