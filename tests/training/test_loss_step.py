"""The loss of a training step, which is logged only in the steps that loggers write, and what Lightning writes."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.training.last_step import ValidateLastStep

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning",
    "ignore:.*resuming from a checkpoint that ended before:UserWarning",
)


class PassEveryLoss(Callback):
    """Pass the loss of every step to Lightning, which decides what it writes."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("expected", outputs["loss"] * trainer.accumulate_grad_batches, batch_size=1)


class MemoryLogger(CSVLogger):
    """Keep what is written: name -> step -> number."""

    def __init__(self, folder):
        super().__init__(folder)
        self.written = {}

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.written.setdefault(name, {})[step] = value


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """14 training rows: seven batches of two."""
    path = tmp_path_factory.mktemp("words") / "manifest.csv"
    splits = ["train"] * 14 + ["val"] * 4
    lines = [f"word {row},{'ab'[row % 2]},{split}" for row, split in enumerate(splits)]
    path.write_text("\n".join(["text,label,split", *lines]))
    return path


def fit(table, folder, callbacks=(), ckpt_path=None, **options):
    """Train for three epochs, and return the written losses by step, and those that Lightning writes."""
    torch.manual_seed(0)
    data = ManifestData(str(table), batch_size=2, num_workers=0)
    model = FusionClassifier({"text": TinyText(dim=8)}, Mean, data.classes)
    data.processors = model.processors
    logger = MemoryLogger(folder)
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", logger=logger, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=bool(callbacks), callbacks=[*callbacks, PassEveryLoss()],
        **{"max_epochs": 3} | options,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    return logger.written["train/loss_step"], logger.written["expected"]


@pytest.mark.parametrize(
    ("batches_per_step", "interval", "steps"),
    [(1, 3, range(2, 21, 3)), (3, 1, range(9)), (3, 2, range(1, 9, 2))],
)
def test_the_loss_is_written_in_the_steps_of_the_loggers(batches_per_step, interval, steps, table, tmp_path):
    options = {"accumulate_grad_batches": batches_per_step, "log_every_n_steps": interval}
    written, expected = fit(table, tmp_path, **options)
    assert list(written) == list(steps)
    assert written == pytest.approx(expected)


def test_the_step_that_ends_a_run_has_its_own_loss(table, tmp_path):
    """A callback may stop the run after the training step; Lightning then writes this step as well."""
    options = {"max_steps": 10, "max_epochs": -1, "log_every_n_steps": 3}
    written, expected = fit(table, tmp_path, [ValidateLastStep()], **options)
    assert list(written) == [2, 5, 8, 9]
    assert written == pytest.approx(expected)


@pytest.mark.parametrize(
    ("saved", "interval"),
    [("step=4", {"every_n_train_steps": 4}), ("step=7", {"save_on_train_epoch_end": False}), ("step=7", {})],
    ids=["within an epoch", "after the validation", "after the epoch"],
)
def test_a_resumed_run_has_the_loss_in_the_steps_that_lightning_counts(saved, interval, table, tmp_path):
    save = ModelCheckpoint(dirpath=tmp_path / "saved", filename="{step}", save_top_k=-1, **interval)
    fit(table, tmp_path, [save], max_epochs=1, log_every_n_steps=1)
    written, expected = fit(table, tmp_path, ckpt_path=tmp_path / f"saved/{saved}.ckpt", log_every_n_steps=3)
    assert written == pytest.approx(expected)
