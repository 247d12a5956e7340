"""Order and augmentation of the training samples in a real Trainer."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from fusion_pl.data import ManifestData
from fusion_pl.data.order import temporary_seed

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*pickle-based checkpoint")

ROWS = 13  # odd, so that two processes and batches of 3 come out uneven


class Noise(nn.Module):
    """Lengthen a text at random. Without ``random``, from which the type checks of the tests draw items of lists."""

    def forward(self, text):
        return text + "x" * (int(torch.randint(100, ())) + 10_000 * np.random.randint(100))


def test_the_seed_of_a_batch_holds_for_all_generators():
    def draw():
        with temporary_seed(3):
            return float(torch.rand(())), random.random(), np.random.rand()

    assert draw() == draw()


class Watch(LightningModule):
    """Record the batch of every step."""

    def __init__(self, notes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.notes = notes

    def training_step(self, batch):
        lengths = batch.inputs["text"]["length"].tolist()
        has = [batch.present[name].tolist() for name in ("text", "image")]
        note = {"epoch": self.current_epoch, "ids": batch.ids, "lengths": lengths, "present": has}
        with open(f"{self.notes}-{self.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(note) + "\n")
        return self.weight.sum()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches  # as every schedule asks: it builds the loader
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Runs:
    """Runs of one table, each with new objects, as in a new process."""

    def __init__(self, toy, processors, folder):
        for at, record in enumerate(toy.records):
            record["split"] = "val" if at < 2 else "train"
        toy.records += [toy.records[5] | {"id": f"s{at}"} for at in range(12, 15)]
        self.manifest, self.folder = toy.write(), folder
        self.processors = {name: processors[name] for name in ("text", "image")}
        self.started = 0

    def fit(self, epochs, seed=1, ckpt_path=None, at_train_end=False, data_seed=0, workers=0, **trainer_options):
        """Train, and return epoch -> batches per process."""
        self.started += 1
        seed_everything(seed, verbose=False)
        options = {
            "num_workers": workers,
            "batch_size": 3,
            "augment": {"text": Noise()},
            "input_dropout": {"image": 0.5},
        }
        data = ManifestData(self.manifest, seed=data_seed, **options)
        data.processors = self.processors
        notes, kept = self.folder / f"notes-{self.started}", self.folder / "kept"
        saver = ModelCheckpoint(kept, "last", save_on_train_epoch_end=at_train_end, enable_version_counter=False)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=[saver], **quiet, **{"devices": 1} | trainer_options
        )
        trainer.fit(Watch(notes), datamodule=data, ckpt_path=ckpt_path and str(kept / "last.ckpt"))
        return [self._read(notes, rank) for rank in range(trainer.world_size)]

    def _read(self, notes, rank):
        epochs = {}
        with open(f"{notes}-{rank}.jsonl") as file:
            for note in map(json.loads, file):
                epochs.setdefault(note.pop("epoch"), []).append(note)
        return epochs


@pytest.fixture
def runs(toy, processors, tmp_path):
    return Runs(toy, processors, tmp_path)


def order(epoch):
    return [name for step in epoch for name in step["ids"]]


@pytest.mark.parametrize(("workers", "at_train_end"), [(0, True), (0, False), (2, False)])
def test_a_resumed_run_gets_the_same_batches(runs, workers, at_train_end):
    (whole,) = runs.fit(4)
    assert list(whole) == [0, 1, 2, 3]
    runs.fit(2, workers=workers, at_train_end=at_train_end)
    (rest,) = runs.fit(4, workers=workers, ckpt_path="last")
    assert rest == {2: whole[2], 3: whole[3]}
    for key in ("ids", "lengths", "present"):
        assert len({json.dumps([step[key] for step in epoch]) for epoch in whole.values()}) == 4


def test_a_resumed_run_on_two_processes_gets_the_same_batches(runs):
    two = {"strategy": "ddp_fork", "devices": 2, "workers": 1}
    first, second = runs.fit(3, **two)
    for epoch in range(3):
        assert len(order(first[epoch])) == len(order(second[epoch])) == 7
        assert len({*order(first[epoch]), *order(second[epoch])}) == ROWS
    runs.fit(1, **two)
    assert runs.fit(3, ckpt_path="last", **two) == [{1: r[1], 2: r[2]} for r in (first, second)]


def test_order_and_augmentation_depend_on_seed_everything_and_not_on_the_seed_of_the_splits(runs):
    (one,), (same,), (other,), (next_,) = (
        runs.fit(2, **seeds) for seeds in ({}, {"data_seed": 5}, {"seed": 2}, {"seed": 3})
    )
    assert one == same
    for key in ("ids", "lengths", "present"):
        seen = [json.dumps([step[key] for step in epoch]) for run in (one, other, next_) for epoch in run.values()]
        assert len(set(seen)) == 6  # also, the second epoch of a seed is not the first of the next one


def test_the_loader_does_not_change_the_models_random_numbers(runs):
    runs.fit(1, limit_train_batches=1)
    once = torch.rand(1), np.random.rand()
    runs.fit(3)
    assert once == (torch.rand(1), np.random.rand())


def test_overfit_batches_uses_the_first_batches(runs):
    with pytest.warns(UserWarning, match="turning off the train dataloader shuffling"):
        (epochs,) = runs.fit(2, overfit_batches=2)
    assert order(epochs[0]) == order(epochs[1]) == [f"s{at}" for at in range(2, 8)]
