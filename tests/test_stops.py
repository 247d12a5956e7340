"""Runs stopped by Ctrl-C in a terminal, or by a kill, at any time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from fusion_pl.cli.run import run
from fusion_pl.training.interrupt import StoppedBySignal, StopSignals
from tests.terminal import CTRL_C, FUSION_PL, Terminal

LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
ENDLESS = ["--trainer.max_epochs", "100000", "--early_stopping.patience", "100000"]


def encoder(name, **init_args):
    return {"class_path": f"fusion_pl.encoders.{name}", "init_args": init_args}


@pytest.fixture
def fit(manifest, tmp_path, monkeypatch):
    """A complete fit with workers whose batches (4 × 128² bytes and more) are larger than what a pipe holds (64 kB)."""
    monkeypatch.chdir(tmp_path)
    content = {
        "model": {
            "encoders": {
                "text": encoder("TinyText", dim=8),
                "image": encoder("TinyImage", dim=16, image_size=128, channels=1),
            },
            "fusion": {"class_path": "fusion_pl.fusion.Weighted", "init_args": {"dim": 16}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": str(manifest), "batch_size": 4, "num_workers": 2},
        },
        "trainer": {"accelerator": "cpu"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return ["fit", "--config", "config.yaml"]


def test_workers_end_with_a_killed_run(fit):
    with subprocess.Popen(
        [*FUSION_PL, *fit, *ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 180
            while not LAST.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGSTOP)  # until the workers wait for a full pipe
            time.sleep(1)
            process.kill()
            output, _ = process.communicate(timeout=120)  # the output ends when no process has it open
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    message = output.decode()
    assert "Epoch 0, step 6, val/loss" in message  # a line per epoch, and no bar where there is no terminal
    assert "\x1b" not in message
    assert "\u2501\u2501 6/6" not in message


def test_ctrl_c_in_a_terminal_saves(fit):
    """The terminal sends it to the data loader's workers too."""
    with Terminal([*fit, *ENDLESS]) as terminal:
        terminal.until(lambda: "Epoch 1" in terminal.text)
        terminal.press(CTRL_C)
        assert terminal.ended() == 130, terminal.text
    assert "Traceback" not in terminal.text
    assert "Stopped; saved lightning_logs/version_0/checkpoints/last.ckpt" in terminal.text
    assert torch.load(LAST, weights_only=True)["global_step"] > 0
    assert "weights_only" not in terminal.text


def test_ctrl_c_with_two_processes_saves(fit):
    ddp = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "5"]  # of 12 in validation
    with Terminal([*fit, *ENDLESS, *ddp], new_interpreter=True) as terminal:
        terminal.until(lambda: "Epoch 1" in terminal.text)
        terminal.press(CTRL_C)
        assert terminal.ended() == 130, terminal.text
    assert "Traceback" not in terminal.text
    assert terminal.text.count("Stopped; saved") == 1
    assert torch.load(LAST, weights_only=True)["global_step"] > 0


@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_python"])  # of numpy and torch
def test_ctrl_c_while_libraries_load(fit, library):
    with Terminal(fit, new_interpreter=True) as terminal:
        loaded = Path(f"/proc/{terminal.process.pid}/maps")
        terminal.until(lambda: library in loaded.read_text())
        terminal.press(CTRL_C)
        assert terminal.ended() == 130
    assert terminal.text.split("\n")[1:] == ["Stopped; nothing was saved.", ""]  # after the terminal's echo


SLOW_START = """
import time

from lightning.pytorch import Callback

from fusion_pl.training.interrupt import SaveWhenStopped


class SlowStart(Callback):
    def on_train_start(self, trainer, model):
        (stopper,) = (one for one in trainer.callbacks if isinstance(one, SaveWhenStopped))
        while stopper.signals.received_signum is None:
            time.sleep(0.01)
"""


def test_ctrl_c_before_training(fit):
    """Ctrl-C arrives before the first step, however long the machine takes."""
    Path("slow.py").write_text(SLOW_START)
    with Terminal([*fit, "--trainer.callbacks", "slow.SlowStart"]) as terminal:
        terminal.until(lambda: "parameters" in terminal.text)  # the table of the model, before the first step
        terminal.press(CTRL_C)
        assert terminal.ended() == 130, terminal.text
    assert "Traceback" not in terminal.text
    assert "Stopped; nothing was saved." in terminal.text
    assert not list(Path().glob("lightning_logs/*"))


def test_errors_of_half_constructed_objects_are_silent_after_a_stop(monkeypatch, capfd):
    """The iterator of a loader fails in ``__del__`` if Ctrl-C arrives during its construction."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # instead of pytest's

    class HalfConstructed:
        def __del__(self):
            raise AttributeError("_shutdown")

    signals = StopSignals()
    with pytest.raises(StoppedBySignal), signals.handle_signals():
        signals.receive(signal.SIGINT)
    HalfConstructed()
    assert capfd.readouterr().err == ""


def test_they_are_silent_if_python_ignored_the_first_stop(monkeypatch, capfd):
    """Which is raised again 0.1 s later; before that, other objects are deleted."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    signals = StopSignals()

    class Interrupted:
        def __del__(self):
            signals.receive(signal.SIGINT)

    class HalfConstructed:
        def __del__(self):
            raise AttributeError("_shutdown")

    def wait():
        with signals.handle_signals():
            Interrupted()
            HalfConstructed()
            while True:
                time.sleep(0.01)

    with pytest.raises(StoppedBySignal):
        wait()
    assert capfd.readouterr().err == ""


def test_a_failed_test_leaves_no_folder(fit, manifest, capsys):
    assert run(fit[0], [*fit[1:], "--trainer.max_epochs", "1", "--data.num_workers", "0"]) == 0
    folder = Path("broken")
    shutil.copytree(manifest.parent, folder)
    (folder / "40.png").write_bytes(b"no picture")  # of the test split
    options = ["--data.manifest", str(folder / manifest.name), "--data.num_workers", "0"]
    best = ["--ckpt_path", "lightning_logs/version_0/checkpoints/best.ckpt"]
    assert run("test", [*fit[1:], *options, *best]) == 2
    assert "40.png" in capsys.readouterr().err
    assert os.listdir("lightning_logs") == ["version_0"]
