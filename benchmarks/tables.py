"""Time, memory and speed of tables of 10^3 to 10^6 rows with a text, an image path and an audio path per row.

Measured in a new process per line: the seconds from the construction of the data module until a loader worker has
loaded the first row; the memory above that of a process that only imported the package, and its peak; the private
memory of the worker after 2,000 rows (compare it with the smallest table); rows per second in the main process. No
media files are opened.

    python -m benchmarks.tables [--rows 1000 10000 100000 1000000] [--formats csv parquet arrow] [--drawn] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Measurements, print_table, run_alternating, send
from fusion_pl.data import ManifestData
from fusion_pl.processors.base import Processor

WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine")
FORMATS = ("csv", "jsonl", "parquet", "arrow")
READ_ROWS = 2000
SPEED_ROWS = 20_000


class CellProcessor(Processor):
    """Return cells unchanged, without opening files."""

    def open(self, value, training=False):
        return value

    def placeholder(self):
        return ""

    def __call__(self, values, training=False):
        return {"lengths": torch.tensor([len(value) for value in values])}


class PathProcessor(CellProcessor):
    """Return absolute paths."""

    reads_files = True


class WorkerMemory(Dataset):
    """Private memory of the loader worker in MB: item 0 after the first sample, item 1 after 2,000 samples."""

    def __init__(self, samples: Dataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> float:
        rows = random.Random(0).sample(range(len(self.samples)), min(READ_ROWS, len(self.samples)))
        for row in rows if index else [0]:
            self.samples[row]
        return memory("Private_Dirty")  # without the memory map of a file, which is shared


def memory(field: str) -> float:
    """Return a field of the memory summary of this process in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def peak_memory() -> float:
    """Return the peak memory of this process in MB; ``ru_maxrss`` would include that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def write(path: Path, rows: int, drawn: bool) -> None:
    """Write a table."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    rng = random.Random(0)
    columns = {
        "id": [f"sample{row:07}" for row in range(rows)],
        "text": [" ".join(rng.choices(WORDS, k=8)) for _ in range(rows)],
        "image": [f"images/{row % 1000:03}/{row:07}.jpg" for row in range(rows)],
        "audio": [f"audio/{row % 1000:03}/{row:07}.wav" for row in range(rows)],
        "label": [WORDS[row // 5 % 10] for row in range(rows)],
    }
    if not drawn:
        columns["split"] = [("train", "val", "train", "test", "train")[row % 5] for row in range(rows)]
    table = pa.table(columns)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in table.to_pylist())


def measure(path: str, start_method: str) -> Measurements:
    """Load the first row of the training split in a worker."""
    baseline = memory("Rss")
    start = time.perf_counter()
    data = ManifestData(path, check_files=False, num_workers=1)
    data.processors = {"text": CellProcessor(), "image": PathProcessor(), "audio": PathProcessor()}
    data.setup("fit")
    samples = data.samples("train")
    loader = DataLoader(
        WorkerMemory(samples), batch_size=None, num_workers=1, multiprocessing_context=start_method, prefetch_factor=1
    )
    iterator = iter(loader)
    next(iterator)
    seconds = time.perf_counter() - start
    used, peak = memory("Rss") - baseline, peak_memory() - baseline
    worker = float(next(iterator))
    rows = [random.Random(1).randrange(len(samples)) for _ in range(SPEED_ROWS)]
    start = time.perf_counter()
    for row in rows:
        samples[row]
    speed = SPEED_ROWS / (time.perf_counter() - start)
    return {"seconds": seconds, "MB": used, "peak MB": peak, "worker MB": worker, "rows/s": speed}


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["csv", "parquet", "arrow"])
    parser.add_argument("--drawn", action="store_true", help="tables without a split column, so that splits are drawn")
    parser.add_argument("--start_methods", nargs="+", default=["fork", "spawn"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs=2, metavar=("PATH", "START_METHOD"), help="one run in this process (internal)")
    args = parser.parse_args()
    if args.only:
        send(measure(*args.only))
        return
    lines = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            commands = {}
            for suffix in args.formats:
                path = Path(folder) / f"table.{suffix}"
                write(path, rows, args.drawn)
                for method in args.start_methods:
                    commands[f"{suffix}, {method}"] = ["-m", "benchmarks.tables", "--only", str(path), method]
            for name, results in run_alternating(commands, args.rounds).items():
                medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
                lines.append([f"{rows:,}", name, *(f"{value:,.3g}" for value in medians.values())])
    header = ["rows", "format, start of workers", "seconds to the first row", "MB", "peak MB", "worker MB", "rows/s"]
    print_table("tables", header, lines)


if __name__ == "__main__":
    main()
