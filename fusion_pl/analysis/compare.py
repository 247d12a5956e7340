"""``fusion-pl compare``: train every head and every input alone with the same budget, and tell which is best."""

from __future__ import annotations

import multiprocessing
import multiprocessing.sharedctypes
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fusion_pl import __version__
from fusion_pl.analysis.plan import Trial, plan, read_base
from fusion_pl.analysis.report import write
from fusion_pl.analysis.result import Result
from fusion_pl.analysis.trial import RESULT, run_trial
from fusion_pl.processes import follow_parent
from fusion_pl.types import UserError

ABOUT = """Train heads and single inputs with the same configuration over several seeds, and report which is best.
Options of fusion-pl fit (--trainer.max_epochs 5) go to every run. Repeat the command to go on where it stopped."""
PASSED = (
    "--model",
    "--data",
    "--trainer",
    "--early_stopping",
    "--checkpoint",
    "--optimizer",
    "--threads",
    "--keep_memory",
    "--cache",
)
ATTEMPTS = 2  # of a run whose process died


def compare_command(arguments: list[str]) -> None:
    """Run ``fusion-pl compare``.

    Args:
        arguments: what follows the verb on the command line.

    Raises:
        UserError: for a mistake that concerns all runs; a failing head gets a row with its reason.
    """
    given, extra = read_arguments(arguments)
    base = read_base(given.config)
    trials = plan(base, given.fusions, given.inputs, given.seeds, extra)
    output = Path(given.output)
    output.mkdir(parents=True, exist_ok=True)
    results = Comparison(trials, output, extra, given.jobs).run()
    write(list(results.values()), tuple(base["model"]["encoders"]), output, given.config)
    failed = [result for result in results.values() if result.status == "failed"]
    if len(failed) == len(results):
        raise UserError(f"every run failed; the first because: {failed[0].reason} (logs: {output}/runs/*/log.txt)")
    Console().print(f"Report: {output}/report.html, {output}/report.md, {output}/results.csv", highlight=False)


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (fusion-pl compare --help)")


