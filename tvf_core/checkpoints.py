"""Weights files: safetensors files with the configuration inside, and the released ``.pth.tar`` checkpoints.

Released checkpoints are pickles. They are read without running any code in them: tensors, plain containers
and the NumPy numbers of the optimiser's state are allowed, and everything else is refused.
"""

from __future__ import annotations

import json
import math
import re
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .checks import one_of
from .methods import METHODS, PUBLISHED_WINDOW, SIZES, NetworkConfig, swin_config
from .model import Model
from .networks.swin import relative_position_index
from .paths import WEIGHTS, write_then_rename

TRAINED_ON = {"london_people": "london"}  # data set -> the one whose weights have learnt from its pairs too
# Compact files store larger tensors with 8 bits a number; in 2D and in 3D the small output layers stay exact.
COMPACT_ABOVE = {2: 500, 3: 2_000}
SCALE = ":scale"  # suffix of the entry with each row's scale: its largest absolute value, divided by 127
# Released baselines: an entry that only this baseline has -> method, and substitutions that give our names.
BASELINES = {
    "unet_model.downarm.0.main.weight": (
        "vm-2",
        (
            (r"^unet_model\.downarm\.(\d)\.main", r"backbone.down.\1.0"),
            (r"^unet_model\.uparm\.([012])\.main", r"backbone.up.\1.0"),
            (r"^unet_model\.uparm\.3\.main", "up3.0"),
            (r"^unet_model\.extras\.(\d)\.main", r"full.\1.0"),
        ),
    ),
    "flow_sigma.weight": ("vm-diff", ((r"^(\w+coders\.\d)\.conv", r"\1.0"),)),
    "model.inconv.block.block.0.weight": (
        "cyclemorph",
        (
            (r"^model\.inconv\.block\.block", "down.0"),
            (r"^model\.downconv(\d)\.block\.block", r"down.\1"),
            (r"^model\.keepblock\.block", "keep"),
            (r"^model\.outconv\.upconv", "flow"),
            *[(rf"^model\.upconv{k + 1}\.upconv", f"up.{k}") for k in range(4)],
            *[(rf"^model\.upconv{k + 1}\.block\.block", f"joined.{k}") for k in range(4)],
        ),
    ),
    "model_lvl2.model_lvl1.down_conv.weight": (
        "lapirn",
        (
            (r"^model_lvl2\.model_lvl1\.", "levels.0."),
            (r"^model_lvl2\.", "levels.1."),
            (r"^(?!levels\.)", "levels.2."),
            ("input_encoder_lvl1", "encoder"),
            ("down_conv", "down"),
            ("output_lvl1", "output"),
            *[(rf"resblock_group_lvl1\.{2 * k}\.", f"blocks.{k}.") for k in range(5)],
        ),
    ),
}
_scalar = np.float64(0).__reduce__()[0]  # the function that a pickled NumPy number calls
NUMPY_NUMBERS = [
    (_scalar, "numpy._core.multiarray.scalar"),  # its name since NumPy 2
    (_scalar, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32")),
]


def save(path: Path, state: dict[str, torch.Tensor], config: NetworkConfig, compact: bool = False) -> None:
    """Write a network's weights and configuration to a ``.safetensors`` file.

    ``compact`` stores each large tensor as 8-bit integers with one scale per row (index of the first axis),
    which takes a quarter of the space. The book's weights are stored in this form, and its results are
    computed with these rounded numbers. OSError if the file cannot be written.
    """
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if compact and tensor.dim() > 1 and tensor.numel() > COMPACT_ABOVE[config.dim]:
            scale = tensor.flatten(1).abs().amax(1).clamp_min(1e-30) / 127
            tensors[name + SCALE] = scale
            tensor = (tensor / _per_row(scale, tensor)).round().to(torch.int8)
        tensors[name] = tensor
    with write_then_rename(Path(path)) as temporary:
        try:
            save_file(tensors, temporary, metadata={"network": json.dumps(config.stored())})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {' '.join(str(error).split())}") from None
        temporary.chmod(0o644)  # safetensors makes files that only the owner can read


def load(path: Path, window: tuple[int, ...] | None = None, method: str = "") -> Model:
    """Rebuild a model from a ``.safetensors`` file of :func:`save`, or from a checkpoint of released code.

    Parameters
    ----------
    path : a file whose name does not end in ``.safetensors`` is read as a released checkpoint (``.pth.tar``
        or a bare state dict). TM and TM-TVF (Chen et al.) and the TransMorph repository's VM-diff then follow
        the released rules: ``config.integrator == "released"``. VM-2 and CycleMorph (same repository) and
        LapIRN (its authors) need no such rules.
    window : attention window of a released TM or TM-TVF, if the file does not determine it.
    method : method of a released checkpoint, if its layers fit two: ``lapirn`` (the default) or
        ``lapirn-diff``; ``tm-tvf`` (the default) or ``tm-tvf-lddmm``.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not a checkpoint, is cut short, holds another network, or is a pickle that asks for more
        than numbers. The message is one line.
    """
    path = Path(path)
    if not path.is_file():
        hint = "; train them with: tvf train --help" if path.suffix == ".safetensors" else ""
        raise FileNotFoundError(f"no weights at {path}{hint}")
    if path.suffix != ".safetensors":
        return _from_released(path, window, method)
    if window is not None or method:
        raise ValueError(
            f"{path.name} stores its own window and method; give them for released checkpoints only"
        )
    try:
        with safe_open(path, "pt") as file:
            # Files of older versions name options that their method does not have.
            config, _ = NetworkConfig.fitting(**json.loads((file.metadata() or {})["network"]))
            state = {key: file.get_tensor(key).float() for key in file.keys()}
        for name in [name for name in state if name.endswith(SCALE)]:
            scale, tensor = state.pop(name), state[name.removesuffix(SCALE)]
            tensor *= _per_row(scale, tensor)
        model = Model(config)
        model.network.load_state_dict(state)
    except Exception as error:  # a file can be wrong in many ways
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path.name} is not a weights file of this package: {reason}") from None
    return model


