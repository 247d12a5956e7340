"""Padding of training batches of a long-tailed data set, with and without ``data.bucket_by_length``.

Texts and recordings have log-normal lengths, cut off by the encoder at 20 times the median; one input per model.
Padding is the part of the padded tokens, or audio samples, of an epoch that is not real. Also measured: the seconds
until the lengths of all rows are known.

    python -m benchmarks.padding [--texts 20000] [--recordings 5000] [--batch_size 32] [--sigma 1]
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.measure import print_table
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyAudio, TinyText
from fusion_pl.processors import Processor

RATE = 8000  # Hz
MEDIAN_CHARACTERS, MEDIAN_SECONDS = 60, 0.5


def write(folder: Path, name: str, rows: int, sigma: float) -> str:
    """Write a table with one input, and its files."""
    rng = np.random.default_rng(0)
    factors = rng.lognormal(0, sigma, rows)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([name, "label", "split"])
        for row, factor in enumerate(factors.tolist()):
            if name == "audio":
                cell = f"{row}.wav"
                samples = rng.normal(0, 0.1, int(factor * MEDIAN_SECONDS * RATE) + 1)
                soundfile.write(folder / cell, samples, RATE)
            else:
                cell = "x" * (int(factor * MEDIAN_CHARACTERS) + 1)
            writer.writerow([cell, row % 2, "val" if row % 100 == 0 else "train"])
    return str(folder / f"{name}.csv")


def measure(path: str, name: str, processor: Processor, batch_size: int, bucketed: bool) -> tuple[int, float, float]:
    """Return the number of samples of an epoch, its padding, and the seconds until the lengths are known."""
    data = ManifestData(path, batch_size=batch_size, num_workers=0, bucket_by_length=bucketed)
    data.processors = {name: processor}
    data.setup("fit")
    start = time.perf_counter()
    assert (data.train_sampling is not None) == bucketed
    seconds = time.perf_counter() - start
    samples, real, padded = 0, 0, 0
    for batch in data.train_dataloader():
        inputs = batch.inputs[name]
        first, real_values = ("ids", inputs["mask"]) if name == "text" else ("samples", inputs["lengths"])
        samples, real, padded = samples + len(batch.ids), real + int(real_values.sum()), padded + inputs[first].numel()
    return samples, 1 - real / padded, seconds


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--recordings", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--sigma", type=float, default=1.0, help="standard deviation of the logarithm of the length")
    args = parser.parse_args()
    processors = {
        "text": TinyText(max_tokens=20 * MEDIAN_CHARACTERS).processor,
        "audio": TinyAudio(rate=RATE, max_seconds=20 * MEDIAN_SECONDS).processor,
    }
    lines = []
    for name, rows in (("text", args.texts), ("audio", args.recordings)):
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), name, rows, args.sigma)
            for bucketed in (False, True):
                samples, padding, seconds = measure(path, name, processors[name], args.batch_size, bucketed)
                lines.append([name, str(bucketed), f"{samples:,}", f"{padding:.1%}", f"{seconds:.2f}"])
    header = ["input", "bucket_by_length", "samples per epoch", "padding", "seconds for the lengths"]
    print_table("padding", header, lines)


if __name__ == "__main__":
    main()
