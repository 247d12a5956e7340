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
from multiprocessing import resource_tracker
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


@contextmanager
def block_sigint() -> Iterator[None]:
    """Block SIGINT while a process starts: it inherits the block, so that Ctrl-C cannot interrupt its imports.

    The parent process receives the signal when the context ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing would start it below, and unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def share_hardware(number: int, num_processes: int, use_gpus: bool = True) -> None:
    """Assign one GPU or a share of the CPU cores to this process; the parent process handles Ctrl-C.

    Args:
        number: number of this process, from 0.
        num_processes: number of processes.
        use_gpus: whether GPUs are used if there are any.
    """
    import torch

    init_worker()
    # Data loader workers use the default start method: spawned workers would import all libraries again for the
    # training, validation and test of each run.
    multiprocessing.set_start_method(None, force=True)
    if use_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        devices = [device for device in visible if device not in {"", "-1"}]  # -1 = none
        devices = devices or [str(index) for index in range(torch.cuda.device_count())]
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    has_gpu = use_gpus and torch.cuda.device_count() > 0  # there may be none although the variable has some
    if not has_gpu and num_processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // num_processes))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def num_cores() -> int:
    """Return the number of CPU cores that this process may use, which a cluster limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
