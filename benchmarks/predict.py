"""Rows per second of ``fusion-pl predict`` beside bare decoding and a batched forward pass, and its memory.

Speed: one process predicts the keypad data in turn with a loop over the loader and the model, and with what the command
runs, which adds probabilities, labels, the output file and its fsync. Both run in one thread, and their CPU seconds are
compared, so that other processes on the machine change little. An untrained model is as fast as a trained one.

Memory: the command predicts tables of short texts in a new process each, whose peak memory is printed.

    python -m benchmarks.predict [--rounds 5] [--rows 10000 100000 1000000]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from benchmarks.measure import machine, print_table, run_alternating, send
from benchmarks.tables import WORDS, peak_memory
from fusion_pl.cli.run import run
from fusion_pl.data import Keypad
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.fusion import Weighted
from fusion_pl.module import FusionClassifier
from fusion_pl.prediction.formats import FORMATS
from fusion_pl.prediction.options import parse_options
from fusion_pl.prediction.partial import PartialFile
from fusion_pl.prediction.rows import RowPredictor

BAR = 0.85


def save_model(path: Path, encoders: dict[str, torch.nn.Module]) -> None:
    """Save an untrained model."""
    seed_everything(0, verbose=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(FusionClassifier(encoders, Weighted, [str(digit) for digit in range(10)]))
    trainer.save_checkpoint(path)


def predict_bare(rows: RowPredictor) -> int:
    """Decode the rows and apply the model to the batches."""
    count = 0
    with torch.inference_mode():
        for batch in rows.source.data.predict_dataloader():
            count += len(rows.predictor.model(batch).logits)
    return count


def measure_speed(folder: Path, rounds: int) -> list[list[str]]:
    """Return a row of the table per format of the output."""
    data = Keypad()
    data.prepare_data()
    checkpoint = folder / "keypad.ckpt"
    save_model(checkpoint, {"text": TinyText(), "image": TinyImage(), "audio": TinyAudio()})
    torch.set_num_threads(1)
    table = []
    for suffix in FORMATS:
        output = folder / f"predictions{suffix}"
        call = ["--ckpt_path", str(checkpoint), "--output", str(output), "--data.manifest", data.manifest]
        rows = RowPredictor(parse_options([*call, "--data.num_workers", "0", "--device", "cpu"]))
        bare, whole = [], []
        for number in range(rounds + 1):
            start = time.thread_time()
            count = predict_bare(rows)
            middle = time.thread_time()
            rows.write(slice(0, None), PartialFile(folder / f"{number}{suffix}"), rows.output_format(output))
            bare.append(count / (middle - start))
            whole.append(count / (time.thread_time() - middle))
        ratios = [one / other for one, other in zip(whole[1:], bare[1:], strict=True)]  # the first round warms up
        ratio = statistics.median(ratios)
        speeds = [f"{statistics.median(values[1:]):,.0f}" for values in (bare, whole)]
        spread = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.append([suffix, *speeds, spread, f"{BAR:.2f}", "yes" if ratio >= BAR else "NO"])
    return table


def write_texts(path: Path, rows: int) -> None:
    """Write a table of short texts."""
    import pyarrow as pa
    import pyarrow.parquet

    texts = [f"{WORDS[row % 10]} {WORDS[row // 10 % 10]} {row}" for row in range(rows)]
    pyarrow.parquet.write_table(pa.table({"text": texts}), path)


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=[10**4, 10**5, 10**6])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # the memory of one table, in a new process
    arguments = parser.parse_args()
    if arguments.one:
        checkpoint, table, output = arguments.one
        options = ["--data.num_workers", "0", "--data.batch_size", "256", "--overwrite"]
        start = time.process_time()
        code = run("predict", ["--ckpt_path", checkpoint, "--data.manifest", table, "--output", output, *options])
        send({"peak MB": peak_memory(), "CPU s": time.process_time() - start})
        sys.exit(code)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.rounds:
            header = ["output", "bare rows/s", "rows/s", "ratio (range)", "bar", "met"]
            print_table(f"Speed in CPU time; {machine()}", header, measure_speed(folder, arguments.rounds))
        save_model(folder / "text.ckpt", {"text": TinyText(dim=16)})
        commands = {}
        for rows in arguments.rows:
            write_texts(folder / f"{rows}.parquet", rows)
            files = [str(folder / "text.ckpt"), str(folder / f"{rows}.parquet"), str(folder / f"{rows}.csv")]
            commands[f"{rows:,}"] = ["-m", "benchmarks.predict", "--one", *files]
        found = run_alternating(commands, 1)
        lines = [[rows, f"{one['peak MB']:.0f}", f"{one['CPU s']:.0f}"] for rows, (one,) in found.items()]
        print_table("Memory", ["rows", "peak MB", "CPU s"], lines)


if __name__ == "__main__":
    main()
