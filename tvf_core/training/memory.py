"""Memory of a training step: knowing that there was too little, saying what to lower, finding settings that fit."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..data import PairData
from ..networks.swin import recompute_activations
from .profiles import Profile

COPIES = 5  # of the weights, in the optimiser: three moments, and two for what it computes in between
WORDS = "out of memory"  # with which the advice begins


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too little: a GPU's, a processor's, or a library's on a GPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error).lower() for words in ("out of memory", "allocate memory", "status_alloc_failed")
    )


def advice(profile: Profile, share: int, recomputes: bool) -> str:
    """What to change in a profile whose step does not fit, the gentlest first.

    ``share``: pairs that go through the network at once; ``recomputes``: whether it has parts that can compute their
    activations again.
    """
    ways = []
    if share > 1:
        ways.append(
            f"accumulate {profile.accumulate * _factor(share)} (the batch in more parts, the same step)"
        )
    if recomputes and not profile.recompute:
        ways.append("recompute (less memory, more time)")
    if len(ways) > 0 and not profile.auto_fit:
        ways.append("auto_fit, which tries these")
    if profile.precision in ("", "fp32"):
        ways.append("precision bf16 on a GPU")
    ways.append("smaller images or a smaller network (image_size, size)")
    return f"{WORDS} with {share} pair{'s' * (share > 1)} at once{', recomputing' * profile.recompute}; try, in this order: {'; '.join(ways)}"


@contextlib.contextmanager
def explained(arguments: Callable[[], tuple]):
    """Turn an error that says that memory was too little into a MemoryError with :func:`advice` for these arguments, taken then."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise (error if str(error).startswith(WORDS) else MemoryError(advice(*arguments()))) from None


def settings(profile: Profile, share: int, recomputes: bool) -> Iterator[Profile]:
    """The profile with less and less memory for the same step: first its batch in more parts, then recomputing, too."""
    for recompute in dict.fromkeys((profile.recompute, profile.recompute or recomputes)):
        left, accumulate = share, profile.accumulate
        while True:
            yield replace(profile, recompute=recompute, accumulate=accumulate)
            if left == 1:
                break
            factor = _factor(left)
            left, accumulate = left // factor, accumulate * factor


def fit(
    profile: Profile,
    processes: int,
    recomputes: bool,
    module: torch.nn.Module,
    data: PairData,
    accelerator,
    progress: float,
) -> Profile:
    """The first of :func:`settings` whose step fits into the memory of every process; MemoryError where none does.

    Each is tried with a forward and a backward pass of ``module``, an objective, on real pairs, while room is held for the next
    batch, for the optimiser and for what processes exchange; its gradients are thrown away. ``progress`` is the part of the
    training that is over: LapIRN needs most at its end.
    """
    share = profile.batch // processes // profile.accumulate
    for candidate in settings(profile, share, recomputes):
        recompute_activations(module, candidate.recompute)
        well = True
        try:
            held = [torch.zeros_like(p) for p in module.parameters() for _ in range(COPIES + (processes > 1))]
            for _ in range(2):  # the next batch is there before a step ends
                held.append(
                    {
                        k: v.to(accelerator.device)
                        for k, v in data.batch(
                            [0] * (share * profile.accumulate // candidate.accumulate)
                        ).items()
                    }
                )
            module.train()
            with accelerator.autocast():
                loss = sum(module(held[-1], progress).values())
            loss.backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            well = False
        held = loss = None
        module.zero_grad(set_to_none=True)
        gc.collect()  # the error's traceback held the tensors of the step
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if accelerator.reduce(torch.tensor([float(well)], device=accelerator.device), "mean").item() == 1:
            return candidate
    raise MemoryError(advice(candidate, 1, recomputes))


def _factor(number: int) -> int:
    """The smallest factor above 1."""
    return next(k for k in range(2, number + 1) if number % k == 0)
