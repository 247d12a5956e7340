"""``fusion-pl compare``: train every head and every input alone with the same budget, and tell which is best."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fusion_pl.analysis.content import table_of
from fusion_pl.analysis.folder import kept, result_of
from fusion_pl.analysis.plan import BASELINE, Trial, plan, read_base, trial_of
from fusion_pl.analysis.report import write
from fusion_pl.analysis.result import Result
from fusion_pl.analysis.trial import CACHE, CACHE_LIMIT, outline, run_trial
from fusion_pl.analysis.workers import Died, Workers
from fusion_pl.cli.parse_errors import guess
from fusion_pl.cli.parsing import parse, refuse_repeated
from fusion_pl.cli.run import parser_of
from fusion_pl.messages import printable
from fusion_pl.training.cache import held
from fusion_pl.types import UserError

ABOUT = """Train heads and single inputs with the same configuration over several seeds, and report which is best.
Options of fusion-pl fit (--trainer.max_epochs 5) go to every run. Repeat the command to go on where it stopped."""
PASSED = (
    "model",
    "data",
    "trainer",
    "early_stopping",
    "checkpoint",
    "optimizer",
    "threads",
    "keep_memory",
    "cache",
    "cache_limit",
)


def compare_command(arguments: list[str]) -> None:
    """Run ``fusion-pl compare``.

    Args:
        arguments: what follows the subcommand on the command line.

    Raises:
        UserError: for a mistake that concerns all runs; a failing head gets a row with its reason.
    """
    given, extra = read_arguments(arguments)
    base = read_base(given.config)
    names = tuple(base["model"]["encoders"])
    output = Path(given.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file, expected a folder")
    # What no run takes is told once.
    config = parse(parser_of("fit"), ["--model.fusion", BASELINE, "--config", given.config, *extra])
    if (count := _count(config.trainer.devices)) > 1:
        raise UserError(
            f"trainer.devices asks for {count} devices: set it to 1, since compare measures each run in one process, "
            "and give --jobs for several runs at the same time, each on a device of its own"
        )
    table = table_of(base["data"], extra)
    trials = plan(base, given.fusions, given.inputs, given.seeds, extra, table)
    output.mkdir(parents=True, exist_ok=True)
    results = Comparison(trials, output, extra, given.jobs).run()

    def expected(result: Result) -> Trial | None:
        known = all(name in names for name in result.inputs)
        return trial_of(base, result.class_path, result.inputs, result.seed, extra, table) if known else None

    found = kept(output, expected)
    asked = {(trial.fusion, trial.inputs, trial.seed) for trial in trials}
    earlier = [one for one in found.same if (one.class_path, one.inputs, one.seed) not in asked]
    write([*results.values(), *earlier], names, output, given.config, str(found))
    failed = [result for result in results.values() if result.status == "failed"]
    if len(failed) == len(results):
        raise UserError(f"every run failed; the first because: {failed[0].reason} (logs: {output}/runs/*/log.txt)")
    console = Console()
    if found.others:
        console.print(str(found), highlight=False, markup=False)
    if size := held(output / CACHE):
        console.print(
            f"Cache: {output / CACHE} holds {size / 2**30:.2f} GiB of frozen encoders' outputs (at most "
            f"{CACHE_LIMIT:g} GiB, unless --cache_limit says another number); delete it when no more heads are to come",
            highlight=False,
            markup=False,
        )
    report = f"Report: {output}/report.html, {output}/report.md, {output}/results.csv"
    console.print(report, highlight=False, markup=False)


def _count(devices: list[int] | str | int) -> int:
    if isinstance(devices, int):
        return devices
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    return len([one for one in devices.split(",") if one] if isinstance(devices, str) else devices)  # auto, "0,3", [0]


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (fusion-pl compare --help)")


def compare_parser() -> ArgumentParser:
    """Return the parser of the command's own options."""
    parser = _Parser(prog="fusion-pl compare", description=ABOUT, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="the configuration that all runs share")
    parser.add_argument("--fusions", default="all", help="all, or heads by name or class path: Concat,LowRank (all)")
    parser.add_argument("--inputs", default="each,all", help="all: heads on all inputs; each, subsets: Concat on fewer")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, whose spread is reported (3)")
    parser.add_argument("--output", required=True, help="folder of the runs and of the report")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each on a GPU of its own (1)")
    return parser


