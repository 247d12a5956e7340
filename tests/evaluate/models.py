"""Trained models, and the command as a user runs it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pl import FusionClassifier
from fusion_pl.__main__ import main
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Concat
from fusion_pl.tasks import MultiClass, MultiLabel, Ordinal
from tests.test_module import quiet_trainer

WORDS = ["red", "green", "blue"]
TASKS = {"MultiClass": MultiClass, "Ordinal": Ordinal, "MultiLabel": MultiLabel}
SPOILT = "s3"  # speaker


def write_table(path, task="MultiClass", rows=480, spoilt=SPOILT, seed=0):
    """Two texts that name the label, some of them missing; those of one speaker mostly name another label."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label", "split", "speaker", "age", "note"])
        for row in range(rows):
            speaker, label = f"s{rng.integers(6)}", int(rng.integers(3))
            shown = label if speaker != spoilt or row % 3 == 0 else (label + 1) % 3
            texts = [f"{WORDS[shown]} {'word ' * int(rng.integers(1, 9))}{rng.integers(40)}" for _ in range(2)]
            texts[row % 2] = "" if row % 7 == 0 else texts[row % 2]
            name = {"MultiClass": "xyz"[label], "Ordinal": str(label), "MultiLabel": ("", "a", "a|b")[label]}[task]
            split = ("train", "val", "test", "test")[row % 4]
            writer.writerow([*texts, name, split, speaker, rng.integers(20, 80), ["few", ""][row % 60 != 2]])
    return path


def fit_model(table, folder, task="MultiClass", seed=0, epochs=8, inputs=("first", "second"), **options):
    """Train a model, and return its checkpoint."""
    torch.manual_seed(seed)
    data = ManifestData(str(table), batch_size=16, num_workers=0, task=TASKS[task](), **options)
    encoders = {name: TinyText(dim=16, max_tokens=12) for name in inputs}
    optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)  # noqa: E731
    model = FusionClassifier(encoders, Concat, data.classes, task=data.task, optimizer=optimizer)
    data.processors = model.processors
    trainer = quiet_trainer(folder, max_epochs=epochs)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "best.ckpt", weights_only=True)
    return folder / "best.ckpt"


def evaluate(checkpoint, table, *arguments, output="out"):
    """Run the command in this process, by default without sweeps, and return its exit code."""
    words = ["--ckpt_path", checkpoint, "--data.manifest", table, "--output", output, "--device", "cpu"]
    words += [] if "--sweeps" in arguments else ["--sweeps", "false"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["fusion-pl", "evaluate", *map(str, [*words, "--data.num_workers", "0", *arguments])]
        )
        return main()


def results(folder="out"):
    """Return the numbers of an evaluation."""
    return json.loads(Path(folder, "results.json").read_text())


def read(table):
    """Return the rows of a table."""
    with open(table, newline="") as file:
        return list(csv.DictReader(file))
