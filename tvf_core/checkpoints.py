"""Weights as safetensors, with the network's configuration inside: no pickle, nothing to guess."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .methods import Model, NetworkConfig
from .paths import WEIGHTS, write_then_rename

HALF_ABOVE = 20_000  # larger tensors are stored as float16: half the size, and the small heads stay exact


def save(path: Path, state: dict[str, torch.Tensor], config: NetworkConfig) -> None:
    """Write a network's weights and configuration to a ``.safetensors`` file."""
    tensors = {k: (t.half() if t.numel() > HALF_ABOVE else t).contiguous().cpu() for k, t in state.items()}
    with write_then_rename(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"network": json.dumps(asdict(config))})


def load(path: Path) -> Model:
    """Rebuild a model from a file that :func:`save` wrote."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; train them with: tvf train --help")
    try:
        with safe_open(path, "pt") as file:
            config = NetworkConfig(**json.loads((file.metadata() or {})["network"]))
            state = {key: file.get_tensor(key).float() for key in file.keys()}
        model = Model(config)
        model.network.load_state_dict(state)
    except Exception as error:  # safetensors has no public base class for its errors
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path.name} is not a weights file of this package: {reason}") from None
    return model


def shipped(method: str, data: str) -> Path:
    """Where the weights that come with the book lie."""
    return WEIGHTS / data / f"{method}.safetensors"
