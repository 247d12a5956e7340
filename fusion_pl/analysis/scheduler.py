"""Execute the runs of a comparison in parallel, and show their progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fusion_pl.analysis.folder import RESULT, finished_result, run_path
from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.analysis.run import execute, identity
from fusion_pl.analysis.workers import ProcessDeath, WorkerPool
from fusion_pl.messages import printable


class Scheduler:
    """Execute the runs that have no stored result yet, in ``jobs`` processes.

    ``output`` is the folder of the comparison, ``extra`` further arguments of every ``fusion-pl fit``.
    """

    def __init__(self, runs: Sequence[Run], output: Path, extra: Sequence[str], jobs: int) -> None:
        self.runs, self.output, self.extra, self.jobs = runs, output, list(extra), jobs
        self.results = {run: result for run in runs if (result := finished_result(output, run)) is not None}
        self.num_resumed = len(self.results)
        self.start_time = time.monotonic()

    def execute(self) -> dict[Run, RunResult]:
        """Execute all runs; each result is stored as soon as its run finishes."""
        console = Console(stderr=True)
        job = partial(execute, output=self.output, extra=self.extra)
        try:
            with (
                Live(self.progress(), console=console, refresh_per_second=1, transient=True) as live,
                WorkerPool(job, self.jobs) as pool,
            ):
                self._execute(pool, live, console)
        except KeyboardInterrupt:
            console.print(f"Stopped after {len(self.results)} of {len(self.runs)} runs; repeat the command to resume")
            raise
        console.print(self.progress())
        return self.results

    def _execute(self, pool: WorkerPool, live: Live, console: Console) -> None:
        """Execute the queue. A run whose process dies is repeated with no other run beside it.

        When memory runs out, the system kills the largest process, which may not be the one that asked for too much.
        """
        queue = [run for run in self.runs if run not in self.results]
        retries: list[Run] = []
        exclusive: Run | None = None
        while queue or retries or pool.busy:
            while queue and pool.free:
                pool.start(queue.pop(0))
            if retries and not pool.busy:
                exclusive = retries.pop(0)
                pool.start(exclusive)
            for run, outcome in pool.wait(seconds=1):
                result = finished_result(self.output, run) or outcome  # the process may die after it stored its result
                if isinstance(result, ProcessDeath):
                    if run != exclusive:
                        retries.append(run)
                        continue
                    reason = (
                        f"its process died ({result.cause}), and again with no other run beside it: if it ran out of "
                        "memory, lower --data.batch_size"
                    )
                    result = RunResult(**identity(run), status="failed", reason=reason)
                    result.write(run_path(self.output, run) / RESULT)
                self.results[run] = result
                if not console.is_terminal:
                    line = f"{run.name}: {_outcome(result)} ({len(self.results)} of {len(self.runs)})"
                    console.print(printable(line), markup=False)
            live.update(self.progress())

    def progress(self) -> Table:
        """Return a table with one row per head and set of inputs."""
        finished = len(self.results) - self.num_resumed
        seconds = time.monotonic() - self.start_time
        left = (len(self.runs) - len(self.results)) * seconds / finished if finished else None
        title = f"{len(self.results)} of {len(self.runs)} runs" + (f", {left / 60:.0f} min left" if left else "")
        table = Table("head", "inputs", "runs", "validation", "state", title=title)
        rows: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
        for run in self.runs:
            rows.setdefault((run.class_path, run.inputs), []).append(run)
        for (class_path, inputs), runs in rows.items():
            results = [self.results[run] for run in runs if run in self.results]
            accuracies = [one.validation_accuracy for one in results if one.validation_accuracy is not None]
            counts = sorted({one.validation_samples or 0 for one in results if one.status == "done"})
            mean = f"{100 * fmean(accuracies):.1f} % of {' to '.join(map(str, counts))}" if counts else ""
            error = next((result.reason for result in results if result.status == "failed"), "")
            state = error or ("done" if len(results) == len(runs) else "")
            cells = (class_path.rpartition(".")[2], " + ".join(inputs), f"{len(results)} of {len(runs)}", mean, state)
            table.add_row(*(Text(printable(cell)) for cell in cells))  # Text: names and reasons are not markup
        return table


def _outcome(result: RunResult) -> str:
    if result.validation_accuracy is None:
        return result.reason
    return f"{100 * result.validation_accuracy:.1f} % of {result.validation_samples} validation samples"
