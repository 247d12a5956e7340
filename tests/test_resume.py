"""Resumed runs: contents of last.ckpt and best.ckpt after any end of a run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from fusion_pl.cli.run import run
from tests.commands import Command
from tests.texts import BEST, LAST, RUN, fit, load, results, values

FROZEN = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.0"]  # no epoch is better than the first


class Stop(Callback):
    """Send a signal to this process after the first batch of an epoch's validation."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and not trainer.sanity_checking and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)


class Diverge(Callback):
    """Make one weight NaN after a batch, as a large step does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            next(pl_module.fusion.parameters()).data.view(-1)[0] = float("nan")


def test_last_is_the_last_epoch_without_an_improvement(fresh):
    assert fit(*FROZEN, "--trainer.max_epochs", "6") == 0
    assert load(BEST)["epoch"] == 0
    assert load(LAST)["epoch"] == 5
    assert fit(*FROZEN, "--ckpt_path", "last", "--trainer.max_epochs", "8") == 0
    assert load(LAST)["epoch"] == 7
    assert results()["epochs"] == 8
    assert len(values("val/loss")) == 8  # two more, none repeated


def test_last_is_the_last_epoch_without_a_validation(fresh):
    some = ["--trainer.check_val_every_n_epoch", "2"]
    assert fit(*some, "--trainer.max_epochs", "3") == 0
    assert load(LAST)["epoch"] == 2
    assert fit(*some, "--trainer.max_epochs", "4", "--ckpt_path", "last") == 0
    assert load(LAST)["global_step"] == 4 * 5
    assert results()["epochs"] == 4
    assert len(values("val/loss")) == 2


def test_a_run_that_ends_within_an_epoch_is_validated_and_goes_on(fresh):
    constant = ["--model.lr_scheduler", "ConstantLR"]
    assert fit(*constant, "--trainer.max_steps", "3") == 0  # of five per epoch
    assert results()["samples"]["val"] == 12
    assert [load(path)["global_step"] for path in (BEST, LAST)] == [3, 3]
    assert fit(*constant, "--trainer.max_steps", "7", "--ckpt_path", "last") == 0
    assert len(values("val/loss")) == 3  # after the steps 3, 5 and 7
    resumed = load(LAST)["state_dict"]
    shutil.rmtree("lightning_logs")
    assert fit(*constant, "--trainer.max_steps", "7") == 0
    torch.testing.assert_close(resumed, load(LAST)["state_dict"], rtol=0, atol=0)


def test_best_is_the_lowest_loss_among_equal_accuracies(fresh):
    """Compared with the curves in TensorBoard."""
    assert fit("--trainer.max_epochs", "8") == 0

    def expected():
        curves = list(zip(values("val/accuracy"), values("val/loss"), strict=True))
        return max(range(len(curves)), key=lambda epoch: (curves[epoch][0], -curves[epoch][1])), curves

    epoch, curves = expected()
    assert epoch > min(range(8), key=lambda one: -curves[one][0])  # else the test has no effect
    assert load(BEST)["epoch"] == results()["epoch"] == epoch
    assert results()["metrics"]["val/loss"] == pytest.approx(curves[epoch][1], rel=1e-5)
    # A resumed run has the loss of the best checkpoint.
    assert fit("--trainer.max_epochs", "10", "--ckpt_path", "last") == 0
    assert load(BEST)["epoch"] == results()["epoch"] == expected()[0]


def test_an_interrupted_validation_is_repeated(again):
    stopping = [{"class_path": "tests.test_resume.Stop", "init_args": {"epoch": 1}}]
    Path("stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": stopping}}))
    complete = results()
    shutil.rmtree("lightning_logs")
    assert fit("--config", "stop.yaml") == 128 + signal.SIGTERM
    assert len(values("val/loss")) == 1
    assert fit("--ckpt_path", "last") == 0
    assert len(values("val/loss")) == 2
    assert results()["metrics"] == pytest.approx(complete["metrics"])


def test_the_best_checkpoint_has_the_weights_alone(fresh, capsys):
    """For inference; last.ckpt has the state of the optimizer as well, which is twice as large as the weights."""
    assert fit() == 0
    assert "optimizer_states" in load(LAST)
    assert "optimizer_states" not in load(BEST)
    assert BEST.stat().st_size < 0.6 * LAST.stat().st_size
    assert fit("--ckpt_path", "best", "--trainer.max_epochs", "3") == 2
    message = capsys.readouterr().err
    assert f"fit cannot resume from {BEST}: it contains only the model weights" in message
    assert "--ckpt_path last" in message
    assert run("validate", ["--config", "config.yaml"]) == 0  # with best


def test_without_a_last_checkpoint_the_best_one_can_be_resumed(fresh):
    assert fit("--checkpoint.save_last", "false") == 0
    assert not LAST.exists()
    assert fit("--ckpt_path", "best", "--trainer.max_epochs", "3") == 0


def test_a_killed_run_leaves_the_last_epoch(fresh):
    many = ["--trainer.max_epochs", "100000", *FROZEN]
    process = Command(["fit", "--config", "config.yaml", *many], ["log", "log"])
    try:
        deadline = time.monotonic() + 180
        while not (LAST.is_file() and load(LAST)["epoch"] >= 2) and time.monotonic() < deadline:
            assert process.poll() is None, Path("log").read_text()
            time.sleep(0.05)
        assert fit("--ckpt_path", "last") == 2  # while the other one trains
    finally:
        process.kill()
    before = load(LAST)["epoch"]
    assert before >= 2
    assert load(BEST)["epoch"] == 0
    assert fit(*FROZEN, "--ckpt_path", "last", "--trainer.max_epochs", str(before + 3)) == 0
    assert results()["epochs"] == before + 3
    assert not list(RUN.glob("checkpoints/*.partial"))


@pytest.fixture
def lock_elsewhere():
    """Return a function that locks a checkpoint folder in another process until the end of the test."""
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print(flush=True); sys.stdin.read()"
    with ExitStack() as stack:

        def _lock_elsewhere(folder):
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-c", code, str(folder / ".lock")]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(process.stdin.close)
            assert process.stdout.readline() == b"\n"

        yield _lock_elsewhere


def test_two_processes_never_train_in_one_folder(again, capsys, lock_elsewhere):
    lock_elsewhere(RUN / "checkpoints")
    config = (RUN / "config.yaml").read_text()
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3") == 2
    assert "another process is training in lightning_logs/version_0" in capsys.readouterr().err
    assert (RUN / "config.yaml").read_text() == config


def test_a_locked_common_checkpoint_folder_leaves_no_new_run(again, capsys, lock_elsewhere):
    lock_elsewhere(again / "common/checkpoints")
    assert fit("--checkpoint.dirpath", "common/checkpoints") == 2
    message = capsys.readouterr().err
    assert (
        f"another process is training in {again / 'common'}: wait until it has finished, or choose another --checkpoint"
        in message
    )
    assert os.listdir("lightning_logs") == ["version_0"]


def test_the_newest_run_has_the_highest_number_and_needs_a_checkpoint(again, capsys):
    assert fit("--trainer.max_epochs", "1") == 0
    os.utime("lightning_logs/version_1/checkpoints/last.ckpt", (0, 0))  # as after a copy
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert results(Path("lightning_logs/version_1"))["epochs"] == 2
    Path("lightning_logs/version_2/checkpoints").mkdir(parents=True)  # killed before its first checkpoint
    config = (RUN / "config.yaml").read_text()
    for subcommand in ("fit", "test"):
        last = ["--ckpt_path", "last"] if subcommand == "fit" else []
        assert run(subcommand, ["--config", "config.yaml", *last]) == 2
        message = capsys.readouterr().err
        assert "the newest run, lightning_logs/version_2, has no" in message
        assert "--ckpt_path lightning_logs/version_1/checkpoints/" in message
    assert (RUN / "config.yaml").read_text() == config


def test_the_previous_configuration_is_kept(again):
    first = (RUN / "config.yaml").read_text()
    assert fit("--ckpt_path", str(LAST.resolve()), "--trainer.max_epochs", "3") == 0  # the same run by another name
    assert os.listdir("lightning_logs") == ["version_0"]
    assert yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["max_epochs"] == 3
    assert (RUN / "config-1.yaml").read_text() == first


def test_a_sharded_checkpoint_is_refused(again, capsys):
    Path("shards").mkdir()
    Path("shards/meta.pt").touch()
    assert fit("--ckpt_path", "shards") == 2
    assert "shards is a folder with a sharded checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"], "another optimizer than SGD"),
        (["--model.optimizer", "torch.optim.RMSprop", "--model.optimizer.lr", "0.1"], "another optimizer than RMSprop"),
        (["--model.lr_scheduler", "ConstantLR"], "another learning rate schedule than ConstantLR"),
    ],
)
def test_another_optimizer_or_schedule_is_refused(again, other, message, capsys):
    """Its learning rates and moments would be lost."""
    before = LAST.read_bytes()
    assert fit("--ckpt_path", "last", "--trainer.max_epochs", "3", *other) == 2
    assert f"was trained with {message}" in capsys.readouterr().err
    assert LAST.read_bytes() == before


def test_an_optimizer_without_state_is_recognized(fresh, capsys):
    assert fit(*FROZEN, "--trainer.max_epochs", "1") == 0
    assert fit("--trainer.max_epochs", "2", "--ckpt_path", "last") == 2
    assert "was trained with another optimizer than AdamW" in capsys.readouterr().err
    assert fit(*FROZEN, "--trainer.max_epochs", "2", "--ckpt_path", "last") == 0


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_diverged_run_keeps_the_last_finite_checkpoint(epoch, fresh, capsys):
    step = [{"class_path": "tests.test_resume.Diverge", "init_args": {"step": 2 + 5 * epoch}}]
    Path("diverge.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": step}}))
    assert fit("--config", "diverge.yaml") == 2
    message = capsys.readouterr().err
    assert "training diverged" in message
    assert f"in epoch {epoch}" in message
    assert LAST.exists() == BEST.exists() == (epoch == 1)
    if epoch == 0:
        assert "there is no earlier checkpoint" in message
        return
    assert f"the last checkpoint with finite weights is {LAST}" in " ".join(message.split())
    assert load(LAST)["epoch"] == load(BEST)["epoch"] == 0
    checkpoint = load(LAST)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = float("inf")
    torch.save(checkpoint, "old.ckpt")
    assert fit("--ckpt_path", "old.ckpt") == 2
    assert "training diverged, or the file is damaged" in capsys.readouterr().err
    assert fit("--ckpt_path", "last") == 0
