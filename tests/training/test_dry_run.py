"""fit --dry_run: everything is checked, nothing is trained, no folder is left."""

from __future__ import annotations

import csv
import os
import shutil
import wave
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.data.collate import Collate
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.training.dry_run import DryRun
from fusion_pl.types import UserError
from tests.terminal import Terminal
from tests.test_cli import config  # noqa: F401 - a fixture
from tests.texts import fit

DRY_RUN = ["fit", "--config", "config.yaml", "--dry_run"]


@pytest.fixture
def table(config, manifest):  # noqa: F811
    """A copy of the table and its files, to damage."""
    shutil.copytree(manifest.parent, "files")
    return Path("files", manifest.name)


def dry_run(table, *more):
    return run("fit", [*DRY_RUN[1:], "--data.manifest", str(table), *more])


def damage_pictures(table, rows):
    for row in rows:
        (table.parent / f"{row}.png").write_bytes(b"no picture")


def test_a_dry_run_trains_nothing_and_leaves_no_folder(table, capsys):
    before = sorted(Path().rglob("*"))
    assert dry_run(table) == 0
    assert sorted(Path().rglob("*")) == before
    assert "Dry run: table, 82 files, encoders and one batch are valid; nothing was trained" in capsys.readouterr().out


@pytest.mark.parametrize("on_bad_file", ["raise", "missing"])
def test_every_damaged_file_is_listed(table, capsys, on_bad_file):
    damage_pictures(table, (1, 26, 40))  # train, val, test
    sound = table.parent / "40.wav"
    sound.write_bytes(sound.read_bytes()[:-100])
    assert dry_run(table, "--data.on_bad_file", on_bad_file, "--data.num_workers", "2") == 2
    message = capsys.readouterr().err
    assert "4 of 82 files are damaged" in message
    for row, file in ((3, "1.png"), (28, "26.png"), (42, "40.png"), (42, "40.wav")):
        assert f"row {row}, column {'image' if 'png' in file else 'audio'!r}: " in message
        assert file in message
    assert "Traceback" not in message
    assert not Path("lightning_logs").exists()


def test_more_than_ten_damaged_files_are_counted(table, capsys):
    damage_pictures(table, [row for row in range(20) if row % 6 != 5])
    assert dry_run(table) == 2
    message = capsys.readouterr().err
    assert "17 of 82 files are damaged" in message
    assert message.count(".png cannot") == 10
    assert message.rstrip().endswith("… and 7 more")


