"""``tvf methods``: what there is, and where every number of it is from."""

from __future__ import annotations

from ..checks import one_of
from ..methods import SIZES
from ..reporting import tables
from .app import app


@app.command
def methods(size: str = "demo", sources: bool = False) -> None:
    """List the methods: dimensions, parameters, field they predict, inverse, losses, whose code, source.

    Args:
        size: of the networks whose parameters are counted: demo, tiny, small, base, large or huge.
        sources: list instead every number of their training, with where it is from.
    """
    one_of(size, SIZES, "network size")
    print(tables.plain(*(tables.sources() if sources else tables.methods(size))))