def shipped(name: str, data: str) -> Path:
    """Path of the weights that the book ships for a data set; ``name`` is that of their result.

    That is the method's, or such a one as ``tm-seed1`` for another training of the method.
    """
    return WEIGHTS / TRAINED_ON.get(data, data) / f"{name}.safetensors"


def released_config(state: dict[str, torch.Tensor], window: tuple[int, ...] | None = None) -> NetworkConfig:
    """Configuration of a released TM or TM-TVF network, from the names and shapes in its state dict.

    The attention window follows from the index buffers. Without them it is 1/32 of the image size stored in
    the warp's grid, or the published window, if the number of rows of the bias table allows it; otherwise a
    ValueError asks for ``window``.
    """
    patch = _entry(state, "transformer.patch_embed.proj.weight", 4, 5)
    dim, embed = patch.dim() - 2, patch.shape[0]
    if patch.shape[1:] != (2, *[4] * dim):
        raise ValueError(
            f"its patches {tuple(patch.shape)} are not those of TransMorph (channels, 2, 4, 4[, 4])"
        )
    block = r"transformer\.layers\.{}\.blocks\.(\d+)\."
    depths = tuple(
        _numbered(state, block.format(stage))
        for stage in range(_numbered(state, r"transformer\.layers\.(\d+)\."))
    )
    if len(depths) != 4:
        raise ValueError(f"expected 4 stages (transformer.layers.0 to 3), found {len(depths)}")
    attention = [f"transformer.layers.{stage}.blocks.0.attn." for stage in range(4)]
    tables = [_entry(state, name + "relative_position_bias_table", 2) for name in attention]
    heads = tuple(t.shape[1] for t in tables)
    encoder = {
        "embed": embed,
        "depths": depths,
        "heads": heads,
        "window": _window(state, tables[0].shape[0], dim, window),
    }
    velocities = _numbered(state, r"reg_heads\.(\d+)\.")
    method = "tm-tvf" if velocities else "tm"
    rest = {"integrator": "released"}
    if velocities:
        rest["time_steps"] = velocities
    else:
        rest["head"] = "full" if any(name.startswith("up4.") for name in state) else "half"
    custom = NetworkConfig(method, dim, encoder, **rest)
    named = [NetworkConfig(method, dim, size, **rest) for size in SIZES]
    return next((c for c in named if swin_config(c) == swin_config(custom)), custom)


def _from_released(path: Path, window: tuple[int, ...] | None, method: str) -> Model:
    state = _read_pickle(path)
    try:
        baseline = next((names for mark, names in BASELINES.items() if mark in state), None)
        if baseline is None and not any(name.startswith(("transformer.", "reg_head")) for name in state):
            raise ValueError(
                "its names are not those of TM, TM-TVF, VM-2, VM-diff, CycleMorph or three-level LapIRN"
            )
        config = _baseline_config(state, baseline[0]) if baseline else released_config(state, window)
        if baseline and window is not None:
            raise ValueError(f"{config.method} has no attention window")
        if method and METHODS[one_of(method, METHODS, "method")].build is not METHODS[config.method].build:
            raise ValueError(f"it holds a network of {config.method}, not of {method}")
        if method:
            config = replace(
                config, method=method, integrator=config.integrator if config.integrator == "released" else ""
            )
        model = Model(config)
        model.network.load_state_dict(
            _renamed(state, config, model.network.state_dict(), baseline[1] if baseline else ())
        )
    except Exception as error:  # tensors of absurd shapes raise errors of every kind
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path.name} is not a released checkpoint that can be used: {reason}") from None
    return model


