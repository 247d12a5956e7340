"""How processes import libraries, and how child processes handle signals and the end of their parent process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_abandoned: list[threading.Thread] = []


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import libraries without garbage collection, which finds nothing in them and takes a fifth of the time.

    Later collections, also those of forked processes, leave out everything that exists when the context ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def call_pickled(function: bytes, *arguments: Any) -> Any:
    """Unpickle a function, which imports its module, and return its result; the target of a spawned process."""
    with without_garbage_collection():
        unpickled = pickle.loads(function)
    return unpickled(*arguments)


def abandon(thread: threading.Thread) -> None:
    """Note that nothing waits for a daemon thread any more, although it may still read from a broken connection."""
    _abandoned[:] = [one for one in (*_abandoned, thread) if one.is_alive()]


def exit_without_abandoned_threads(code: int) -> None:
    """End this process if an abandoned thread is still running after a second, otherwise do nothing.

    Python's own exit would abort the process when such a thread returns from a library's native code.
    """
    for thread in _abandoned:
        thread.join(1)
        if thread.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


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
