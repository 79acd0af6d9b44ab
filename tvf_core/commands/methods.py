"""``tvf methods``: what there is, and where every number of it is from."""

from __future__ import annotations

from ..checks import one_of
from ..methods import METHODS, SIZES
from ..reporting import tables
from .app import app


@app.command
def methods(size: str | None = None, sources: bool = False) -> None:
    """List the methods: dimensions, parameters, field they predict, inverse, losses, whose code, source.

    Args:
        size: of the networks whose parameters are counted, where these come in several sizes: demo (the
            default), tiny, small, base, large or huge.
        sources: list instead every number of their training, with where it is from.
    """
    if sources and size is not None:
        raise ValueError("size: the list of sources counts no parameters; leave out --size or --sources")
    size = one_of(size or "demo", SIZES, "network size")
    print(tables.plain(*(tables.sources() if sources else tables.methods(size))))
    if not sources:
        several = [name for name, entry in METHODS.items() if entry.sizes]
        print(f"\nparameters: size {size} of {', '.join(several)}; the other networks come in one size")
