"""Profiles: named sets of training parameters, the same YAML files that ``papermill -f`` reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

from ..checks import one_of
from ..integrate import STEPS
from ..methods import METHODS, SIZES, NetworkConfig
from ..model import check_constants, check_losses, known_constants, own_terms
from ..paths import ROOT, for_files
from .sampling import EPOCHS_OF

FOLDER = ROOT / "notebooks" / "profiles"
PRECISIONS = ("", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Profile:
    """A recipe and how much of it is run: keys of a profile file, and parameters of notebooks 03 and 04.

    One profile serves many methods. What it says of the network (size, time_steps, integrator) goes to those
    methods that have a choice there; a training names in one line what has no effect on its method and is not
    the default. What a profile says of a method by name (losses, constants) must be something that this
    method has (:func:`applied`).
    """

    data: str
    """data set: a name of `tvf_core.data.DATASETS`, or the path of a folder (`tvf_core.data.prepared`)"""
    more_pairs: str = ""
    """a data set that is another list of pairs in the same folder, whose training pairs are learnt from too:
    `london_people` beside `london`; empty is none"""
    size: str = "demo"
    """network size, see `tvf_core.methods.SIZES`; of methods that come in several"""
    image_size: int = 0
    """edge of the images in pixels; 0 is the data set's own size"""
    time_steps: int = 8
    """N of the TVF methods"""
    integrator: str = ""
    """solver of the TVF methods: euler, heun or rk4; empty is the method's own"""
    steps: int = 0
    """optimiser steps of a full training; 0 is as many as the epochs take. CycleMorph, which sees both
    directions in one step, takes half as many, so that every method sees the same number of ordered pairs"""
    epochs: int = 0
    """epochs of a full training, where steps is 0; without effect beside steps"""
    epoch_of: str = "pairs"
    """`pairs`: an epoch has every pair once in each direction; `images`: it has every image once with a
    random partner, in each direction"""
    batch: int = 1
    """pairs per optimiser step, on all devices together"""
    lr: float = 1e-3
    """initial learning rate (Adam with AMSGrad, polynomial decay 0.9)"""
    flip: float = 0.0
    """chance that a pair of 2D images is mirrored left to right"""
    losses: dict = field(default_factory=dict)
    """method -> loss term -> weight, in place of the method's own"""
    constants: dict = field(default_factory=dict)
    """method -> constant -> value, in place of the method's own: constants of its loss, or, of a method
    without a network, what it registers with"""
    validations: int = 8
    """how often the weights are scored during the training; the best are kept"""
    validation_pairs: int = 12
    """validation pairs that they are scored on, evenly spread; 0 is all"""
    seed: int = 0
    """seed of the initial weights, the order of pairs and stochastic depth"""
    precision: str = ""
    """fp32, bf16 or fp16 of the network's arithmetic; empty is what accelerate is set to, else fp32. Fields,
    losses and weights stay float32"""
    recompute: bool = False
    """keep fewer activations for the backward pass: less memory, somewhat more time"""
    accumulate: int = 1
    """parts in which a batch goes through the network one after the other: less memory, the same step"""
    auto_fit: bool = False
    """find recompute and accumulate, from the given ones on, so that a step fits into the memory"""
    live_steps: int = 40
    """steps of the notebook's own short training; 0 skips it"""
    test_pairs: int = 0
    """pairs to evaluate; 0 is all of the split"""
    split: str = "test"
    """split that is evaluated in the end (test labels of OASIS are not public: val)"""
    methods: str = ""
    """methods that the notebook runs, separated by spaces; empty is all"""
    weights: str = "shipped"
    """`shipped`, or `train` to train every method first"""

    def change(self, **values) -> Profile:
        """The same profile with some values changed, checked as a whole; a value of None changes nothing."""
        return check_profile(
            replace(self, **{key: value for key, value in values.items() if value is not None})
        )

    def to_register(self, method: str) -> dict:
        """Constants that a method without a network registers with instead of its own; else empty."""
        return {} if METHODS[method].build else self.constants.get(method, {})


# These decide neither the weights nor their score, so a run may continue with other values of them.
EXECUTION = ("recompute", "accumulate", "auto_fit")
OF_THE_NOTEBOOK = ("live_steps", "test_pairs", "split", "methods", "weights")
_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict}


