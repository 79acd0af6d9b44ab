"""Run a function over many items on all cores, with a bar. The workers stop when the caller stops."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm


def each(function, items, what: str, workers: int = 0, progress: bool = True) -> list:
    """Results of ``function(item)`` in the order of the items; the first error ends the work and is raised.

    Parameters
    ----------
    function : importable, for it is sent to other processes by its name; its results must be small.
    what : text of the bar.
    workers : processes; 0 takes one per core, 1 works in this process.
    """
    if workers < 0:
        raise ValueError(f"workers: expected 0 (one per core) or more, got {workers}")
    items = list(items)
    workers = min(workers or os.cpu_count() or 1, len(items))
    bar = tqdm(total=len(items), desc=what, disable=not progress)
    with bar:
        if workers <= 1:
            results = []
            for item in items:
                results.append(function(item))
                bar.update()
            return results
        # The processes are fresh ones. Copies of this process would share its locks, and the threads of a
        # library do not survive copying.
        pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent
        )
        try:
            jobs = [pool.submit(function, item) for item in items]
            for job in as_completed(jobs):
                job.result()
                bar.update()
            return [job.result() for job in jobs]
        except BrokenProcessPool:
            raise OSError(
                "a worker process was ended from outside, perhaps because memory ran out; the same command "
                "continues, with fewer processes if you add --workers 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let this worker end when its parent is killed. Without this it would wait for work forever."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
