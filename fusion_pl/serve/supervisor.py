"""Processes that listen on one socket and are replaced if they end; imports no torch, which takes seconds."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from functools import partial
from socket import socket
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from rich.console import Console
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from fusion_pl.messages import escape_unprintable
from fusion_pl.processes import call_pickled
from fusion_pl.serve.metrics import SHARED_FOLDER

MAX_CONNECTIONS = 900  # per process; usual systems allow a process 1,024 open files
SECONDS_TO_STOP = 30  # after which accepted requests are abandoned
SECONDS_TO_ANSWER = 60  # after which a worker that does not answer the supervisor is replaced


def run_workers(build_app: Callable[[], Any], bound: socket, workers: int) -> int:
    """Serve with several processes until Ctrl-C or SIGTERM.

    Args:
        build_app: function without arguments that returns the application; called in each worker.
        bound: socket of the server.
        workers: number of processes.

    Returns:
        The exit code: 0, or 2 if a worker could not start.
    """
    # Pickled, so that a new worker answers the supervisor before it imports what the function needs.
    configuration = server_configuration(partial(call_pickled, pickle.dumps(build_app)), workers)
    supervisor = Supervisor(configuration, [bound])
    supervisor.run()
    return 2 if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes) else 0


def server_configuration(app: Callable[..., Any], workers: int = 1) -> uvicorn.Config:
    """Return the configuration of uvicorn, without logs of requests; with several workers, ``app`` builds one."""
    return uvicorn.Config(
        app,
        factory=workers > 1,
        workers=workers,
        http="h11",  # limits the size of headers; httptools does not
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
        timeout_worker_healthcheck=SECONDS_TO_ANSWER,
    )


class Supervisor(Multiprocess):
    """Start the workers, and replace a worker that ends."""

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that ended or do not answer, and say so on the terminal."""
        before = [process.pid for process in self.processes]
        for process in self.processes:
            process.child_conn.close()  # the copy of this process, so that the pipe to a worker ends with the worker
        super().keep_subprocess_alive()
        for old, process in zip(before, self.processes, strict=False):
            if process.pid != old:
                if SHARED_FOLDER in os.environ:  # its gauges are left out of the sums from now on
                    mark_process_dead(old)  # type: ignore[no-untyped-call]
                print_line(f"The worker with the process id {old} ended; {process.pid} replaces it.")


def stop_with_parent() -> None:
    """Stop this worker gracefully if the supervisor is killed."""
    threading.Thread(target=_wait_for_parent, name="stop-with-parent", daemon=True).start()


def _wait_for_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def print_line(line: str) -> None:
    """Print a line for the operator of the server."""
    Console(stderr=True).print(escape_unprintable(line), highlight=False, markup=False, soft_wrap=True)
