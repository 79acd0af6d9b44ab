"""Signals that ask a training to stop, held back until it has saved its state."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONCE = 2.0  # seconds in which the same wish may arrive several times: at the whole group of processes, and handed on by a launcher


class Interrupts:
    """Within ``with Interrupts() as stop``, a SIGINT or SIGTERM only sets ``stop.number``; the end of the block delivers it.

    It is then what it always was: SIGINT a KeyboardInterrupt, SIGTERM the end of the process. One that comes ``ONCE`` later is
    delivered at once. Outside the main thread, where Python lets nobody catch signals, nothing is held back.
    """

    def __enter__(self):
        self.number, self._first, self._before = 0, 0.0, {}
        if threading.current_thread() is threading.main_thread():
            caught = [
                n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)
            ]  # who ignores one goes on doing so
            self._before = {number: signal.signal(number, self._note) for number in caught}
        return self

    def ask(self, number: int) -> None:
        """Note a wish to stop, if none is noted yet."""
        if not self.number:
            self.number, self._first = number, time.monotonic()

    def _note(self, number, frame):
        if self.number and time.monotonic() - self._first > ONCE:
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
    """Processes that are started within never see SIGINT and SIGTERM: who started them ends them, in its own time."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
