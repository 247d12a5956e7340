"""A run that is stopped at any moment and resumed is bit for bit the run that was never stopped."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import shutil
import signal
import sys

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusion_pl.cli.run import run
from fusion_pl.training.train_metrics import TrainMetrics
from tests.commands import run_command
from tests.texts import LAST, RUN, load

from .test_cli import encoder

ROWS, VAL_ROWS = 13, 5  # five batches of three per epoch, or three in each of two processes, and two in validation
EPOCH = 5
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
ACCUMULATE = ["--trainer.accumulate_grad_batches", "2"]
EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"
AVERAGING = ["--trainer.callbacks+", EMA, "--trainer.callbacks.decay", "0.9"]
TWO_VALIDATIONS = ["--trainer.val_check_interval", "2"]
PART_OF_EPOCH = ["--trainer.max_steps", "13"]  # the last step is within an epoch
WORKERS = ["--data.num_workers", "2"]
EVERY_STEP, EVERY_THIRD = (["--checkpoint.every_n_train_steps", str(steps)] for steps in (1, 3))
PLATEAU = [
    "--model.lr_scheduler",
    "lightning.pytorch.cli.ReduceLROnPlateau",
    "--model.lr_scheduler.monitor",
    "val/loss",
]
PLATEAU += ["--model.lr_scheduler.patience", "0", "--model.lr_scheduler.threshold", "0.9"]  # reduces after each epoch
CURVES = ["train/loss", "train/accuracy", "train/loss_step", "Validation/loss", "Validation/accuracy"]


class Stop(Callback):
    """Send a signal to this process after a number of batches: in the next batch, or in the validation that follows."""

    def __init__(self, batches: int, signum: int = int(signal.SIGTERM), in_validation: bool = False) -> None:
        self.batches, self.signum, self.in_validation = batches, signum, in_validation

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.in_validation and trainer.fit_loop.total_batch_idx == self.batches:
            os.kill(os.getpid(), self.signum)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        is_after = not trainer.sanity_checking and trainer.fit_loop.total_batch_idx + 1 == self.batches
        if self.in_validation and is_after and batch_idx == 0:
            os.kill(os.getpid(), self.signum)


def write(folder, stop=None):
    """Write a table with two inputs, and the configuration of a model and data that use random numbers."""
    folder.mkdir(exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "text", "label", "split"])
        for row in range(ROWS + VAL_ROWS):
            good = row % 2
            writer.writerow(
                [f"t{row}", f"{'good' if good else 'bad'} thing {row}", good, "val" if row >= ROWS else "train"]
            )
    content = {
        "seed_everything": 1,
        "model": {
            "encoders": {name: encoder("TinyText", dim=8, num_layers=1, dropout=0.3) for name in ("title", "text")},
            "fusion": {"class_path": "fusion_pl.fusion.Concat", "init_args": {"dim": 8, "dropout": 0.3}},
            "loss": {"mixup": 0.5},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": "rows.csv", "batch_size": 3, "num_workers": 0, "input_dropout": {"title": 0.3}},
        },
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "early_stopping": {"patience": 100},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    if stop:
        callback = {"class_path": "tests.test_exact_resume.Stop", "init_args": stop}
        (folder / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    return folder


def in_process(folder, *arguments):
    with contextlib.chdir(folder):
        return run("fit", ["--config", "config.yaml", *arguments])


def in_new_process(folder, *arguments):
    processes = 2 if "ddp" in arguments else 1
    done = run_command("fit", "--config", "config.yaml", *arguments, folder=folder, processes=processes)
    assert done.returncode in {0, 143, -signal.SIGKILL}, done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode


def curves(folder):
    """Return tag -> step -> value."""
    events = EventAccumulator(str(folder / RUN))
    events.Reload()
    return {tag: {point.step: point.value for point in events.Scalars(tag)} for tag in CURVES}


def outcome(folder):
    """Return the training state after the last step, the curves and the metrics of the best epoch."""
    checkpoint = load(folder / LAST)
    return {
        "steps": checkpoint["global_step"],
        "weights": checkpoint["state_dict"],
        "optimizer": [optimizer["state"] for optimizer in checkpoint["optimizer_states"]],
        "schedule": [value for value in checkpoint["lr_schedulers"][0].values() if not isinstance(value, str)],
        "curves": curves(folder),
        "best": json.loads((folder / RUN / "metrics.json").read_text())["metrics"],
    }


def assert_same(resumed, reference):
    for part, value in reference.items():
        message = functools.partial("{}: {}".format, part)
        torch.testing.assert_close(resumed[part], value, rtol=0, atol=0, equal_nan=True, msg=message)


def reference_runs(write, folders):
    """Yield a function that returns the outcome of the run with some options that is never stopped.

    Args:
        write: writes the table and the configuration to a folder.
        folders: ``tmp_path_factory``.
    """
    argv, outcomes = sys.argv, {}

    def train(fit, *options):
        if options not in outcomes:
            folder = write(folders.mktemp("reference"))
            assert fit(folder, *options) == 0
            outcomes[options] = outcome(folder)
        return outcomes[options]

    yield train
    sys.argv = argv


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    yield from reference_runs(write, tmp_path_factory)


def resume_after(stops, write, folder, *options):
    """Return the outcome of a run that is terminated at several moments, and resumed after each."""
    resumed = []
    for stop in stops:
        assert in_process(write(folder, stop), "--config", "stop.yaml", *options, *resumed) == 128 + signal.SIGTERM
        resumed = ["--ckpt_path", "last"]
    assert in_process(folder, *options, *resumed) == 0
    return outcome(folder)


def resume(folder, fit, code, *options):
    assert fit(folder, "--config", "stop.yaml", *options) == code
    assert fit(folder, "--ckpt_path", "last", *options) == 0
    return outcome(folder)


def names(value):
    """Return the identifier of a test's stops or options."""
    return "-".join(str(one) if isinstance(one, str) else ",".join(map(str, one.values())) for one in value)