def read_arguments(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Return the command's own options, and what goes to every ``fusion-pl fit``.

    Raises:
        UserError: for an option that neither knows, or a value out of its range.
    """
    parser = _Parser(prog="fusion-pl compare", description=ABOUT)
    parser.add_argument("--config", required=True, help="the configuration that all runs share")
    parser.add_argument("--fusions", default="all", help="all, or heads by name or class path: Concat,LowRank (all)")
    parser.add_argument("--inputs", default="each,all", help="all: heads on all inputs; each, subsets: Concat on fewer")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, whose spread is reported (3)")
    parser.add_argument("--output", required=True, help="folder of the runs and of the report")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each on a GPU of its own (1)")
    given, extra = parser.parse_known_args(arguments)
    for option in extra:
        if option.startswith("-") and not option.startswith(PASSED):
            raise UserError(f"there is no option {option} (fusion-pl compare --help)")
    if given.seeds < 1 or given.jobs < 1:
        raise UserError(f"--seeds is {given.seeds} and --jobs {given.jobs}, expected at least 1")
    return given, extra


class Comparison:
    """The runs of a comparison: what is done, what is under way, what is left.

    Args:
        trials: to run.
        output: folder of the comparison.
        extra: further arguments of every ``fusion-pl fit``.
        jobs: processes.
    """

    def __init__(self, trials: Sequence[Trial], output: Path, extra: Sequence[str], jobs: int) -> None:
        self.trials, self.output, self.extra, self.jobs = trials, output, list(extra), jobs
        self.results = {trial: found for trial in trials if (found := self._finished(trial)) is not None}
        self.before = len(self.results)
        self.attempts = dict.fromkeys(trials, 0)
        self.started = time.monotonic()

    def folder(self, trial: Trial) -> Path:
        """Return where a trial's files are."""
        return self.output / "runs" / trial.name

    def _finished(self, trial: Trial) -> Result | None:
        """Return the result of an earlier run of the same trial; what failed, or cannot be read, is run again."""
        path = self.folder(trial) / RESULT
        if not path.is_file():
            return None
        try:
            result = Result.read(path)
        except UserError:
            return None
        return result if result.status == "done" and result.config == trial.key else None

    def run(self) -> dict[Trial, Result]:
        """Run what is left; whatever happens, what is finished stays on the disk."""
        console = Console(stderr=True)
        with Live(self.table(), console=console, refresh_per_second=1, transient=True) as live:
            while left := [trial for trial in self.trials if trial not in self.results]:
                try:
                    self._work(left, live, console)
                except BrokenProcessPool:
                    self._blame(left)
                except KeyboardInterrupt:
                    for child in multiprocessing.active_children():
                        child.terminate()
                    console.print(
                        f"Stopped after {len(self.results)} of {len(self.trials)} runs; repeat the command to go on"
                    )
                    raise
        console.print(self.table())
        return self.results

    def _work(self, left: Sequence[Trial], live: Live, console: Console) -> None:
        context = multiprocessing.get_context("spawn")
        turn = context.Value("i", 0)
        with ProcessPoolExecutor(self.jobs, context, _prepare, (turn, self.jobs)) as pool:
            waiting: dict[Future[Result], Trial] = {}
            queue = list(left)
            while queue or waiting:
                while queue and len(waiting) < self.jobs:
                    trial = queue.pop(0)
                    self.attempts[trial] += 1
                    waiting[pool.submit(run_trial, trial, self.folder(trial), self.extra)] = trial
                done, _ = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    trial = waiting.pop(future)
                    result = self.results[trial] = future.result()
                    if not console.is_terminal:
                        console.print(f"{trial.name}: {_said(result)} ({len(self.results)} of {len(self.trials)})")
                live.update(self.table())

    def _blame(self, left: Sequence[Trial]) -> None:
        """A process died without a word, for want of memory mostly: give up what was under way too often."""
        for trial in left:
            if trial not in self.results and self.attempts[trial] >= ATTEMPTS:
                name = trial.fusion.rpartition(".")[2]
                reason = "its process was killed, for want of memory perhaps: lower --data.batch_size, or --jobs"
                self.results[trial] = Result(
                    name, trial.fusion, trial.inputs, trial.seed, "failed", reason, __version__, trial.key, ""
                )

    def table(self) -> Table:
        """Return the state of things: a row for each head and set of inputs."""
        finished = len(self.results) - self.before
        seconds = time.monotonic() - self.started
        left = (len(self.trials) - len(self.results)) * seconds / finished if finished else None
        title = f"{len(self.results)} of {len(self.trials)} runs" + (f", {left / 60:.0f} min left" if left else "")
        table = Table("head", "inputs", "runs", "validation", "state", title=title)
        rows: dict[tuple[str, tuple[str, ...]], list[Trial]] = {}
        for trial in self.trials:
            rows.setdefault((trial.fusion, trial.inputs), []).append(trial)
        for (fusion, inputs), trials in rows.items():
            results = [self.results[trial] for trial in trials if trial in self.results]
            found = [result.validation for result in results if result.validation is not None]
            mean = f"{100 * sum(found) / len(found):.1f} %" if found else ""
            wrong = next((result.reason for result in results if result.status == "failed"), "")
            state = wrong or ("done" if len(results) == len(trials) else "")
            table.add_row(
                fusion.rpartition(".")[2], " + ".join(inputs), f"{len(results)} of {len(trials)}", mean, state
            )
        return table


def _said(result: Result) -> str:
    return result.reason if result.validation is None else f"{100 * result.validation:.1f} % on validation"


def _prepare(turn: multiprocessing.sharedctypes.Synchronized[int], jobs: int) -> None:
    """Give each process one GPU, or its share of the cores; Ctrl-C is the first process's to handle."""
    follow_parent()
    # The loader's workers start as in any other process: as children of a spawned one they would be spawned too, and
    # import everything anew for each run's training, validation and test.
    multiprocessing.set_start_method(None, force=True)
    with turn.get_lock():
        number = turn.value
        turn.value += 1
    devices = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    devices = devices or [str(one) for one in range(torch.cuda.device_count())]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    elif jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
