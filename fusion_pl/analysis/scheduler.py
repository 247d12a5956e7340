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

from fusion_pl.analysis.folder import RESULT_FILE, load_finished_result, run_path
from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.analysis.run import execute_run, identity_fields
from fusion_pl.analysis.workers import ProcessFailure, WorkerPool
from fusion_pl.messages import escape_unprintable


class Scheduler:
    """Execute the runs that have no stored result yet.

    Args:
        runs: Planned runs.
        output: Folder of the comparison.
        extra: Further arguments of every ``fusion-pl fit``.
        jobs: Number of runs at the same time, each in a separate process.
    """

    def __init__(self, runs: Sequence[Run], output: Path, extra: Sequence[str], jobs: int) -> None:
        self.runs, self.output, self.extra, self.jobs = runs, output, list(extra), jobs
        self.results = {run: result for run in runs if (result := load_finished_result(output, run)) is not None}
        self.num_resumed = len(self.results)
        self.start_time = time.monotonic()

    def execute(self) -> dict[Run, RunResult]:
        """Execute all runs; each result is stored as soon as its run finishes."""
        console = Console(stderr=True)
        job = partial(execute_run, output=self.output, extra=self.extra)
        try:
            with (
                Live(self.progress_table(), console=console, refresh_per_second=1, transient=True) as live,
                WorkerPool(job, self.jobs) as pool,
            ):
                self._execute_queue(pool, live, console)
        except KeyboardInterrupt:
            console.print(f"Stopped after {len(self.results)} of {len(self.runs)} runs; repeat the command to resume")
            raise
        console.print(self.progress_table())
        return self.results

    def _execute_queue(self, pool: WorkerPool, live: Live, console: Console) -> None:
        """Execute the queued runs. If the process of a run dies, repeat the run while no other run is active.

        If memory runs out, the system kills the largest process, even if another process used too much.
        """
        queue = [run for run in self.runs if run not in self.results]
        retries: list[Run] = []
        exclusive: Run | None = None
        while queue or retries or pool.busy:
            while queue and pool.num_free_processes:
                pool.start(queue.pop(0))
            if retries and not pool.busy:
                exclusive = retries.pop(0)
                pool.start(exclusive)
            for run, outcome in pool.wait(seconds=1.0):
                result = (
                    load_finished_result(self.output, run) or outcome
                )  # a process may die after it stored its result
                if isinstance(result, ProcessFailure):
                    if run != exclusive:
                        retries.append(run)
                        continue
                    reason = (
                        f"its process died ({result.cause}), and died again while no other run was active: if memory "
                        "ran out, lower --data.batch_size"
                    )
                    result = RunResult(**identity_fields(run), status="failed", reason=reason)
                    result.write(run_path(self.output, run) / RESULT_FILE)
                self.results[run] = result
                if not console.is_terminal:
                    line = f"{run.name}: {_outcome_text(result)} ({len(self.results)} of {len(self.runs)})"
                    console.print(escape_unprintable(line), markup=False)
            live.update(self.progress_table())

    def progress_table(self) -> Table:
        """Return the progress table: one row per head and set of inputs."""
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
            scores = [result.validation_score for result in results if result.validation_score is not None]
            counts = sorted({result.validation_samples or 0 for result in results if result.status == "done"})
            mean = f"{100 * fmean(scores):.1f} % of {' to '.join(map(str, counts))}" if counts else ""
            error = next((result.reason for result in results if result.status == "failed"), "")
            state = error or ("done" if len(results) == len(runs) else "")
            cells = (class_path.rpartition(".")[2], " + ".join(inputs), f"{len(results)} of {len(runs)}", mean, state)
            table.add_row(*(Text(escape_unprintable(cell)) for cell in cells))  # Text: names and reasons are not markup
        return table


def _outcome_text(result: RunResult) -> str:
    if result.validation_score is None:
        return result.reason
    return f"{100 * result.validation_score:.1f} % of {result.validation_samples} validation samples"
