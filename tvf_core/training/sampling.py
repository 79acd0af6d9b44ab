"""Which pairs a training step sees, and how many steps an epoch has.

What a step sees follows from its number and the seed alone. Batches can therefore be loaded ahead, shared by any number of
processes, and a training continues from a step as if it had never stopped.
"""

from __future__ import annotations

import functools

import numpy as np

from ..checks import one_of
from ..data import PairData

EPOCHS_OF = ("pairs", "images")


class PairSampler:
    """The pairs of every step: epoch after epoch in a new random order, each pair in one direction, at the next step in the other.

    Parameters
    ----------
    data : images and ordered (moving, fixed) pairs.
    batch : pairs per step.
    seed : of all orders.
    epoch_of : ``pairs``: an epoch has every pair once in each direction, as the released 2D script has every file. ``images``:
        every image once with a partner drawn from its pairs, in each direction, as the released OASIS script.
    flip : chance that both images of a pair are mirrored along the last axis, in both directions alike (released 2D script: 0.5).
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
        """Ordered pairs of an epoch."""
        return 2 * len(self.choices)

    def steps(self, epochs: int) -> int:
        """Steps in which so many epochs pass."""
        return -(-epochs * self.epoch // self.batch)

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """(moving, fixed) image numbers of a step."""
        pairs = [pair for pair, _ in self._drawn(step)]
        return [(fixed, moving) for moving, fixed in pairs] if step % 2 else pairs

    def flips(self, step: int) -> list[bool]:
        """Which pairs of a step are mirrored."""
        return [flipped for _, flipped in self._drawn(step)]

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