def check(values: dict, where: str = "profile") -> Profile:
    """A Profile from plain values; ValueError names an unknown key or a value of the wrong type."""
    known = {f.name: _TYPES[f.type] for f in fields(Profile)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where}: unknown parameter {key!r}; known: {', '.join(known)}")
        ok = isinstance(value, known[key]) or (known[key] is float and type(value) is int)
        if not ok or (isinstance(value, bool) and known[key] is not bool):
            raise ValueError(
                f"{where}: {key} must be {known[key].__name__}, got {value!r} "
                f"({type(value).__name__}; in YAML write 1.0e-4, not 1e-4)"
            )
    if "data" not in values:
        raise ValueError(f"{where}: needs the parameter 'data'")
    return check_profile(Profile(**values), where)


def check_profile(profile: Profile, where: str = "profile") -> Profile:
    """The profile itself; ValueError names a value out of range."""
    for key, choices in (
        ("split", ("test", "val")),
        ("weights", ("shipped", "train")),
        ("epoch_of", EPOCHS_OF),
        ("precision", PRECISIONS),
    ):
        if getattr(profile, key) not in choices:
            raise ValueError(
                f"{where}: {key} must be {' or '.join(filter(None, choices))}, got {getattr(profile, key)!r}"
            )
    for key in ("batch", "lr", "time_steps", "accumulate", "validations"):
        if not 0 < getattr(profile, key) < math.inf:  # NaN fails too
            raise ValueError(f"{where}: {key} must be positive, got {getattr(profile, key)}")
    for key in ("image_size", "steps", "epochs", "live_steps", "test_pairs", "validation_pairs", "seed"):
        if getattr(profile, key) < 0:
            raise ValueError(f"{where}: {key} must not be negative, got {getattr(profile, key)}")
    if profile.seed >= 2**63:  # what PyTorch's generators take
        raise ValueError(f"{where}: seed must be below 2**63, got {profile.seed}")
    if not (profile.steps or profile.epochs):
        raise ValueError(f"{where}: needs steps or epochs of at least 1")
    if not 0 <= profile.flip <= 1:
        raise ValueError(f"{where}: flip must be a chance between 0 and 1, got {profile.flip}")
    one_of(profile.size, SIZES, f"network size in {where}")
    if profile.integrator:
        one_of(profile.integrator, STEPS, f"integrator in {where}")
    for method in profile.methods.split():
        if method not in METHODS:
            raise ValueError(
                f"{where}: methods names {method!r}, which is no method; known: {', '.join(METHODS)}"
            )
    for key in ("losses", "constants"):
        for method, numbers in getattr(profile, key).items():
            if method not in METHODS:
                raise ValueError(
                    f"{where}: {key} names {method!r}, which is no method; known: {', '.join(METHODS)}"
                )
            if not isinstance(numbers, dict):
                raise ValueError(
                    f"{where}: {key} must be numbers by name for each method, got {numbers!r} for {method}"
                )
            try:
                if key == "losses":
                    check_losses(method, numbers)
                else:  # of its own terms, too: `tvf train --losses` may have put others in their place
                    check_constants(method, numbers, own_terms(method) | profile.losses.get(method, {}))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
    return profile


def applied(profile: Profile, method: str, dim: int) -> tuple[Profile, NetworkConfig, dict]:
    """What a training of one method takes from a profile.

    Returns
    -------
    profile : with the constants of this method that its loss terms use, and no others.
    config : the network, of those of size, time_steps and integrator that the method has.
    left : name -> value of what has no effect on the method and is not the default of a profile.
    """
    options = {key: getattr(profile, key) for key in ("size", "time_steps", "integrator")}
    config, left = NetworkConfig.fitting(method, dim, **options)
    left = {key: value for key, value in left.items() if value != getattr(Profile, key)}
    known, given = known_constants(method, dim, profile.losses.get(method)), profile.constants.get(method, {})
    left |= {f"constant {key}": value for key, value in given.items() if key not in known}
    if profile.steps and profile.epochs:
        left["epochs"] = profile.epochs
    constants = {method: {key: value for key, value in given.items() if key in known}}
    return replace(profile, constants=constants), config, left


def names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def read(name: str) -> Profile:
    """A profile by name (``demo_faces``) or by the path of a YAML file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(names())}, or the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"profile {name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"profile {name}: expected 'key: value' lines")
    if isinstance(values.get("data"), str):  # perhaps the path of a folder
        values["data"] = for_files(values["data"])
    return check(values, f"profile {name}")


def to_register(name: str, method: str) -> dict:
    """Constants that a method registers with by the profile of a name or path; none without a name.

    ValueError where the profile names none for it: the method's own would be used without a word.
    """
    if not name:
        return {}
    found = read(name).to_register(one_of(method, METHODS, "method"))
    if METHODS[method].build:
        raise ValueError(f"profile: {method} registers with its network, whose training alone has constants")
    if not found:
        raise ValueError(
            f"profile: {name} names no constants of {method}; leave it out to use the method's own"
        )
    return found
