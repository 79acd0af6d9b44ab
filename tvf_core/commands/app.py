"""The ``tvf`` command itself: its subcommands register here, and wrong input ends with one line."""

from __future__ import annotations

import sys

import tyro
from tyro.extras import SubcommandApp

from ..console import print_any_text

app = SubcommandApp()


def main() -> None:
    """Entry point: a wrong input ends with one line, not a traceback."""
    print_any_text()
    try:
        app.cli(
            prog="tvf",
            description="Diffeomorphic image registration with time-varying velocity fields.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        sys.exit(f"tvf: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "tvf: stopped; a training or an evaluation continues from what it has saved with the same command"
        )