def read_arguments(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Return the command's own options, and what goes to every ``fusion-pl fit``.

    Raises:
        UserError: for an option that neither knows, or a value out of its range.
    """
    refuse_repeated(arguments, repeatable=())
    parser = compare_parser()
    given, extra = parser.parse_known_args(arguments)
    own = [option.removeprefix("--") for option in parser._option_string_actions]
    for option in extra:
        name = option.removeprefix("--").partition("=")[0]
        if option.startswith("--") and name.partition(".")[0] not in PASSED:
            near = guess(name, [*own, *PASSED], "--")
            raise UserError(f"there is no option --{name}{near} (fusion-pl compare --help)")
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
        self.results = {trial: found for trial in trials if (found := result_of(output, trial)) is not None}
        self.before = len(self.results)
        self.started = time.monotonic()

    def run(self) -> dict[Trial, Result]:
        """Run what is left; whatever happens, what is finished stays on the disk."""
        console = Console(stderr=True)
        job = partial(run_trial, output=self.output, extra=self.extra)
        try:
            with (
                Live(self.table(), console=console, refresh_per_second=1, transient=True) as live,
                Workers(job, self.jobs) as workers,
            ):
                self._run(workers, live, console)
        except KeyboardInterrupt:
            console.print(f"Stopped after {len(self.results)} of {len(self.trials)} runs; repeat the command to go on")
            raise
        console.print(self.table())
        return self.results

    def _run(self, workers: Workers, live: Live, console: Console) -> None:
        """Run what is left. What dies is run once more with nothing beside it: only then it is surely to blame.

        The system kills the largest process when memory runs out, whichever it was that asked for too much.
        """
        queue = [trial for trial in self.trials if trial not in self.results]
        suspects: list[Trial] = []
        alone: Trial | None = None
        while queue or suspects or workers.busy:
            while queue and workers.free:
                workers.start(queue.pop(0))
            if suspects and not workers.busy:
                alone = suspects.pop(0)
                workers.start(alone)
            for trial, said in workers.wait(seconds=1):
                found = result_of(self.output, trial) or said  # it may have died when all was done
                if isinstance(found, Died):
                    if trial != alone:
                        suspects.append(trial)
                        continue
                    found = _died(trial, found)
                self.results[trial] = found
                if not console.is_terminal:
                    line = f"{trial.name}: {_said(found)} ({len(self.results)} of {len(self.trials)})"
                    console.print(printable(line), markup=False)
            live.update(self.table())

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
            counts = sorted({result.validation_samples or 0 for result in results if result.status == "done"})
            mean = f"{100 * sum(found) / len(found):.1f} % of {' to '.join(map(str, counts))}" if found else ""
            wrong = next((result.reason for result in results if result.status == "failed"), "")
            state = wrong or ("done" if len(results) == len(trials) else "")
            cells = (fusion.rpartition(".")[2], " + ".join(inputs), f"{len(results)} of {len(trials)}", mean, state)
            table.add_row(*(Text(printable(cell)) for cell in cells))  # a name or a reason is no markup
        return table


def _said(result: Result) -> str:
    return (
        result.reason
        if result.validation is None
        else f"{100 * result.validation:.1f} % of {result.validation_samples} validation samples"
    )


def _died(trial: Trial, how: Died) -> Result:
    reason = (
        f"its process died ({how.how}), and again with no other run beside it: for want of memory perhaps, so lower "
        "--data.batch_size"
    )
    return Result(**outline(trial), status="failed", reason=reason)
