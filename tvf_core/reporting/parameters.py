"""Parameters of a notebook: checks that those given by papermill are known and of the declared type."""

from __future__ import annotations

import ast

MARK = "# Parameters"  # first line of the cell that papermill adds


def check(names: dict) -> dict:
    """Check the parameters of a notebook and return their values by name.

    The cell tagged ``parameters`` declares them as ``name: type = value  # what it is``. Papermill only warns
    about an unknown name and would then run for days with the default value. This function raises an error
    for an unknown name, and for a value of the wrong type.

    Parameters
    ----------
    names : ``globals()`` of the notebook, in a cell after the parameters.

    Raises
    ------
    ValueError : a name is unknown, or a value has the wrong type. The message lists the known names, or says
        how to write the value.
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