@pytest.mark.parametrize(
    ("stops", "options"),
    [
        # in the first batch of the run, in the last one of an epoch, in its validation, and within the next epoch
        (
            [{"batches": 0}, {"batches": EPOCH - 1}, {"batches": EPOCH, "in_validation": True}, {"batches": EPOCH + 2}],
            [],
        ),
        ([{"batches": EPOCH + 2}], WORKERS),
        ([{"batches": EPOCH, "in_validation": True}], AVERAGING),  # which has other weights
        # after the first batch of two, which is completed to a step; with a validation between two steps
        ([{"batches": EPOCH}, {"batches": EPOCH + 3}], [*ACCUMULATE, "--trainer.val_check_interval", "3"]),
        # before a validation, in it, and in the last batch of an epoch, after which there is none
        (
            [{"batches": EPOCH + 1}, {"batches": EPOCH + 2, "in_validation": True}, {"batches": 2 * EPOCH - 1}],
            [*TWO_VALIDATIONS, *PART_OF_EPOCH],
        ),
        # the scheduler builds the loader after restoring
        ([{"batches": 4 + 2}], ["--trainer.limit_train_batches", "4", "--model.lr_scheduler", "ConstantLR"]),
    ],
    ids=names,
)
def test_a_terminated_run(stops, options, reference, tmp_path):
    expected = reference(in_process, *(options[:-2] if options[-2:] == WORKERS else options))
    assert_same(resume_after(stops, write, tmp_path / "stopped", *options), expected)


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        ({"batches": 2}, EVERY_STEP),
        ({"batches": 2 * EPOCH - 1}, EVERY_THIRD),  # an epoch after the checkpoint in the middle of another
        ({"batches": EPOCH, "in_validation": True}, EVERY_STEP),  # after the last batch of an epoch
        ({"batches": EPOCH + 3}, [*EVERY_STEP, *TWO_VALIDATIONS, *PART_OF_EPOCH]),
        ({"batches": EPOCH + 1}, PLATEAU),  # after the checkpoint of the epoch's end
        ({"batches": EPOCH + 1}, [*EVERY_STEP, *PLATEAU]),
    ],
    ids=lambda value: "-".join(map(str, value.items() if isinstance(value, dict) else value)),
)
def test_a_killed_run(stop, options, reference, tmp_path):
    folder = write(tmp_path / "stopped", stop | {"signum": int(signal.SIGKILL)})
    assert in_new_process(folder, "--config", "stop.yaml", *options) == -signal.SIGKILL
    assert in_process(folder, "--ckpt_path", "last", *options) == 0
    without = [option for option in options if option not in EVERY_STEP + EVERY_THIRD]
    assert_same(outcome(folder), reference(in_process, *without))


@pytest.fixture(scope="module")
def stopped_pair(tmp_path_factory):
    """The folder of a run of two processes that was stopped in its first batch."""
    folder = write(tmp_path_factory.mktemp("pair"), {"batches": 0})
    assert in_new_process(folder, "--config", "stop.yaml", *DDP) == 128 + signal.SIGTERM
    return folder


def test_two_processes(stopped_pair, reference, tmp_path):
    folder = shutil.copytree(stopped_pair, tmp_path / "stopped")
    assert ROWS % 2 == 1
    expected = reference(in_new_process, *DDP)
    assert expected["steps"] == 9
    assert in_new_process(folder, "--ckpt_path", "last", *DDP) == 0
    assert_same(outcome(folder), expected)


