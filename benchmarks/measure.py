"""What the benchmarks share: fresh processes that take turns, ratios with their spread, and how a run is timed."""

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
Figures = dict[str, float]


class SteadyRate(Callback):
    """Times the training steps of ``fusion-pl fit``, without start-up, validation and the first steps of each epoch.

    Args:
        skip: steps at the start of an epoch that do not count: the loader's head start, the allocator's first rounds.
    """

    def __init__(self, skip: int = 5) -> None:
        self.clock = StepClock(skip)

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.clock.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.clock.step(len(batch.ids))
        SteadyRate.figures = self.clock.figures()


class StepClock:
    """Counts samples and seconds of all steps but the first few of each epoch; both sides of a comparison use it."""

    def __init__(self, skip: int = 5) -> None:
        self.skip = skip
        self.every = 10 if torch.cuda.is_available() else 1
        self.samples = 0
        self.seconds = 0.0
        self.start()

    def start(self) -> None:
        """Begin an epoch."""
        self.steps, self.pending, self.last = 0, 0, None

    def step(self, samples: int) -> None:
        """End a step. A GPU is waited for when the clock starts and at every tenth step after that."""
        self.steps += 1
        if self.last is not None:
            self.pending += samples
        if self.steps < self.skip or (self.steps - self.skip) % self.every:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.last is not None:
            self.samples += self.pending
            self.seconds += now - self.last
        self.last, self.pending = now, 0

    def figures(self) -> Figures:
        """Return samples a second, and the process's highest memory so far in MB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"samples/s": self.samples / max(self.seconds, 1e-9), "peak MB": peak}


def fit(arguments: Sequence[str], skip: int = 5) -> Figures:
    """Run ``fusion-pl fit`` as the command does, progress bar and logs included, and time its steps."""
    from fusion_pl.cli.run import run

    timed = ["--trainer.callbacks+=benchmarks.measure.SteadyRate", f"--trainer.callbacks.skip={skip}"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        code = run("fit", [*arguments, *timed])
    if code:
        raise SystemExit(code)
    return SteadyRate.figures


def trainer(folder: Path | str, epochs: int) -> str:
    """Return the part of a configuration that says how long to train, on a CPU, and where to write."""
    return f"""trainer:
  accelerator: cpu
  max_epochs: {epochs}
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {{save_dir: {folder}, name: "", default_hp_metric: false}}
"""


def tell(figures: Figures) -> None:
    """Hand figures to the process that takes turns."""
    print(RESULT + json.dumps(figures), flush=True)


def take_turns(contestants: dict[str, Sequence[str]], rounds: int) -> dict[str, list[Figures]]:
    """Run each command in a fresh process, one after the other, ``rounds`` times: A B A B …

    Args:
        contestants: name -> arguments of ``python``.
        rounds: at least 3 for a spread.
    """
    found: dict[str, list[Figures]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, command in contestants.items():
            ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
            lines = [line for line in ran.stdout.splitlines() if line.startswith(RESULT)]
            if ran.returncode or not lines:
                said = ran.stdout[-2000:] + ran.stderr[-4000:]
                raise SystemExit(f"{name} failed with exit code {ran.returncode}:\n{said}")
            found[name].append(json.loads(lines[-1].removeprefix(RESULT)))
            figures = ", ".join(f"{value:.4g} {key}" for key, value in found[name][-1].items())
            print(f"round {turn + 1}, {name}: {figures} (load {os.getloadavg()[0]:.1f})", flush=True)
    return found


def compare(case: str, ours: list[Figures], theirs: list[Figures], bar: float, key: str = "samples/s") -> list[str]:
    """Return a table's row: both medians, the median and range of the ratio of each round, the bar, the verdict."""
    ratios = [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]
    middle = statistics.median(ratios)
    return [
        case,
        f"{statistics.median(one[key] for one in theirs):.4g}",
        f"{statistics.median(one[key] for one in ours):.4g}",
        f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{bar:.2f}",
        "yes" if middle >= bar else "NO",
    ]


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, and the same as Markdown for README.md."""
    table = Table(title=title, caption=machine())
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)
    for line in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(line) + " |")


def machine() -> str:
    """Say on what and with which versions this runs."""
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


def timed(command: Sequence[str], stop: str = "") -> float:
    """Return the seconds a command takes, or takes until it prints a line that holds ``stop``."""
    start, said = time.perf_counter(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if stop and stop in line:
                seconds = time.perf_counter() - start
                process.terminate()
                return seconds
    if stop:
        raise SystemExit(f"{' '.join(command)} never said {stop!r}:\n{said[-3000:]}")
    return time.perf_counter() - start
