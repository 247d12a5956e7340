"""Loader processes that wait for ever in ``os.fork``, as for a lock that another thread held at this moment."""

from __future__ import annotations

import pytest

from tests.commands import run_command

STUCK = """
import os, pathlib, sys, time

from lightning.pytorch import Callback

from fusion_pl.data import checked_fork

checked_fork.START_SECONDS = 3


def wait():
    with open("attempts", "a") as file:
        file.write(".")
    if pathlib.Path("attempts").stat().st_size <= int(os.environ["STUCK_PROCESSES"]):
        time.sleep(1000)


class Stuck(Callback):
    def setup(self, trainer, model, stage):
        os.register_at_fork(after_in_child=wait)
"""


@pytest.mark.parametrize(
    ("stuck", "code", "message"),
    [
        (2, 0, "Epoch 0"),
        (
            100,
            2,
            "did not start within 3 seconds, 3 times: open the files in the main process with --data.num_workers 0",
        ),
    ],
)
def test_a_process_that_does_not_start_is_replaced(stuck, code, message, manifest, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    encoders = "{text: {class_path: fusion_pl.encoders.TinyText, init_args: {dim: 8}}}"
    command = ["fit", "--model.encoders", encoders]
    command += ["--model.fusion", "fusion_pl.fusion.Mean", "--data", "fusion_pl.data.ManifestData"]
    command += ["--data.manifest", str(manifest), "--data.num_workers", "1", "--trainer.accelerator", "cpu"]
    command += ["--trainer.max_epochs", "1", "--trainer.callbacks", "stuck.Stuck"]
    process = run_command(*command, folder=tmp_path, environment={"STUCK_PROCESSES": str(stuck)})
    assert process.returncode == code, process.stderr
    assert message in process.stdout + process.stderr
    assert "Traceback" not in process.stderr
