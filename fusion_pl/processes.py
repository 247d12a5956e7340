"""How child processes, such as data loader workers, handle signals and the end of their parent process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def init_worker(worker_id: int = 0) -> None:
    """Let this process ignore Ctrl-C, which its parent process handles, and exit when the parent process ends.

    A terminal sends Ctrl-C to every process, but the parent process needs its workers to finish the step. If the parent
    process were killed, a worker would block forever on a full pipe, because the other workers keep the pipe open.
    """
    del worker_id
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, name="exit-with-parent", daemon=True).start()


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
