"""Shared by the benchmarks: alternating fresh processes, ratios with their range, and timers of training steps."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "lightning", "transformers")
RESULT = "benchmark result: "
Measurements = dict[str, float]


class StepTimerCallback(Callback):
    """Time the training steps of ``fusion-pl fit``, without start-up, validation and the first steps of each epoch.

    Args:
        skip: warm-up steps at the start of each epoch, which are not counted.
    """

    measurements: Measurements

    def __init__(self, skip: int = 5) -> None:
        self.timer = StepTimer(skip)

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.timer.start_epoch()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.timer.step(len(batch.ids))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        StepTimerCallback.measurements = self.timer.measurements()


class StepTimer:
    """Count samples and seconds of all training steps but the first few of each epoch.

    Args:
        skip: warm-up steps at the start of each epoch, which are not counted.
    """

    def __init__(self, skip: int = 5) -> None:
        self.skip = skip
        self.has_gpu = torch.cuda.is_available()  # asking costs 0.1 ms
        self.interval = 10 if self.has_gpu else 1  # steps per synchronisation
        self.samples = 0
        self.seconds = 0.0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Start an epoch."""
        self.steps, self.pending, self.last = 0, 0, None

    def step(self, samples: int) -> None:
        """Count a finished step; a GPU is synchronised after the warm-up and every tenth step after it."""
        self.steps += 1
        if self.last is not None:
            self.pending += samples
        if self.steps < self.skip or (self.steps - self.skip) % self.interval:
            return
        if self.has_gpu:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.last is not None:
            self.samples += self.pending
            self.seconds += now - self.last
        self.last, self.pending = now, 0

    def measurements(self) -> Measurements:
        """Return samples per second and the peak memory of the process in MB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"samples/s": self.samples / max(self.seconds, 1e-9), "peak MB": peak}


def fit(arguments: Sequence[str], skip: int = 5) -> Measurements:
    """Run ``fusion-pl fit``, including its progress bar and logs, and time its steps."""
    from fusion_pl.cli.run import run

    callback = ["--trainer.callbacks+=benchmarks.measure.StepTimerCallback", f"--trainer.callbacks.skip={skip}"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = run("fit", [*arguments, *callback])
    if code:
        raise SystemExit(code)
    return StepTimerCallback.measurements


def trainer_yaml(folder: Path | str, epochs: int) -> str:
    """Return the ``trainer`` section of a configuration: CPU, number of epochs, logger."""
    return f"""trainer:
  accelerator: cpu
  max_epochs: {epochs}
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {{save_dir: {folder}, name: "", default_hp_metric: false}}
"""


def send(measurements: Measurements) -> None:
    """Print measurements for the process that called ``run_alternating``."""
    print(RESULT + json.dumps(measurements), flush=True)


def run_alternating(commands: dict[str, Sequence[str]], rounds: int) -> dict[str, list[Measurements]]:
    """Run each command in a new process, alternating, ``rounds`` times: A B A B …

    Args:
        commands: name -> arguments of ``python``.
        rounds: at least 3 for a range.
    """
    results: dict[str, list[Measurements]] = {name: [] for name in commands}
    for index in range(rounds):
        for name, command in commands.items():
            ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
            lines = [line for line in ran.stdout.splitlines() if line.startswith(RESULT)]
            if ran.returncode or not lines:
                output = ran.stdout[-2000:] + ran.stderr[-4000:]
                raise SystemExit(f"{name} failed with exit code {ran.returncode}:\n{output}")
            results[name].append(json.loads(lines[-1].removeprefix(RESULT)))
            text = ", ".join(f"{value:.4g} {key}" for key, value in results[name][-1].items())
            print(f"round {index + 1}, {name}: {text} (load {os.getloadavg()[0]:.1f})", flush=True)
    return results


def ratio_row(
    case: str,
    results: list[Measurements],
    reference: list[Measurements],
    target: float | None = None,
    key: str = "samples/s",
) -> list[str]:
    """Return a table row: both medians, median and range of the ratios per round, and the target, if there is one."""
    ratios = [one[key] / other[key] for one, other in zip(results, reference, strict=True)]
    median = statistics.median(ratios)
    return [
        case,
        f"{statistics.median(one[key] for one in reference):.4g}",
        f"{statistics.median(one[key] for one in results):.4g}",
        f"{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *([] if target is None else [f"{target:.2f}", "yes" if median >= target else "NO"]),
    ]


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, and again as Markdown for README.md."""
    table = Table(title=title, caption=machine())
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)
    for line in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(line) + " |")


def machine() -> str:
    """Describe the hardware and the versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores {cpu}, {memory:.0f} GiB{gpu}; Python {platform.python_version()}, {versions}; "
        f"{torch.get_num_threads()} torch threads; load {os.getloadavg()[0]:.1f}"
    )


def time_command(command: Sequence[str], stop: str = "") -> float:
    """Return the seconds until a command ends, or until it prints a line that contains ``stop``."""
    start, output = time.perf_counter(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if stop and stop in line:
                seconds = time.perf_counter() - start
                process.terminate()
                return seconds
    if stop:
        raise SystemExit(f"{' '.join(command)} did not print {stop!r}:\n{output[-3000:]}")
    return time.perf_counter() - start
