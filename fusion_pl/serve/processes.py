"""The processes of a server: one, or several workers that listen on the same socket and are replaced if they end."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from rich.console import Console
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from fusion_pl.messages import escape_unprintable, join_names
from fusion_pl.processes import call_pickled
from fusion_pl.serve.app import create_app
from fusion_pl.serve.metrics import SHARED_FOLDER
from fusion_pl.serve.service import ServeOptions, Service
from fusion_pl.types import UserError

MAX_CONNECTIONS = 900  # per process; usual systems allow a process 1,024 open files
SECONDS_TO_STOP = 30  # after which accepted requests are abandoned
SECONDS_TO_ANSWER = 60  # after which a worker that does not answer the supervisor is replaced


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        UserError: if the address or the port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host} is no address of this machine ({error.strerror}): give 127.0.0.1") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        reason = f"cannot listen on port {port} of {host} ({error.strerror})"
        raise UserError(f"{reason}: give another --port, or 0 for any free one") from error
    bound.set_inheritable(True)
    return bound


def run_server(options: ServeOptions, bound: socket.socket, workers: int) -> int:
    """Serve until Ctrl-C or SIGTERM, and answer the requests that are accepted by then.

    Returns:
        The exit code: 0, or 2 if a worker could not start.

    Raises:
        UserError: if the checkpoint cannot be served.
    """
    if workers > 1:
        return _run_workers(options, bound, workers)
    service = Service(options)
    for signum in (signal.SIGINT, signal.SIGTERM):  # uvicorn stops at the first one, and raises it again at the end
        signal.signal(signum, lambda *_: None)
    _announce(bound, service.info, workers)
    uvicorn.Server(_configuration(create_app(service))).run([bound])
    return 0


def _run_workers(options: ServeOptions, bound: socket.socket, workers: int) -> int:
    info = Service(replace(options, device="cpu")).info  # raises an error in one sentence, before workers start
    gc.collect()  # the model, which the workers read again
    with tempfile.TemporaryDirectory(prefix="fusion-pl-serve-") as folder:
        # A worker that is replaced reads the same checkpoint as the others, also if the file was replaced meanwhile.
        copy = Path(folder, Path(options.checkpoint).name)
        shutil.copyfile(options.checkpoint, copy)
        os.environ[SHARED_FOLDER] = folder
        try:
            threads = max(1, torch.get_num_threads() // workers)
            build = partial(build_app, replace(options, checkpoint=str(copy), threads=threads))
            # Pickled, so that a new worker answers the supervisor before it imports torch, which takes seconds.
            start_worker = partial(call_pickled, pickle.dumps(build))
            supervisor = Supervisor(_configuration(start_worker, factory=True, workers=workers), [bound])
            _announce(bound, info, workers)
            supervisor.run()
        finally:
            del os.environ[SHARED_FOLDER]
    return 2 if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes) else 0


class Supervisor(Multiprocess):
    """Start the workers, and replace a worker that ends; says so on the terminal."""

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that ended or do not answer."""
        before = [process.pid for process in self.processes]
        super().keep_subprocess_alive()
        for old, process in zip(before, self.processes, strict=False):
            if process.pid != old:
                _print(f"The worker with the process id {old} ended; {process.pid} replaces it.")


def build_app(options: ServeOptions) -> Starlette:
    """Return the application of a worker; on an error of the user, end the process with one sentence."""
    threading.Thread(target=_stop_with_parent, name="stop-with-parent", daemon=True).start()
    try:
        return create_app(Service(options))
    except UserError as error:
        _print(f"fusion-pl: error: {error}")
        sys.exit(STARTUP_FAILURE)


def _stop_with_parent() -> None:
    """Stop gracefully if the supervisor was killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _configuration(app: Callable[..., Any], factory: bool = False, workers: int = 1) -> uvicorn.Config:
    """Return the configuration of uvicorn, without logs of requests."""
    return uvicorn.Config(
        app,
        factory=factory,
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


def _announce(bound: socket.socket, info: dict[str, Any], workers: int) -> None:
    host, port = bound.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    processes = "" if workers == 1 else f", {workers} processes"
    _print(f"Serving {info['checkpoint']['file']} on {address} (inputs: {join_names(info['inputs'])}{processes})")
    _print("Ctrl-C stops the server after it has answered the requests that it has accepted.")


def _print(line: str) -> None:
    Console(stderr=True).print(escape_unprintable(line), highlight=False, markup=False, soft_wrap=True)
