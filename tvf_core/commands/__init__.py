"""The ``tvf`` command, a module for each family of its subcommands."""

from . import methods, training, evaluation, reporting, weights, bench, shipped  # isort: skip  (the order of the help)
from .app import app, main

__all__ = ["app", "bench", "evaluation", "main", "methods", "reporting", "shipped", "training", "weights"]
