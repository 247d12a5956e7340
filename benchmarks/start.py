"""How long the command takes to answer, to reach the first training step, and how much memory a run takes.

The first step is that of ``fusion-pl fit`` on a small manifest with the tiny encoders, from the shell's point of view:
interpreter, imports, parsing, data check, one validation batch to be sure, then the step. Memory is the highest of the
main process in the ``overhead`` benchmark, beside the plain loop's.

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
from benchmarks.measure import compare, show, take_turns, timed

FIRST = "first step done"
ANSWERS = {"--help": ["--help"], "--version": ["--version"], "a wrong subcommand": ["trian"]}
ANSWER_BAR = 0.3
SHOWN = 12
CASE = "28 px PNG, 0.5 s 8 kHz WAV"


class FirstStep(Callback):
    """Says when the first training step is done."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 1:
            print(f"\n{FIRST}", flush=True)


def configure(folder: str) -> None:
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
  callbacks: [{{class_path: benchmarks.start.FirstStep}}]
  logger:
    class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args: {{save_dir: {folder}, name: "", default_hp_metric: false}}
""",
        encoding="utf-8",
    )


def slowest_imports() -> list[tuple[str, float]]:
    """Return the top-level packages that take the longest to import, with what they import, in seconds."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import fusion_pl.cli.run"],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = {}
    for line in ran.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            name = parts[2].strip()
            found[name] = int(parts[1]) / 1e6
    return sorted(found.items(), key=lambda one: -one[1])


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="leave out the comparison of memory, which trains")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    rows = []
    for case, arguments in ANSWERS.items():
        seconds = [timed([sys.executable, "-m", "fusion_pl", *arguments]) for _ in range(given.rounds)]
        middle = statistics.median(seconds)
        rows.append([case, _spread(seconds), f"{ANSWER_BAR}", "yes" if middle <= ANSWER_BAR else "NO"])
    imports = [timed([sys.executable, "-c", "import fusion_pl.cli.run"]) for _ in range(given.rounds)]
    rows.append(["of which imports: fusion_pl.cli.run", _spread(imports), "", ""])
    bare = [timed([sys.executable, "-c", "import lightning.pytorch.cli"]) for _ in range(given.rounds)]
    rows.append(["of which imports: lightning.pytorch.cli alone", _spread(bare), "", ""])
    with tempfile.TemporaryDirectory() as folder:
        configure(folder)
        command = [sys.executable, "-m", "fusion_pl", "fit", "--config", f"{folder}/config.yaml"]
        steps = [timed(command, stop=FIRST) for _ in range(given.rounds)]
    rows.insert(3, ["command to first step", _spread(steps), "", ""])
    show("start", ["what", "seconds, median (range)", "bar", "met"], rows)
    show("slowest imports", ["module", "seconds with what it imports"],
         [[name, f"{seconds:.2f}"] for name, seconds in slowest_imports()[:SHOWN]])  # fmt: skip
    if not given.no_memory:
        run = ["-m", "benchmarks.overhead", "--case", "tiny, batch 32", "--threads", str(given.threads), "--only"]
        found = take_turns({"plain": [*run, "plain"], "fit": [*run, "fit"]}, 3)
        row = compare("tiny, batch 32", found["fit"], found["plain"], 0.0, "peak MB")
        show("memory", ["case", "plain loop, MB", "fit, MB", "ratio (range)"], [row[:4]])


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
