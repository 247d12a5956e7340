"""What TensorBoard shows of a run."""

from __future__ import annotations

import os
import signal

import pytest
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusion_pl.cli.run import run
from fusion_pl.training import tensorboard
from fusion_pl.types import UserError
from tests.texts import RUN, fit

SHORT = ["--trainer.log_every_n_steps", "null"]  # 5 steps per epoch


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def steps_of_images(tag):
    events = EventAccumulator(str(RUN))
    events.Reload()
    return [image.step for image in events.Images(tag)]


def test_short_runs_have_curves(fresh, capsys, monkeypatch):
    monkeypatch.setattr(tensorboard, "FIGURE_INTERVAL", 0.0)
    assert fit(*SHORT) == 0
    assert steps_of_images("Validation/confusion") == [5, 10]
    curves = scalars(RUN)
    assert [point.step for point in curves["train/loss_step"]] == list(range(10))
    assert len(curves["lr-AdamW/new"]) == 10
    assert "log_every_n_steps" not in capsys.readouterr().err


def test_a_given_interval_is_used(fresh):
    assert fit("--trainer.log_every_n_steps", "5") == 0
    assert [point.step for point in scalars(RUN)["train/loss_step"]] == [4, 9]


def test_validation_accuracy_is_the_first_chart(fresh):
    assert fit(*SHORT, "--trainer.max_epochs", "3") == 0
    assert steps_of_images("Validation/confusion") == [15]  # a run of less than a minute plots its last validation
    curves = scalars(RUN)
    assert min(curves) == "Validation/accuracy"  # TensorBoard compares the characters' codes
    assert "epoch" not in curves
    assert [tag for tag, points in curves.items() if len(points) == 1] == []


class Fail(Callback):
    """End a run in its second epoch."""

    def __init__(self, signum: int | None) -> None:
        self.signum = signum

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            if self.signum is None:
                raise UserError("no more")
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize(("signum", "code"), [(None, 2), (int(signal.SIGTERM), 128 + signal.SIGTERM)])
def test_a_run_that_fails_or_is_stopped_plots_its_last_validation(signum, code, fresh):
    callback = ["--trainer.callbacks", f"{__name__}.Fail", "--trainer.callbacks.signum", str(signum or "null")]
    assert fit(*callback) == code
    assert steps_of_images("Validation/confusion") == [5]


def test_a_measurement_writes_no_single_points(again):
    assert run("validate", ["--config", "config.yaml"]) == 0
    assert scalars("lightning_logs/version_1") == {}


@pytest.mark.filterwarnings("ignore:the last validation is not plotted:UserWarning")
def test_a_drawing_that_fails_does_not_replace_the_reason_why_a_run_fails(fresh, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no space for pictures")

    monkeypatch.setattr(tensorboard, "plot_missing_inputs", fail)
    assert fit("--trainer.callbacks", f"{__name__}.Fail", "--trainer.callbacks.signum", "null") == 2
    assert "fusion-pl: error: no more" in capsys.readouterr().err
