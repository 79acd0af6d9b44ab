"""The ``tvf`` command, a module for each family of its subcommands."""

from . import methods, training, evaluation, reporting, weights, scans, bench, shipped  # isort: skip  (the order of the help)
from .app import app, entry, main

__all__ = [
    "app",
    "bench",
    "entry",
    "evaluation",
    "main",
    "methods",
    "reporting",
    "scans",
    "shipped",
    "training",
    "weights",
]
