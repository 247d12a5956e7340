"""An untrained model of one text, and a table of 23 rows."""

from __future__ import annotations

import csv
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from fusion_pl.cli.run import run
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Weighted
from fusion_pl.module import FusionClassifier
from fusion_pl.prediction import rows as rows_module
from fusion_pl.prediction.partial import PartialFile

NUM_ROWS = 23


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """A function that saves an untrained model of encoders."""

    def save(encoders, fusion=Weighted):
        path = tmp_path_factory.mktemp("model") / "model.ckpt"
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.connect(FusionClassifier(encoders, fusion, ["ham", "spam"]))
        trainer.save_checkpoint(path)
        return str(path)

    return save


@pytest.fixture(scope="session")
def text_checkpoint(save_model):
    torch.manual_seed(0)
    return save_model({"text": TinyText(dim=8)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    write_rows("rows.csv", NUM_ROWS)
    return tmp_path


def write_rows(path, number):
    """Every seventh text is missing, so that its row has no prediction."""
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "number"])
        writer.writerows([f"s{row}", "" if row % 7 == 3 else f"thing {row}", row] for row in range(number))


@pytest.fixture
def predict(text_checkpoint):
    """Run the command in this process, and return its exit code."""

    def call(*arguments, output="p.csv", data=("--data.manifest", "rows.csv"), batch_size=4):
        given = ["--ckpt_path", text_checkpoint, "--output", output, *data, "--data.num_workers", "0"]
        return run("predict", [*given, "--data.batch_size", str(batch_size), *arguments])

    return call


@pytest.fixture
def stop_after(monkeypatch):
    """Let commands store rows after each batch of 4, and be stopped as by Ctrl-C when some batches are stored."""
    save = PartialFile.save

    def stop(number):
        monkeypatch.setattr(rows_module, "SAVE_SECONDS", 0.0)
        saved = []

        def save_and_stop(part, file, rows, counts):
            save(part, file, rows, counts)
            saved.append(rows)
            if len(saved) == number:
                file.write(b"half a row that was written when the process ended")
                file.flush()
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(PartialFile, "save", save_and_stop)

    yield stop
    monkeypatch.undo()
