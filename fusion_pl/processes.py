"""What every process does that works for another one, such as a loader's worker: obey it, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent(worker_id: int = 0) -> None:
    """Leave Ctrl-C to the process that started this one, and end as soon as that one is gone, killed perhaps.

    A terminal sends Ctrl-C to every process of the command: only the first can end in order, and needs its workers to
    do so. And a loader's worker that is left alone with a full pipe would wait for ever, since nobody reads the pipe
    and nobody closes it: the workers themselves hold its reading end open.

    Args:
        worker_id: what torch hands to a ``worker_init_fn``.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
