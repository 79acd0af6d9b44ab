"""``tvf convert``: released checkpoints as .safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from .. import checkpoints
from ..methods import METHODS
from .app import app


@app.command
def convert(
    released: Positional[Annotated[Path, tyro.conf.arg(metavar="RELEASED")]],
    out: Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]],
    method: str = "",
    window: tuple[int, ...] = (),
) -> None:
    """Read a checkpoint of the released TransMorph code safely and write it as .safetensors.

    Args:
        released: a released .pth.tar file or a bare state dict of TM, TM-TVF, VM-2, VM-diff, CycleMorph or
            LapIRN.
        out: .safetensors file to write; every bit of the weights is kept.
        method: what it is, where its layers leave it open: tm-tvf-lddmm, lapirn-diff.
        window: attention window, where the file leaves it open; you are told.
    """
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"{out}: the output must be a file whose name ends in .safetensors")
    if released.suffix == ".safetensors":
        raise ValueError(f"{released} is a .safetensors file already")
    model = checkpoints.load(released, window or None, method)
    checkpoints.save(out, model.network.state_dict(), model.config)
    config, what = model.config, []
    if config.method.startswith("tm"):
        what = [
            config.size
            if isinstance(config.size, str)
            else ", ".join(f"{k} {v}" for k, v in config.size.items()),
            f"{config.time_steps} velocity fields"
            if METHODS[config.method].has_velocity
            else f"{config.head}-resolution head",
        ]
    what += [f"{sum(p.numel() for p in model.network.parameters()):,} parameters"] + ["released rules"] * (
        config.integrator == "released"
    )
    print(f"{out}: {config.method} in {config.dim}D, {', '.join(what)}")
