"""Which pairs a training step sees, and how many steps an epoch has.

The pairs of a step depend only on its number and the seed. Batches can therefore be loaded ahead and shared
by any number of processes, and a training that was stopped continues with the same pairs.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from ..checks import one_of
from ..data import PairData

EPOCHS_OF = ("pairs", "images")


class PairSampler:
    """The pairs of every step: each epoch has a new random order.

    An even step has its pairs in one direction, the odd step after it the same pairs in the other direction.

    Parameters
    ----------
    data : images and ordered (moving, fixed) pairs.
    batch : pairs per step.
    seed : decides all orders, partners and flips.
    epoch_of : with ``pairs`` an epoch has every pair once in each direction (the released 2D script uses
        every file once). With ``images`` it has every image once, with a partner drawn from the image's
        pairs, in each direction (as the released OASIS script).
    flip : chance that both images of a pair are mirrored along the last axis, in both directions alike
        (released 2D script: 0.5).
    """

    def __init__(self, data: PairData, batch: int, seed: int = 0, epoch_of: str = "pairs", flip: float = 0.0):
        one_of(epoch_of, EPOCHS_OF, "epoch_of")
        self.batch, self.seed, self.flip = batch, seed, flip
        if epoch_of == "pairs":
            self.choices = [
                [pair, pair[::-1]] for pair in sorted({(min(pair), max(pair)) for pair in data.pairs})
            ]
        else:
            partners: dict[int, set[int]] = {}
            for a, b in data.pairs:
                partners.setdefault(a, set()).add(b)
                partners.setdefault(b, set()).add(a)
            self.choices = [
                [(image, partner) for partner in sorted(partners[image])] for image in sorted(partners)
            ]
        self._epoch = functools.lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def epoch(self) -> int:
        """Number of ordered pairs in an epoch."""
        return 2 * len(self.choices)

    def steps(self, epochs: int) -> int:
        """Number of steps that so many epochs take."""
        return -(-epochs * self.epoch // self.batch)

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """(moving, fixed) image numbers of a step."""
        pairs = [pair for pair, _ in self._drawn(step)]
        return [(fixed, moving) for moving, fixed in pairs] if step % 2 else pairs

    def flips(self, step: int) -> list[bool]:
        """Which pairs of a step are mirrored."""
        return [flipped for _, flipped in self._drawn(step)]

    def parts(self, step: int, process: int, parts: int, share: int) -> list[tuple[list, list[bool]]]:
        """The pairs of a step that one process computes, in parts that it computes one after the other.

        Parameters
        ----------
        process : number of the process.
        parts : how many parts each process has.
        share : pairs in a part.

        Returns
        -------
        For each part, the (moving, fixed) image numbers, and which of them are mirrored.
        """
        pairs, flips = self(step), self.flips(step)
        begins = range(process * parts * share, (process + 1) * parts * share, share)
        return [(pairs[begin : begin + share], flips[begin : begin + share]) for begin in begins]

    def _drawn(self, step: int) -> list[tuple[tuple[int, int], bool]]:
        first = step // 2 * self.batch
        return [
            self._epoch(k // len(self.choices))[k % len(self.choices)]
            for k in range(first, first + self.batch)
        ]

    def _draw_epoch(self, number: int) -> list[tuple[tuple[int, int], bool]]:
        rng = np.random.default_rng([self.seed, number])
        order = [
            self.choices[k][rng.integers(len(self.choices[k]))] for k in rng.permutation(len(self.choices))
        ]
        return list(zip(order, (rng.random(len(order)) < self.flip).tolist()))


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed of everything that a network draws in one step of one process."""
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])


def mirrored(batch: dict, flags: list[bool]) -> dict:
    """A batch in which the pairs with a flag are mirrored along the last axis, images and labels alike."""
    if not any(flags):
        return batch
    return {
        name: torch.stack([x.flip(-1) if flag else x for x, flag in zip(value, flags)])
        for name, value in batch.items()
    }
