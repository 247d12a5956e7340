"""Time of short commands, time to the first training step, and peak memory of a run.

The first step is that of ``fusion-pl fit`` on a small manifest with the tiny encoders, measured from the start of the
process: interpreter, imports, parsing, data check, sanity check, then the step. Memory is the peak of the main process
in the ``overhead`` benchmark, for ``fit`` and for the plain loop.

    python -m benchmarks.start [--rounds 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lightning.pytorch import Callback

from benchmarks.loading import write
from benchmarks.measure import print_table, ratio_row, run_alternating, time_command

FIRST_STEP = "first step done"
COMMANDS = {"--help": ["--help"], "--version": ["--version"], "a wrong subcommand": ["trian"]}
TARGET = 0.3  # seconds per command
MAX_IMPORTS = 12
CASE = "28 px PNG, 0.5 s 8 kHz WAV"


class ReportFirstStep(Callback):
    """Print a line after the first training step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 1:
            print(f"\n{FIRST_STEP}", flush=True)


def write_config(folder: str) -> None:
    """Write data and configuration."""
    write(Path(folder), CASE)
    (Path(folder) / "config.yaml").write_text(
        f"""
model:
  encoders:
    text: {{class_path: fusion_pl.encoders.TinyText}}
    image: {{class_path: fusion_pl.encoders.TinyImage, init_args: {{channels: 1}}}}
    audio: {{class_path: fusion_pl.encoders.TinyAudio}}
  fusion: {{class_path: fusion_pl.fusion.Concat}}
data: {{class_path: fusion_pl.data.ManifestData, init_args: {{manifest: {folder}/manifest.csv}}}}
trainer:
  accelerator: cpu
  callbacks: [{{class_path: benchmarks.start.ReportFirstStep}}]
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {{save_dir: {folder}, name: "", default_hp_metric: false}}
""",
        encoding="utf-8",
    )


def slowest_imports() -> list[tuple[str, float]]:
    """Return the modules that take the longest to import, with their own imports, in seconds."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import fusion_pl.cli.run"],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds: dict[str, float] = {}
    for line in ran.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            seconds[parts[2].strip()] = int(parts[1]) / 1e6
    return sorted(seconds.items(), key=lambda item: -item[1])


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="skip the comparison of memory, which trains")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows = []
    for case, arguments in COMMANDS.items():
        seconds = [time_command([sys.executable, "-m", "fusion_pl", *arguments]) for _ in range(args.rounds)]
        met = "yes" if statistics.median(seconds) <= TARGET else "NO"
        rows.append([case, _median_and_range(seconds), f"{TARGET}", met])
    imports = [time_command([sys.executable, "-c", "import fusion_pl.cli.run"]) for _ in range(args.rounds)]
    rows.append(["of which imports: fusion_pl.cli.run", _median_and_range(imports), "", ""])
    lightning = [time_command([sys.executable, "-c", "import lightning.pytorch.cli"]) for _ in range(args.rounds)]
    rows.append(["of which imports: lightning.pytorch.cli alone", _median_and_range(lightning), "", ""])
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder)
        command = [sys.executable, "-m", "fusion_pl", "fit", "--config", f"{folder}/config.yaml"]
        steps = [time_command(command, stop=FIRST_STEP) for _ in range(args.rounds)]
    rows.insert(3, ["command to first step", _median_and_range(steps), "", ""])
    print_table("start", ["what", "seconds, median (range)", "target", "met"], rows)
    slowest = [[name, f"{seconds:.2f}"] for name, seconds in slowest_imports()[:MAX_IMPORTS]]
    print_table("slowest imports", ["module", "seconds with its imports"], slowest)
    if not args.no_memory:
        run = ["-m", "benchmarks.overhead", "--case", "tiny, batch 32", "--threads", str(args.threads), "--only"]
        results = run_alternating({"plain": [*run, "plain"], "fit": [*run, "fit"]}, 3)
        row = ratio_row("tiny, batch 32", results["fit"], results["plain"], key="peak MB")
        print_table("memory", ["case", "plain loop, MB", "fit, MB", "ratio (range)"], [row])


def _median_and_range(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