def test_the_end_of_a_long_recording_is_read(table, capsys):
    """Training reads another part of it in every epoch."""
    with wave.open(str(table.parent / "0.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8000 * 60))
    path = table.parent / "0.flac"
    import soundfile

    samples, rate = soundfile.read(table.parent / "0.wav")
    soundfile.write(path, samples + 0.1, rate)
    content = bytearray(path.read_bytes())
    content[len(content) * 9 // 10 :] = os.urandom(len(content) - len(content) * 9 // 10)
    path.write_bytes(content)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["audio"] = "0.flac"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert dry_run(table) == 2
    assert "0.flac" in capsys.readouterr().err


def test_a_problem_of_the_table_is_one_sentence(table, capsys):
    (table.parent / "3.png").unlink()
    assert dry_run(table) == 2
    assert "the file '3.png' does not exist" in capsys.readouterr().err


def test_an_encoder_that_fails_is_found(table, capsys):
    assert dry_run(table, "--data.classes", "[high, low, none]", "--model.loss.class_weights", "[1.0]") == 2
    assert "has 1 numbers" in capsys.readouterr().err


def test_a_loss_that_cannot_be_differentiated_is_found(table):
    with pytest.raises(RuntimeError, match="does not require grad"):
        dry_run(table, "--model.fusion", "tests.training.test_dry_run.Detached")


class Detached(Mean):
    """A head whose loss has no gradient."""

    def loss(self, fused, batch, cross_entropy):
        return {name: loss.detach() for name, loss in super().loss(fused, batch, cross_entropy).items()}


class FailInValidation(Callback):
    """Fails after the training batch."""

    def on_validation_batch_end(self, *args, **kwargs):
        raise UserError("no more")


def test_a_dry_run_that_fails_keeps_the_checkpoints_of_other_runs(fresh):
    last = Path("keep/last.ckpt")
    last.parent.mkdir()
    last.write_bytes(b"of another run")
    options = ["--checkpoint.dirpath", "keep", "--trainer.callbacks", f"{__name__}.FailInValidation"]
    assert fit("--dry_run", *options) == 2
    assert last.read_bytes() == b"of another run"


class Normalized(Mean):
    """A head with random numbers (dropout) and with a state that every batch in training changes."""

    def __init__(self, dims, num_classes):
        super().__init__(dims, num_classes, dropout=0.5)
        self.norm = nn.BatchNorm1d(128)

    def fuse(self, embeddings, present):
        fused = super().fuse(embeddings, present)
        return fused._replace(embedding=self.norm(fused.embedding))


class Recorder(DryRun):
    """Records the state of model and random numbers before and after the batch, and the parameters with gradients."""

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.states, self.used = [], set()
        for name, parameter in pl_module.named_parameters():
            parameter.register_hook(lambda _, name=name: self.used.add(name))

    def on_train_batch_start(self, trainer, pl_module, *arguments):
        self.record(pl_module)
        super().on_train_batch_start(trainer, pl_module, *arguments)

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        super().on_train_batch_end(trainer, pl_module, *arguments)
        self.record(pl_module)
        assert all(parameter.grad is None for parameter in pl_module.parameters())

    def record(self, model):
        self.states.append(deepcopy(model.state_dict()) | {"random state": torch.get_rng_state()})


@pytest.mark.parametrize("scaled", [False, True])
def test_the_batch_has_gradients_and_changes_nothing(encoders, manifest, scaled):
    """Also with the loss scaling of ``16-mixed``."""
    optimizer = partial(torch.optim.AdamW, fused=scaled)  # which scales the gradients itself, as on a GPU
    model = FusionClassifier(encoders, Normalized, ["high", "low"], optimizer=optimizer)
    data = ManifestData(str(manifest), batch_size=5, num_workers=0)
    data.processors, recorder = model.processors, Recorder()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    plugins = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")) if scaled else None
    Trainer(fast_dev_run=1, callbacks=[recorder], plugins=plugins, **options).fit(model, data)
    before, after = recorder.states
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert recorder.used == {name for name, _ in model.named_parameters()}
    model.train()(Collate(model.processors)([data.samples("train")[row] for row in range(5)]))
    assert not torch.equal(model.fusion.norm.running_mean, after["fusion.norm.running_mean"])  # else nothing is tested


@pytest.mark.parametrize("command", ["validate", "test"])
def test_the_configuration_of_a_run_is_still_accepted(table, command):
    data = ["--data.manifest", str(table)]
    assert run("fit", ["--config", "config.yaml", *data, "--trainer.max_epochs", "1"]) == 0
    assert run(command, ["--config", "lightning_logs/version_0/config.yaml", *data]) == 0


def test_a_long_table_has_a_progress_bar(table):
    lines = table.read_text().splitlines()
    more = [f"t{number},number {number},,,high,train" for number in range(1200)]
    table.write_text("\n".join([*lines, *more]) + "\n")
    for number in range(1200):
        shutil.copy(table.parent / "0.png", table.parent / f"copy{number}.png")
    with_copies = [line.replace(",,,", f",copy{number}.png,,") for number, line in enumerate(more)]
    table.write_text("\n".join([*lines, *with_copies]) + "\n")
    with Terminal([*DRY_RUN, "--data.manifest", str(table)], columns=100) as terminal:
        assert terminal.ended() == 0, terminal.text
    assert "Checking files" in terminal.text