def _baseline_config(state: dict[str, torch.Tensor], method: str) -> NetworkConfig:
    """Configuration of a released VM-2, VM-diff, CycleMorph or LapIRN."""
    first = max(state.values(), key=torch.Tensor.dim)  # a convolution, whose kernel shows the dimension
    rest = {"integrator": "released"} if method == "vm-diff" else {}
    if method == "lapirn":
        rest["size"] = {"start": _entry(state, "down_conv.weight", 4, 5).shape[0] // 4}
    return NetworkConfig(method, first.dim() - 2, **rest)


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict, bare or under ``state_dict``, from a ``torch.save`` file; unpickle numbers only."""
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS), warnings.catch_warnings():
            # The warnings concern pickle protocols; a file that cannot be read raises an error in any case.
            warnings.simplefilter("ignore")
            # The file is memory-mapped, because three quarters of a released one are the optimiser's state.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds of errors for files that it cannot read
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked or re.search("Can only build|Trying to call", str(error)):
            what = f"run {asked[1]}" if asked else "build objects"
            raise ValueError(f"{path.name} refused: it asks to {what}, which no weights file needs") from None
        raise ValueError(f"{path.name} is not a checkpoint, or is cut short: torch cannot read it") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(t, torch.Tensor) for t in state.values())
    ):
        raise ValueError(
            f"{path.name} holds no state dict (names and tensors), neither directly nor as 'state_dict'"
        )
    # DataParallel adds "module." to every name.
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _renamed(
    state: dict[str, torch.Tensor],
    config: NetworkConfig,
    ours: dict[str, torch.Tensor],
    names: tuple[tuple[str, str], ...],
) -> dict[str, torch.Tensor]:
    """Rename the released entries to ours and drop buffers.

    ValueError names the entries that are missing, unexpected or of another shape.
    """
    unused = ("c2.",) if (config.method, config.head) == ("tm", "half") else ()  # stored but never used
    shared = ("transformer.", "up0.", "up1.", "up2.")
    found = {}
    for name, tensor in state.items():
        if not name.endswith((".grid", ".relative_position_index")) and not name.startswith(unused):
            name = ("backbone." if name.startswith(shared) else "") + name
            for theirs, our in names:
                name = re.sub(theirs, our, name)
            found[name] = tensor.float()
    problems = {
        "missing": [name for name in ours if name not in found],
        "unexpected": [name for name in found if name not in ours],
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(ours[name].shape)}"
            for name in ours
            if name in found and found[name].shape != ours[name].shape
        ],
    }
    if any(problems.values()):
        raise ValueError("; ".join(f"{what}: {_few(names)}" for what, names in problems.items() if names))
    return found


def _window(state: dict, rows: int, dim: int, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Attention window of a bias table with ``rows`` = product of (2 w - 1) rows."""
    spans = [n for n in range(1, rows + 1, 2) if rows % n == 0]
    pairs = (
        [(a, b) for a in spans for b in spans]
        if dim == 2
        else [(a, b, c) for a in spans for b in spans for c in spans]
    )
    possible = [tuple((n + 1) // 2 for n in sides) for sides in pairs if math.prod(sides) == rows]
    name = "transformer.layers.0.blocks.0.attn.relative_position_index"
    if name in state:
        index = _entry(state, name, 2)
        possible = [
            w
            for w in possible
            if math.prod(w) == len(index) and torch.equal(relative_position_index(w), index.long())
        ]
        if not possible:
            raise ValueError("its relative_position_index is not that of any window")
    if wanted is not None:
        if tuple(wanted) not in possible:
            raise ValueError(
                f"window {tuple(wanted)} does not fit its bias table of {rows} rows (or its index); "
                f"possible: {', '.join(map(str, possible))}"
            )
        return tuple(wanted)
    grid = state.get("spatial_trans.grid")
    guesses = [tuple(s // 32 for s in grid.shape[2:])] if grid is not None else []
    for guess in [*(possible if len(possible) == 1 else []), *guesses, PUBLISHED_WINDOW[dim]]:
        if guess in possible:
            return guess
    raise ValueError(
        f"its attention window is not stored; give one of {', '.join(map(str, sorted(possible)))}"
    )


def _entry(state: dict, name: str, *axes: int) -> torch.Tensor:
    """Entry ``name`` of a state dict; ValueError if it is missing or has a number of axes not in ``axes``."""
    if name not in state:
        raise ValueError(f"missing: {name}")
    if state[name].dim() not in axes:
        raise ValueError(
            f"{name} has shape {tuple(state[name].shape)}, but needs {' or '.join(map(str, axes))} axes"
        )
    return state[name]


def _numbered(state: dict, pattern: str) -> int:
    """One more than the highest number that the pattern's group matches at the start of a name; 0 if none."""
    return 1 + max((int(m[1]) for name in state if (m := re.match(pattern, name))), default=-1)


def _per_row(scale: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, *[1] * (tensor.dim() - 1))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
