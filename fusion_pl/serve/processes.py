"""Serve a checkpoint with this process, or with several workers."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE

from fusion_pl.messages import join_names
from fusion_pl.serve.app import create_app
from fusion_pl.serve.metrics import SHARED_FOLDER
from fusion_pl.serve.service import ServeOptions, Service
from fusion_pl.serve.supervisor import print_line, run_workers, server_configuration, stop_with_parent
from fusion_pl.training.interrupt import StoppedBySignal
from fusion_pl.types import UserError


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        UserError: if the address or the port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host} is not an address: give 127.0.0.1, or 0.0.0.0 for all addresses") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        port_hint, host_hint = "another --port, or 0 for any free one", "--host 127.0.0.1, or 0.0.0.0 for all addresses"
        hint = host_hint if error.errno == errno.EADDRNOTAVAIL else port_hint
        raise UserError(f"cannot listen on port {port} of {host} ({error.strerror}): give {hint}") from error
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
    server = uvicorn.Server(server_configuration(create_app(service)))
    bound.listen()
    _announce("Serving", bound, service.info, options)
    try:
        server.run([bound])
    except StoppedBySignal:  # uvicorn raises the signal again after it has stopped
        return 0
    return 0 if server.started else 2


def _run_workers(options: ServeOptions, bound: socket.socket, workers: int) -> int:
    service = Service(replace(options, device="cpu"))  # raises an error in one sentence, before workers start
    info, examples = service.info, service.examples
    del service
    gc.collect()  # the model, which the workers read again
    with tempfile.TemporaryDirectory(prefix="fusion-pl-serve-") as folder:
        # A worker that is replaced has the same checkpoint and examples as the others, also if the files are replaced.
        copy = Path(folder, Path(options.checkpoint).name)
        shutil.copyfile(options.checkpoint, copy)
        threads = max(1, torch.get_num_threads() // workers)
        os.environ[SHARED_FOLDER] = folder
        try:
            _announce(f"Starting {workers} processes that serve", bound, info, options)
            worker = replace(options, checkpoint=str(copy), threads=threads, examples=examples)
            return run_workers(partial(build_app, worker), bound, workers)
        finally:
            del os.environ[SHARED_FOLDER]


def build_app(options: ServeOptions) -> Starlette:
    """Return the application of a worker; on an error of the user, end the process with one sentence."""
    stop_with_parent()
    try:
        return create_app(Service(options))
    except UserError as error:
        print_line(f"fusion-pl: error: {error}")
        sys.exit(STARTUP_FAILURE)


def _announce(start: str, bound: socket.socket, info: dict[str, Any], options: ServeOptions) -> None:
    host, port = bound.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print_line(f"{start} {info['checkpoint']['file']} on {address} (inputs: {join_names(info['inputs'])})")
    if options.page:
        print_line(f"The page to try the model: {address}/")
    if options.window is not None:
        print_line(f"The drift of the served samples: {address}/drift")
    if options.token is None and host not in ("127.0.0.1", "::1"):
        print_line("Everybody who can reach this address can send requests: --token_file requires a token.")
    print_line("Ctrl-C stops the server after it has answered the requests that it has accepted.")
