"""Processes that run trials, so that one which dies takes no other run with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType

import torch

from fusion_pl.analysis.plan import Trial
from fusion_pl.analysis.result import Result
from fusion_pl.processes import follow_parent

NAME = "fusion-pl run"  # of the processes
SECONDS = 5.0  # in which a process that closes its connection is gone
Job = Callable[[Trial], Result]


@dataclass(frozen=True)
class Died:
    """The process of a run ended without a word.

    Attributes:
        how: by which signal or exit code.
    """

    how: str


class Workers:
    """At most so many processes at the same time; each runs trials one after the other, on a GPU of its own.

    Processes are started when they are needed and kept, since every start imports the libraries anew. Leaving the
    context kills them, whatever they are at; the loaders' workers end with them.

    Args:
        job: runs a trial; it is sent to the processes.
        jobs: processes.
    """

    def __init__(self, job: Job, jobs: int) -> None:
        self.job, self.jobs = job, jobs
        self.idle: list[_Worker] = []
        self.busy: dict[Connection, tuple[_Worker, Trial]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not those of the lists: Ctrl-C may have come while one was being started.
        ours = [process for process in multiprocessing.active_children() if process.name.startswith(NAME)]
        for process in ours:
            process.kill()
        for process in ours:
            process.join()

    @property
    def free(self) -> int:
        """How many more trials can be started now."""
        return self.jobs - len(self.busy)

    def start(self, trial: Trial) -> None:
        """Start a trial; only where one is ``free``."""
        used = {worker.number for worker in [*self.idle, *(worker for worker, _ in self.busy.values())]}
        number = min(set(range(self.jobs)) - used, default=0)
        worker = self.idle.pop() if self.idle else _Worker(self.job, number, self.jobs)
        self.busy[worker.connection] = worker, trial
        with contextlib.suppress(BrokenPipeError):  # it died while idle: its end is found by wait
            worker.connection.send(trial)

    def wait(self, seconds: float) -> list[tuple[Trial, Result | Died]]:
        """Return the trials that finished within some seconds, or whose process died.

        Raises:
            Exception: what a process could not make a result of, such as a full disk.
        """
        ended: list[tuple[Trial, Result | Died]] = []
        for connection in wait(list(self.busy), seconds):
            assert isinstance(connection, Connection)
            worker, trial = self.busy.pop(connection)
            try:
                said = connection.recv()
            except (EOFError, ConnectionResetError):
                ended.append((trial, Died(worker.end())))
                continue
            # After a kernel failed, a process can use its GPU no more: the next run would be blamed for it.
            usable = isinstance(said, Result) and not (said.status == "failed" and torch.cuda.is_available())
            if usable:
                self.idle.append(worker)
            else:
                worker.kill()
            if isinstance(said, Exception):
                raise said
            ended.append((trial, said))
        return ended


class _Worker:
    """A process, and the connection to it."""

    def __init__(self, job: Job, number: int, jobs: int) -> None:
        # Spawned: a forked process cannot use a GPU that this one has asked for.
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, job, number, jobs), name=f"{NAME} {number}")
        with _deaf_to_ctrl_c():
            self.process.start()
        theirs.close()  # so that this process is told when that one is gone

    def end(self) -> str:
        """Return how the process ended, which has closed its connection."""
        self.process.join(SECONDS)
        self.kill()
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes that a Ctrl-C cannot reach, not even while they import: they inherit what is blocked here.

    Here it comes as soon as the context is left.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # else it is started inside, and unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, job: Job, number: int, jobs: int) -> None:
    _prepare(number, jobs)
    while True:
        trial = connection.recv()
        try:
            said: Result | Exception = job(trial)
        except Exception as error:  # the command's own process tells it
            said = error
        connection.send(said)


def _prepare(number: int, jobs: int) -> None:
    """Give a process one GPU, or its share of the cores; Ctrl-C is for the command's own process to handle."""
    follow_parent()
    # The loader's workers start as in any other process: as children of a spawned one they would be spawned too, and
    # import everything anew for each run's training, validation and test.
    multiprocessing.set_start_method(None, force=True)
    devices = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    devices = devices or [str(one) for one in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    elif jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
