"""The arithmetic and the devices of a training: what accelerate is asked for, and what is refused."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from .profiles import Profile


def make_accelerator(profile: Profile, partly_used: bool) -> Accelerator:
    """The Accelerator for a profile: devices, processes and precision.

    ``partly_used`` says that some steps leave parameters without a gradient, which several processes must
    know.

    Raises
    ------
    ValueError : fp16 without a GPU, or a batch that the processes and its parts cannot share evenly.
    """
    # Without this, an earlier training in the same process would decide the precision.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "": None}.get(profile.precision, profile.precision),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=partly_used)],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision: fp16 needs a GPU; on a processor use fp32 or bf16")
    processes = accelerator.num_processes
    if profile.batch % (processes * profile.accumulate):
        raise ValueError(
            f"batch: {profile.batch} pairs cannot be shared evenly by {processes} processes x "
            f"{profile.accumulate} parts; choose a multiple of {processes * profile.accumulate}"
        )
    return accelerator


def refuse_two_planes(network: torch.nn.Module) -> None:
    """Make a network stop with a ValueError where a processor would compute wrong bfloat16 gradients.

    PyTorch 2.13, on a processor with AVX512-BF16 but without AMX, computes a wrong gradient for the weights
    of a 3D convolution whose input has two voxels along the first spatial axis: it reads memory that was
    never written.
    """

    def check(module, inputs):
        if inputs[0].shape[2] == 2:
            raise ValueError(
                "precision: PyTorch's bf16 gradients on a processor are wrong where a coarse level of the "
                "network has 2 voxels along the first axis, as it has for these images; use fp32"
            )

    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(check)
