"""A process pool for runs. If the process of a run dies, the other runs continue."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait

import torch

from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.processes import block_sigint, call_pickled, share_hardware

PROCESS_NAME = "fusion-pl run"
EXIT_TIMEOUT = 5.0  # time in seconds after which a process that has closed its connection is killed
Job = Callable[[Run], RunResult]


@dataclass(frozen=True)
class ProcessFailure:
    """Outcome of a run whose process ended without a result; ``cause`` is a signal or an exit code."""

    cause: str


class WorkerPool:
    """Execute runs in a fixed number of processes, each on its own GPU.

    Processes start on demand and are reused, because each new process imports the libraries again. Leaving the context
    kills them and their data loader workers.

    Args:
        job: Function that executes a run; it must be picklable.
        size: Maximum number of processes.
    """

    def __init__(self, job: Job, size: int) -> None:
        self.job, self.size = job, size
        self.idle: list[_Worker] = []
        self.busy: dict[Connection, tuple[_Worker, Run]] = {}

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        # All child processes, not only idle and busy: Ctrl-C may interrupt the start of a process.
        processes = [process for process in multiprocessing.active_children() if process.name == PROCESS_NAME]
        for process in processes:
            process.kill()
        for process in processes:
            process.join()

    @property
    def num_free_processes(self) -> int:
        """Number of runs that can be started now."""
        return self.size - len(self.busy)

    def start(self, run: Run) -> None:
        """Start a run; requires ``num_free_processes > 0``."""
        used = {worker.number for worker in [*self.idle, *(worker for worker, _ in self.busy.values())]}
        number = min(set(range(self.size)) - used, default=0)
        worker = self.idle.pop() if self.idle else _Worker(self.job, number, self.size)
        self.busy[worker.connection] = worker, run
        with contextlib.suppress(BrokenPipeError):  # the process died while idle; wait reports it
            worker.connection.send(run)

    def wait(self, seconds: float) -> list[tuple[Run, RunResult | ProcessFailure]]:
        """Wait up to ``seconds``, and return the runs that finished or whose process died.

        Raises:
            Exception: If a process could not store a result, for example because the disk is full.
        """
        finished: list[tuple[Run, RunResult | ProcessFailure]] = []
        for connection in wait(list(self.busy), seconds):
            assert isinstance(connection, Connection)
            worker, run = self.busy.pop(connection)
            try:
                outcome = connection.recv()
            except (EOFError, ConnectionResetError):
                finished.append((run, ProcessFailure(worker.exit_cause())))
                continue
            if isinstance(outcome, Exception):
                raise outcome
            if torch.cuda.is_available() and outcome.reason:  # after a failed kernel, a process cannot use its GPU
                worker.kill()
            else:
                self.idle.append(worker)
            finished.append((run, outcome))
        return finished


class _Worker:
    def __init__(self, job: Job, number: int, pool_size: int) -> None:
        # Spawned: a forked process cannot use a GPU that this process has initialised.
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.connection, child_connection = context.Pipe()
        run_jobs = pickle.dumps(partial(_run_jobs, job, number, pool_size))
        self.process = context.Process(target=call_pickled, args=(run_jobs, child_connection), name=PROCESS_NAME)
        with block_sigint():
            self.process.start()
        child_connection.close()  # so that the connection closes when the process ends

    def exit_cause(self) -> str:
        """Return the signal or exit code of the process, after it has closed its connection."""
        self.process.join(EXIT_TIMEOUT)
        self.kill()
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _run_jobs(job: Job, number: int, pool_size: int, connection: Connection) -> None:
    share_hardware(number, pool_size)
    while True:
        run = connection.recv()
        try:
            outcome: RunResult | Exception = job(run)
        except Exception as error:  # raised again by WorkerPool.wait
            outcome = error
        connection.send(outcome)
