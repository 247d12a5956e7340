"""Signals and lifetime of child processes, such as workers of a loader."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def init_worker(worker_id: int = 0) -> None:
    """Ignore Ctrl-C, which the parent process handles, and exit when the parent process ends.

    A terminal sends Ctrl-C to every process of the command, but the parent needs its workers for an orderly end. A
    worker whose parent was killed would wait forever on a full pipe: the workers themselves keep its reading end open.
    ``worker_id``, which torch passes to a ``worker_init_fn``, is not used.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, name="exit-with-parent", daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
