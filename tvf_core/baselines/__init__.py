"""Methods to compare with, each in its own module."""
