"""Profiles: named sets of training parameters, the same YAML files that ``papermill -f`` reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from .paths import ROOT

FOLDER = ROOT / "notebooks" / "profiles"


@dataclass(frozen=True)
class Profile:
    """How much of what is run; the keys of a profile file and the parameters of notebooks 03 and 04."""

    data: str
    """data set, see `tvf_core.data.DATASETS`"""
    size: str = "demo"
    """network size, see `tvf_core.methods.SIZES`"""
    image_size: int = 0
    """edge of the images in pixels; 0 is the data set's own size"""
    steps: int = 1000
    """optimiser steps of a full training"""
    batch: int = 1
    """pairs per step"""
    lr: float = 1e-3
    """initial learning rate (Adam with AMSGrad, polynomial decay 0.9)"""
    live_steps: int = 40
    """steps of the notebook's own short training; 0 skips it"""
    test_pairs: int = 0
    """pairs to evaluate; 0 is all of the split"""
    split: str = "test"
    """split that is evaluated in the end (test labels of OASIS are not public: val)"""
    methods: str = ""
    """methods that the notebook runs, separated by spaces; empty is all"""
    weights: str = "shipped"
    """`shipped`, or `train` to train every method for `steps` steps first"""


def check(values: dict, where: str = "profile") -> Profile:
    """A Profile from plain values; ValueError names an unknown key or a value of the wrong type."""
    known = {f.name: {"str": str, "int": int, "float": float}[f.type] for f in fields(Profile)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where}: unknown parameter {key!r}; known: {', '.join(known)}")
        ok = isinstance(value, known[key]) or (known[key] is float and type(value) is int)
        if not ok or isinstance(value, bool):
            raise ValueError(f"{where}: {key} must be {known[key].__name__}, got {value!r} "
                             f"({type(value).__name__}; in YAML write 1.0e-4, not 1e-4)")
    for key, choices in (("split", ("test", "val")), ("weights", ("shipped", "train"))):
        if values.get(key, choices[0]) not in choices:
            raise ValueError(f"{where}: {key} must be {' or '.join(choices)}, got {values[key]!r}")
    if "data" not in values:
        raise ValueError(f"{where}: needs the parameter 'data'")
    profile = Profile(**values)
    for key in ("steps", "batch", "lr"):
        if not 0 < getattr(profile, key) < math.inf:  # NaN fails too
            raise ValueError(f"{where}: {key} must be positive, got {getattr(profile, key)}")
    for key in ("image_size", "live_steps", "test_pairs"):
        if getattr(profile, key) < 0:
            raise ValueError(f"{where}: {key} must not be negative, got {getattr(profile, key)}")
    return profile


def read(name: str) -> Profile:
    """A profile by name (``demo_faces``) or by the path of a YAML file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise ValueError(f"unknown profile {name!r}; known: {known}, or the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"profile {name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"profile {name}: expected 'key: value' lines")
    return check(values, f"profile {name}")
