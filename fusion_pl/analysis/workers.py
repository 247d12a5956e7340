"""A process pool for runs. If the process of a run dies, the other runs continue."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

import torch

from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.processes import call_pickled, init_worker

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
        with _block_sigint():
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


@contextlib.contextmanager
def _block_sigint() -> Iterator[None]:
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


def _run_jobs(job: Job, number: int, pool_size: int, connection: Connection) -> None:
    _configure_process(number, pool_size)
    while True:
        run = connection.recv()
        try:
            outcome: RunResult | Exception = job(run)
        except Exception as error:  # raised again by WorkerPool.wait
            outcome = error
        connection.send(outcome)


def _configure_process(number: int, pool_size: int) -> None:
    """Assign one GPU or a share of the CPU cores to this process; the parent process handles Ctrl-C."""
    init_worker()
    # Data loader workers use the default start method: spawned workers would import all libraries again for the
    # training, validation and test of each run.
    multiprocessing.set_start_method(None, force=True)
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    devices = devices or [str(index) for index in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    elif pool_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // pool_size))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