def test_two_processes_with_another_order(reference, tmp_path):
    options = [*DDP, "--data.sampling", "class_balanced", "--data.bucket_by_length", "true"]
    folder = write(tmp_path / "stopped", {"batches": 3 + 1})
    expected = reference(in_new_process, *options)
    assert expected["steps"] == 9
    assert_same(resume(folder, in_new_process, 128 + signal.SIGTERM, *options), expected)


@pytest.fixture
def trained_on(monkeypatch):
    """Samples that a model is trained on in this process, in order."""
    samples, update = [], TrainMetrics.update_batch
    monkeypatch.setattr(TrainMetrics, "update_batch", lambda self, *of: (samples.extend(of[-1].ids), update(self, *of)))
    monkeypatch.setattr(sys, "argv", sys.argv)
    return samples


def test_another_batch_size_continues_with_the_unseen_samples(trained_on, tmp_path, capsys):
    two = ["--data.batch_size", "2", "--trainer.max_epochs", "2"]
    assert in_process(write(tmp_path / "whole"), *two) == 0
    order = trained_on.copy()
    assert sorted(order[:ROWS]) == sorted(order[ROWS:]) != order[:ROWS]
    # the last batch of the epoch has one sample, which is repeated if the epoch was not validated
    for stop, seen in (({"batches": 1}, 6), ({"batches": EPOCH, "in_validation": True}, ROWS - 1)):
        folder = write(tmp_path / str(seen), stop)
        assert in_process(folder, "--config", "stop.yaml") == 128 + signal.SIGTERM
        trained_on.clear()
        assert in_process(folder, "--ckpt_path", "last", *two) == 0
        assert trained_on == order[seen:]
        message = " ".join(capsys.readouterr().err.split())
        assert (
            "from batches of 3 in 1 process(es), and this run has batches of 2 in 1 process(es): it continues"
            in message
        )
        assert len(curves(folder)["Validation/loss"]) == 2


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """Return a function that returns the folder of a run of two epochs with some options."""

    @functools.cache
    def train(*options):
        folder = write(tmp_path_factory.mktemp("two_epochs"))
        assert in_process(folder, *PLATEAU, *options, "--trainer.max_epochs", "2") == 0
        return folder

    return train


@pytest.mark.parametrize(("size", "limit"), [("2", []), ("4", []), ("4", ["--trainer.limit_train_batches", "3"])])
def test_between_two_epochs_another_batch_size_repeats_and_leaves_out_nothing(
    size, limit, two_epochs, trained_on, tmp_path
):
    folder = shutil.copytree(two_epochs(*limit), tmp_path / "run")
    trained_on.clear()
    changed = ["--data.batch_size", size, "--trainer.max_epochs", "3"]
    assert in_process(folder, *PLATEAU, *limit, *changed, "--ckpt_path", "last") == 0
    expected = min(ROWS, 3 * int(size)) if limit else ROWS
    assert len(trained_on) == len(set(trained_on)) == expected  # of the third epoch
    assert [len(curves(folder)[tag]) for tag in ("train/loss", "Validation/loss")] == [3, 3]
    checkpoint = load(folder / LAST)
    # saved before the schedule's step in epoch 3
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 2
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-3 * 0.1)


def test_one_process_continues_the_epoch_of_two(stopped_pair, trained_on, tmp_path):
    folder = shutil.copytree(stopped_pair, tmp_path / "stopped")
    assert in_process(folder, "--ckpt_path", "last", "--trainer.max_epochs", "1") == 0
    assert len(trained_on) == len(set(trained_on)) == ROWS - 6
    accuracy = curves(folder)["train/accuracy"].popitem()[1]
    assert accuracy * ROWS == pytest.approx(round(accuracy * ROWS))  # of the samples of both runs


def test_a_damaged_state_of_a_metric_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", sys.argv)
    folder = write(tmp_path / "stopped", {"batches": 1})
    assert in_process(folder, "--config", "stop.yaml") == 128 + signal.SIGTERM
    checkpoint = load(folder / LAST)
    for damaged in ({}, {"total": torch.zeros(1), "count": 3}, {"total": torch.zeros(0), "count": torch.zeros(1)}):
        checkpoint["callbacks"]["SaveTrainMetrics"]["loss"] = damaged
        torch.save(checkpoint, folder / LAST)
        assert in_process(folder, "--ckpt_path", "last") == 2
        message = " ".join(capsys.readouterr().err.split())
        assert "its state of train/loss is damaged" in message
        assert "train from the start without --ckpt_path" in message
