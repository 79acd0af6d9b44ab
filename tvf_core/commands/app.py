"""The ``tvf`` command itself: its subcommands register here, and wrong input ends with one line."""

from __future__ import annotations

import sys

import tyro
from tyro.extras import SubcommandApp

from ..console import print_any_text

app = SubcommandApp()


# What wrong input raises; anything else that ends with a line is no fault of the input.
WRONG_INPUT = (ValueError, TypeError, OSError, ImportError)


def entry() -> None:
    """The command: :func:`main`, with status 2 for wrong input, as for a wrong option, and 1 otherwise."""
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str) and isinstance(end.__context__, WRONG_INPUT):
            print(end.code, file=sys.stderr)
            raise SystemExit(2) from None
        raise


def main() -> None:
    """Run the command line: a wrong input ends with one line, not a traceback."""
    print_any_text()
    try:
        app.cli(
            prog="tvf",
            description="Diffeomorphic image registration with time-varying velocity fields.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (*WRONG_INPUT, FloatingPointError, MemoryError) as error:
        sys.exit(f"tvf: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "tvf: stopped; a training or an evaluation continues from what it has saved with the same command"
        )
