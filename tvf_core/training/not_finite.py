"""What is not finite in a training: whether it skips such a step or stops, and what it says."""

from __future__ import annotations

import math

IN_A_ROW = 50  # so many steps in a row without an update end a training: no later step is likely to have one
ANSWERS = ("stop", "skip")


class NotFiniteSteps:
    """Judge every step by its loss and the norm of its gradient.

    Parameters
    ----------
    answer : ``stop`` ends the training at the first step that is not finite, ``skip`` goes on without that
        step.
    scaled : whether a loss scaler is at work (fp16). It leaves out by itself the steps whose gradient is not
        finite, and lowers its scale: a few such steps are normal and do not end the training.
    """

    def __init__(self, answer: str, scaled: bool):
        self.answer, self.scaled, self.in_a_row = answer, scaled, 0

    def accepts(self, record: dict) -> bool:
        """Whether the optimiser may make this step. Call it once for every step, in their order."""
        finite_gradient = math.isfinite(record["grad_norm"])
        accepted = math.isfinite(record["loss"]) and (finite_gradient or self.scaled)
        self.in_a_row = 0 if accepted and finite_gradient else self.in_a_row + 1
        return accepted

    def must_stop(self, accepted: bool) -> bool:
        """Whether the training ends at the step that was judged last."""
        return (not accepted and self.answer == "stop") or self.in_a_row == IN_A_ROW

    def message(self, record: dict, pairs: list[str], saved: bool) -> str:
        """One line about the step at which the training ends.

        ``pairs`` are the names of the pairs of that step; ``saved`` tells whether the state before it could
        be saved.
        """
        numbers = ", ".join(f"{k} {v:.3g}" for k, v in record.items() if k not in ("step", "lr", "seconds"))
        row = f", the last of {self.in_a_row} such steps in a row" * (self.in_a_row > 1)
        state = "the state before it is saved" if saved else "the state before it could not be saved"
        return (
            f"step {record['step']}: not finite ({numbers}; learning rate {record['lr']:.2g}) "
            f"for {_some(pairs)}{row}; {state}. "
            "Look at these pairs; --on-nonfinite skip goes on without them, --resume new starts again, "
            "with a lower learning rate"
        )


def at_validation(step: int, pairs: list[str], what: str) -> str:
    """One line about a validation after a step that gave a field that is not finite.

    ``pairs`` are the names of the pairs that went through the network at once; ``what`` follows from it.
    """
    about = f"step {step}: the validation after it gave a displacement that is not finite"
    return f"{about} for {_some(pairs)}; {what}"


def _some(pairs: list[str]) -> str:
    return ", ".join(pairs[:4]) + f" and {len(pairs) - 4} more" * (len(pairs) > 4)
