"""Commands in new processes, which are forked from a process that has imported the libraries.

A new interpreter takes five seconds for these imports. Tests of the imports themselves, of Lightning's launcher and of
the state of a process that a console script starts use ``subprocess``.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

import pytest


def forkserver_context():
    """Return a multiprocessing context whose processes have imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.conftest", "fusion_pl.cli.run", "torch.utils.tensorboard"])
    with pytest.MonkeyPatch.context() as patch:  # the server imports ``tests``
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def fork_spawned_processes(patch):
    """Let processes that multiprocessing starts with a new interpreter be forked from the server."""
    get_context = multiprocessing.get_context
    server = forkserver_context()
    patch.setattr(
        multiprocessing, "get_context", lambda method=None: server if method == "spawn" else get_context(method)
    )


class Command:
    """``fusion-pl`` in a new process and a new session.

    Args:
        arguments: words after ``fusion-pl``.
        output: files to which stdout and stderr are appended; or the terminal, which the process controls.
        folder: its current folder; by default, that of this process.
        environment: variables that differ from those of this process.
        code: Python code that is executed in place of ``fusion-pl``, with the arguments in ``sys.argv[1:]``.
    """

    def __init__(self, arguments, output, folder=".", environment=(), code=None):
        variables = {"PYTHONPATH": os.pathsep.join(sys.path)} | dict(os.environ) | dict(environment)
        context = forkserver_context()
        ready, is_ready = context.Pipe(duplex=False)
        output = str(output) if isinstance(output, str) else list(map(str, output))
        target = [list(map(str, arguments)), output, os.path.abspath(folder), variables, code, is_ready]
        self.process = context.Process(target=_run, args=target)
        self.process.start()
        is_ready.close()
        with contextlib.suppress(EOFError):
            ready.recv()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=300):
        """Return the exit code, which is negative after a signal that the process does not handle."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired("fusion-pl", timeout)
        return self.process.exitcode

    def send_signal(self, signum):
        if self.process.exitcode is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.process.kill()
        self.process.join()


def run_command(*arguments, folder=".", environment=(), processes=1, code=None):
    """Run ``fusion-pl`` and return the exit code of its first process and its output.

    Args:
        arguments: words after ``fusion-pl``.
        folder: its current folder.
        environment: variables that differ from those of this process.
        processes: number of processes, which are started as ``torchrun`` and SLURM do; the output is that of all.
        code: Python code that is executed in place of ``fusion-pl``.
    """
    with tempfile.TemporaryDirectory() as temporary:
        output = [str(Path(temporary, name)) for name in ("stdout", "stderr")]
        commands = []
        try:
            for variables in _ranks(processes):
                command = Command(arguments, output, folder, dict(environment) | variables, code)
                commands.append(command)
            codes = [command.wait() for command in commands]
        finally:
            for command in commands:
                command.kill()
        stdout, stderr = (Path(name).read_text() for name in output)
    return subprocess.CompletedProcess(arguments, codes[0], stdout, stderr)


def _ranks(processes):
    """Return the environment variables of each process."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "NODE_RANK": "0"}
    return [shared | {"LOCAL_RANK": str(rank)} for rank in range(processes)]


def _run(arguments, output, folder, variables, code, is_ready):
    """Give this process the state of a new interpreter, and run the command or the code."""
    if isinstance(output, str):
        os.login_tty(os.open(output, os.O_RDWR))
    else:
        os.setsid()
        os.dup2(sys.stdin.fileno(), 0)  # /dev/null
        for number, path in enumerate(output, start=1):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has opened another file
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path[:0] = [folder, *variables["PYTHONPATH"].split(os.pathsep)]
    sys.argv = ["fusion-pl", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # of the workers of a data loader
    is_ready.send(None)
    is_ready.close()
    try:
        if code is None:
            runpy.run_module("fusion_pl", run_name="__main__", alter_sys=True)
        else:
            exec(code, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
