"""``fusion-pl compare``, which trains every head and every single input with one configuration and reports the best."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fusion_pl.analysis.arguments import read_arguments
from fusion_pl.analysis.folder import read_comparable_results
from fusion_pl.analysis.keys import table_hash
from fusion_pl.analysis.plan import BASELINE_HEAD, Run, make_run, plan_runs, read_base_config
from fusion_pl.analysis.report import write_report
from fusion_pl.analysis.result import RunResult
from fusion_pl.analysis.run import CACHE_FOLDER, CACHE_LIMIT_GIB
from fusion_pl.analysis.scheduler import Scheduler
from fusion_pl.analysis.summary import Summary
from fusion_pl.cli.checks import task_class
from fusion_pl.cli.parsing import parse
from fusion_pl.cli.run import command_parser
from fusion_pl.data.feature_shards import folder_bytes
from fusion_pl.messages import escape_unprintable
from fusion_pl.tasks import Task
from fusion_pl.types import UserError


def compare_command(arguments: list[str]) -> None:
    """Run ``fusion-pl compare`` with the arguments that follow the subcommand.

    Raises:
        UserError: If the arguments are invalid or every run fails. A single failed run gets a row with its reason.
    """
    options, extra = read_arguments(arguments)
    base = read_base_config(options.config)
    all_inputs = tuple(base["model"]["encoders"])
    output = Path(options.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output: {output} is a file, expected a folder")
    task = _check_fit_arguments(options.config, extra)
    table = table_hash(base["data"], extra)
    runs = plan_runs(base, options.fusions, options.inputs, options.seeds, extra, table, task)
    output.mkdir(parents=True, exist_ok=True)
    results = Scheduler(runs, output, extra, options.jobs).execute()

    def matching_run(result: RunResult) -> Run | None:
        if not set(result.inputs) <= set(all_inputs):
            return None
        return make_run(base, result.class_path, result.inputs, result.seed, extra, table)

    comparable, excluded = read_comparable_results(output, matching_run)
    summary = write_report(comparable, all_inputs, output, options.config, excluded)
    if all(result.status == "failed" for result in results.values()):
        reason = next(iter(results.values())).reason
        raise UserError(f"every run failed; the first because: {reason} (logs: {output}/runs/*/log.txt)")
    lines = [excluded] if excluded else []
    if size := folder_bytes(output / CACHE_FOLDER):
        lines.append(
            f"Cache: {output / CACHE_FOLDER} contains {size / 2**30:.2f} GiB of outputs of frozen encoders (at most "
            f"{CACHE_LIMIT_GIB:g} GiB unless --cache_limit is given); delete it after the last comparison"
        )
    lines += best_head_lines(summary)
    lines.append(f"Report: {output}/report.html, {output}/report.md, {output}/results.csv")
    for line in lines:
        # Soft-wrapped, so that commands and paths can be copied. Names may contain brackets, which are not markup.
        Console().print(escape_unprintable(line), highlight=False, markup=False, soft_wrap=True)


def best_head_lines(summary: Summary) -> list[str]:
    """Return the best head with its test score, and the command that trains it."""
    if (best := summary.best) is None:
        return [summary.headline()]
    seeds = f"mean ± sd over {best.test_score.count} seeds" if best.test_score.count > 1 else "1 seed"
    samples = f"n = {best.test_set_sizes[0]:,} test samples"
    return [
        f"Best on validation: {best.label}, test {best.names[0]} {best.test_score.format_percent()} % "
        f"({seeds}, {samples})",
        f"Train it: {best.runs[min(best.runs)].command}",
    ]


def _check_fit_arguments(config: str, extra: list[str]) -> type[Task]:
    """Parse the arguments of the runs once, so that errors are reported before the first run, and return the task.

    Raises:
        UserError: If an argument is invalid, or a run would use more than one device.
    """
    arguments = ["--model.fusion", BASELINE_HEAD, "--config", config, *extra]
    parsed = parse(command_parser("fit"), arguments)
    devices = parsed.trainer.devices
    if isinstance(devices, str):  # "2", "0,3" or "auto"
        devices = int(devices) if devices.isdigit() else [part for part in devices.split(",") if part]
    count = devices if isinstance(devices, int) else len(devices)
    if count > 1:
        raise UserError(
            f"trainer.devices asks for {count} devices: set it to 1, since compare measures each run in one process, "
            "and pass --jobs for several runs at the same time, on separate devices"
        )
    return task_class(parsed)
