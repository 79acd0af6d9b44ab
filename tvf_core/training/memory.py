"""Memory of a training step: recognise that it was too little, say what to lower, find settings that fit."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..data import PairData
from ..networks.swin import recompute_activations
from .profiles import Profile

# The optimiser needs so many copies of the weights: three for its moments, two for its intermediate results.
COPIES = 5
WORDS = "out of memory"  # the advice begins with these words


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there was too little memory, in a GPU or in the computer."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error).lower() for words in ("out of memory", "allocate memory", "status_alloc_failed")
    )


def advice(profile: Profile, share: int, recomputes: bool) -> str:
    """What to change in a profile whose step does not fit; the first suggestions change the least.

    ``share`` is the number of pairs that go through the network at once. ``recomputes`` tells whether the
    network has parts that can compute their activations again in the backward pass.
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
    with_what = f"{share} pair{'s' * (share > 1)} at once{', recomputing' * profile.recompute}"
    return f"{WORDS} with {with_what}; try, in this order: {'; '.join(ways)}"


@contextlib.contextmanager
def explained(advice: Callable[[], str]):
    """Within this block, an error that means too little memory becomes a MemoryError with an advice.

    ``advice`` is called when that happens and gives the message; it begins with ``WORDS``, as :func:`advice`
    does.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise (error if str(error).startswith(WORDS) else MemoryError(advice())) from None


def settings(profile: Profile, share: int, recomputes: bool) -> Iterator[Profile]:
    """Versions of a profile that make the same step in less and less memory.

    First come more and more parts of the batch, then the same numbers of parts with recomputed activations.
    ``share`` and ``recomputes`` are those of :func:`advice`.
    """
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
    recomputes: bool,
    module: torch.nn.Module,
    data: PairData,
    accelerator,
    progress: float,
) -> Profile:
    """The first of :func:`settings` whose step fits into the memory of every process.

    Each is tried with a forward and a backward pass of ``module``, an objective, on real pairs. Meanwhile
    memory is held for the next batch, for the optimiser and for the gradients that processes exchange. The
    gradients of the trial are thrown away. ``progress`` is the part of the training that is over, in [0, 1):
    LapIRN needs the most memory at its end.

    ``accelerate.utils.find_executable_batch_size`` cannot do this: it varies one number within one process,
    while here all processes must agree on a candidate, and recomputation is tried once no smaller part is
    left.

    Raises
    ------
    MemoryError : no candidate fits.
    """
    processes = accelerator.num_processes
    share = profile.batch // processes // profile.accumulate
    for candidate in settings(profile, share, recomputes):
        recompute_activations(module, candidate.recompute)
        well = True
        try:
            held = [torch.zeros_like(p) for p in module.parameters() for _ in range(COPIES + (processes > 1))]
            for _ in range(2):  # the next batch arrives before a step ends
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
        gc.collect()  # a caught error still refers to the tensors of its step
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if accelerator.reduce(torch.tensor([float(well)], device=accelerator.device), "mean").item() == 1:
            return candidate
    raise MemoryError(advice(candidate, 1, recomputes))


def about(profile: Profile) -> str:
    """The settings that :func:`fit` chooses, in words."""
    parts = f"{profile.accumulate} part{'s' * (profile.accumulate > 1)}"
    return f"{'' if profile.recompute else 'not '}recomputing, every batch in {parts}"


def _factor(number: int) -> int:
    """The smallest factor above 1."""
    return next(k for k in range(2, number + 1) if number % k == 0)
