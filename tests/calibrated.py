"""A run of fit on 639 short texts; the best checkpoint has the highest loss, so that probabilities are off."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pl import Predictor
from fusion_pl.cli.run import run
from fusion_pl.data.collate import Collate
from fusion_pl.types import Sample
from fusion_pl.uncertainty.outliers import OutlierDetector, embeddings_of
from tests.texts import BEST

DATA = ["--data.manifest", "rows.csv", "--data.num_workers", "0"]


def write_table(folder):
    """Two inputs that are right in 80 % of the rows; one is missing in 10 %."""
    rng = np.random.default_rng(0)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label", "split"])
        for row in range(639):
            label = row % 3
            words = [("red", "green", "blue")[label if rng.random() < 0.7 else rng.integers(3)] for _ in range(2)]
            texts = [f"{word} {rng.integers(40)}" if rng.random() < 0.9 else "" for word in words]
            split = ("train", "val", "test")[0 if row < 160 else 1 + row % 2]
            writer.writerow([texts[0] or "none", texts[1], "xyz"[label], split])


def fit(*arguments, epochs=6, head="Concat"):
    encoder = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 16, "max_tokens": 12}}
    model = ["--model.encoders", json.dumps({"first": encoder, "second": encoder}), "--model.fusion", head]
    model += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
    trainer = [
        "--trainer.max_epochs",
        str(epochs),
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    data = ["--data", "ManifestData", *DATA]
    return run(
        "fit", [*model, *data, *trainer, "--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max", *arguments]
    )


def results(version, folder="lightning_logs"):
    text = Path(f"{folder}/version_{version}/metrics.json").read_text()
    return json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON


def best(folder):
    return Path(folder) / "version_0/checkpoints/best.ckpt"


def table():
    with open("rows.csv", newline="") as file:
        return list(csv.DictReader(file))


def predict(output, *options):
    arguments = ["--ckpt_path", str(BEST), *DATA, "--overwrite", "--output", output, *options]
    return run("predict", arguments)


@torch.inference_mode()
def expected_detectors(checkpoint, rows, one_mean=False):
    """Detectors of a checkpoint, from all training and validation rows of the table."""
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    model, found = predictor.model, {}
    for split in ("train", "val"):
        chosen = [row for row in rows if row["split"] == split]
        inputs = [{name: row[name] for name in model.encoders if row[name]} for row in chosen]
        batch = Collate(predictor.processors)([Sample("", values) for values in inputs])
        encoded = model.encode(batch)
        target = torch.tensor([0 if one_mean else model.classes.index(row["label"]) for row in chosen])
        for name, values in embeddings_of(encoded, model.fuse(encoded)).items():
            present = batch.present.get(name, torch.ones(len(chosen), dtype=torch.bool))
            found.setdefault(name, []).append((values[present], target[present]))
    return {name: vars(OutlierDetector.fit(*train, held_out)) for name, (train, (held_out, _)) in found.items()}
