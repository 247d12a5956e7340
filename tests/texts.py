"""A run of fit on 36 short texts, in this process."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

RUN = Path("lightning_logs/version_0")
BEST, LAST = RUN / "checkpoints/best.ckpt", RUN / "checkpoints/last.ckpt"


def write_config(folder):
    """Texts of two classes that share their words, so that accuracies tie."""
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for row in range(36):
            words = f"{'good' if row % 2 else 'bad'} thing {row % 5}"
            writer.writerow([words, ["ham", "spam"][row % 2], "val" if row % 3 == 2 else "train"])
    content = {
        "seed_everything": 1,
        "model": {
            "encoders": {"text": {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 16}}},
            "fusion": {"class_path": "fusion_pl.fusion.Concat", "init_args": {"dim": 16}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": "rows.csv", "batch_size": 5, "num_workers": 0},
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "early_stopping": {"patience": 100},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def fit(*arguments):
    from fusion_pl.cli.run import run  # when it is needed: most tests are not about commands

    return run("fit", ["--config", "config.yaml", *arguments])


def fit_in(folder):
    """Run fit in a folder, and leave the current folder and the arguments of this process as they were."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        return fit()


def load(path):
    return torch.load(path, weights_only=True)


def values(tag, folder=RUN):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(tag.replace("val/", "Validation/"))]


def results(folder=RUN):
    return json.loads((folder / "metrics.json").read_text())
