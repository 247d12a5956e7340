"""Samples per second of fusion-pl's loader, from files and from shards, and of decoding alone by Pillow and soundfile.

All read the same files in a ``DataLoader`` with the same number of workers. Decode-only returns arrays; fusion-pl also
checks, resizes, pads and collates a batch with its masks. The shards are shuffled in windows of 4 of about 20.

    python -m benchmarks.loading [--rounds 5] [--workers 1]
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Measurements, print_table, ratio_row, run_alternating, send
from fusion_pl.data import ManifestData, ShardData
from fusion_pl.data.shard_writer import ShardWriter
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText

BATCH, TARGET = 32, 0.9
KINDS = ("decode", "fusion-pl", "shards")
# case -> (image suffix, image size in pixels, audio suffix, seconds, sample rate, rows)
CASES = {
    "28 px PNG, 0.5 s 8 kHz WAV": (".png", 28, ".wav", 0.5, 8000, 1600),
    "224 px JPEG, 2 s 16 kHz FLAC": (".jpg", 224, ".flac", 2.0, 16000, 480),
}


class DecodeOnly(Dataset):
    """Decoded files of the rows."""

    def __init__(self, folder: Path, rows: list[dict[str, str]]) -> None:
        self.folder, self.rows = folder, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        row = self.rows[index]
        with Image.open(self.folder / row["image"]) as image:
            pixels = np.asarray(image)
        return pixels, soundfile.read(self.folder / row["audio"], dtype="float32")[0]


def write(folder: Path, case: str) -> list[dict[str, str]]:
    """Write random files and their manifest."""
    image_suffix, size, audio_suffix, seconds, rate, count = CASES[case]
    rng = np.random.default_rng(0)
    rows = []
    for row in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image = coarse.resize((size, size), Image.Resampling.BICUBIC)  # smooth, like photographs
        (image if size > 28 else image.convert("L")).save(folder / f"{row}{image_suffix}")
        soundfile.write(folder / f"{row}{audio_suffix}", rng.normal(0, 0.1, int(seconds * rate)), rate)
        record = {"text": f"sample number {row}", "image": f"{row}{image_suffix}", "audio": f"{row}{audio_suffix}"}
        rows.append(record | {"label": str(row % 10), "split": "val" if row < 20 else "train"})
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def make_loader(folder: Path, case: str, workers: int, only: str) -> DataLoader:
    """Return one of the three loaders over the training rows."""
    if only == "decode":
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
        generator = torch.Generator().manual_seed(0)
        return DataLoader(
            dataset=DecodeOnly(folder, rows), batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=list,
            persistent_workers=workers > 0, generator=generator,
        )  # fmt: skip
    if only == "shards":
        data: ManifestData = ShardData(str(folder / "shards"), shuffle_window=4, batch_size=BATCH, num_workers=workers)
    else:
        data = ManifestData(manifest=str(folder / "manifest.csv"), batch_size=BATCH, num_workers=workers)
    return set_up(data, case).train_dataloader()


def set_up(data: ManifestData, case: str) -> ManifestData:
    """Give the data its processors."""
    _, size, _, seconds, rate, _ = CASES[case]
    encoders = {
        "text": TinyText(),
        "image": TinyImage(image_size=size, channels=3 if size > 28 else 1),
        "audio": TinyAudio(rate=rate, max_seconds=seconds),
    }
    data.processors = {name: encoder.processor for name, encoder in encoders.items()}
    data.setup("fit")
    return data


def measure(case: str, folder: Path, workers: int, only: str) -> Measurements:
    """Time the second epoch: workers are started, and files are in the page cache."""
    loader = make_loader(folder, case, workers, only)
    for _ in loader:
        pass
    start, samples = time.perf_counter(), 0
    for batch in loader:
        samples += len(batch) if only == "decode" else len(batch.ids)
    return {"samples/s": samples / (time.perf_counter() - start)}


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--folder", type=Path, help="of the files (internal)")
    parser.add_argument("--only", choices=KINDS, help="one run in this process (internal)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only:
        send(measure(args.case, args.folder, args.workers, args.only))
        return
    rows = []
    for case in [args.case] if args.case else CASES:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), case)
            data = set_up(ManifestData(str(Path(name) / "manifest.csv")), case)
            size = sum(path.stat().st_size for path in Path(name).iterdir())
            ShardWriter(data, Path(name) / "shards", size // 20, shuffle=True).write()
            command = ["-m", "benchmarks.loading", "--case", case, "--folder", name, "--workers", str(args.workers)]
            commands = {only: [*command, "--only", only] for only in KINDS}
            results = run_alternating(commands, args.rounds)
        name = f"{case}, {args.workers} workers"
        rows.append(ratio_row(name, results["fusion-pl"], results["decode"], TARGET))
        rows.append(ratio_row(f"{name}, shards and files", results["shards"], results["fusion-pl"], TARGET))
    header = ["case", "reference, samples/s", "fusion-pl, samples/s", "ratio (range)", "target", "met"]
    print_table("loading", header, rows)


if __name__ == "__main__":
    main()
