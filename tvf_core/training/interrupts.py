"""Signals that ask a training to stop: they wait until its state is saved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds after a first signal in which further ones count as copies of it. Ctrl-C reaches every process of a
# terminal, and a launcher that gets the same Ctrl-C sends its processes a signal of its own.
COPIES_WITHIN = 2.0


class Interrupts:
    """Within ``with Interrupts() as stop``, a SIGINT or SIGTERM only sets ``stop.number`` to the signal's
    number.

    At the end of the block the signal takes its usual effect: SIGINT raises KeyboardInterrupt, SIGTERM ends
    the process. A second signal that comes more than ``COPIES_WITHIN`` seconds after the first takes effect
    at once. Outside the main thread, where Python cannot catch signals, they always take effect at once.
    """

    def __enter__(self):
        self.number, self._first, self._before = 0, 0.0, {}
        if threading.current_thread() is threading.main_thread():
            # A signal that this process ignores stays ignored.
            caught = [n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._note) for number in caught}
        return self

    def ask(self, number: int) -> None:
        """Remember a signal, unless one is remembered already."""
        if not self.number:
            self.number, self._first = number, time.monotonic()

    def _note(self, number, frame):
        if self.number and time.monotonic() - self._first > COPIES_WITHIN:
            self._restore()
            signal.raise_signal(number)
        self.ask(number)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *error):
        self._restore()
        if self.number and error[0] is None:
            signal.raise_signal(self.number)


@contextlib.contextmanager
def not_for_children():
    """Hide SIGINT and SIGTERM from the processes that are started within this block.

    Loading processes must not end before the training that needs them; it ends them itself when it is done.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
