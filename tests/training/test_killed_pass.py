"""A command that is killed at any moment of the pass that computes features, and started again."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from fusion_pl.cli.run import run
from fusion_pl.data import feature_shards
from fusion_pl.data.feature_shards import FeatureShards
from fusion_pl.training import encoding
from tests.commands import run_command
from tests.texts import load

NUM_VALUES, MEASURED, BATCH = 36, 8, 5  # all texts of both splits; those that are encoded to estimate the size


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(Callback):
    """Kill this process after ``count`` calls of the encoder or writes of shards, or when training starts."""

    def __init__(self, moment: str, count: int = 0) -> None:
        encoding.SHARD_SECONDS = 0.0  # one shard per batch
        self.is_in_training, calls = moment == "training", iter(range(count))
        run_encoder, atomic_path = encoding.EncodingPass._run_encoder, feature_shards.atomic_path

        def encode_or_kill(*arguments):
            if next(calls, None) is None:
                kill()
            return run_encoder(*arguments)

        @contextmanager
        def write_or_kill(path):
            with atomic_path(path) as partial:
                yield partial
                if next(calls, None) is None:
                    os.truncate(partial, partial.stat().st_size // 2)
                    kill()

        if moment == "encoder":
            encoding.EncodingPass._run_encoder = encode_or_kill
        if moment == "write":
            feature_shards.atomic_path = write_or_kill

    def on_train_start(self, trainer, pl_module):
        if self.is_in_training:
            kill()


def write(folder, manifest):
    folder.mkdir()
    text = {"class_path": "tests.training.test_feature_cache.Embedding"}
    options = {"manifest": str(manifest), "batch_size": BATCH, "num_workers": 0}
    content = {
        "model": {"encoders": {"text": text}, "fusion": "fusion_pl.fusion.Concat"},
        "data": {"class_path": "fusion_pl.data.ManifestData", "init_args": options},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "cache": "cache",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def outcome(run_folder):
    metrics = json.loads((run_folder / "metrics.json").read_text())["metrics"]
    return metrics, load(run_folder / "checkpoints/last.ckpt")["state_dict"]


@pytest.fixture(scope="module")
def undisturbed(manifest, tmp_path_factory):
    """Metrics and weights of a run that is not killed."""
    folder, before, arguments = write(tmp_path_factory.mktemp("runs") / "whole", manifest), Path.cwd(), sys.argv
    os.chdir(folder)
    try:
        assert run("fit", ["--config", "config.yaml"]) == 0
    finally:
        os.chdir(before)
        sys.argv = arguments
    return outcome(folder / "lightning_logs/version_0")


@pytest.mark.parametrize(
    ("moment", "count", "stored"),
    [
        ("encoder", 0, 0),  # while the size is estimated, in two batches
        ("encoder", 2 + 3, 3 * BATCH),
        ("write", 2, 2 * BATCH),
        ("training", 0, NUM_VALUES),
    ],
)
def test_a_killed_run_encodes_only_what_lacks(moment, count, stored, undisturbed, manifest, tmp_path, monkeypatch):
    folder = write(tmp_path / "killed", manifest)
    callback = {"class_path": "tests.training.test_killed_pass.Kill", "init_args": {"moment": moment, "count": count}}
    (folder / "kill.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    done = run_command("fit", "--config", "config.yaml", "--config", "kill.yaml", folder=folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    stores = list((folder / "cache").iterdir())
    assert sum(len(FeatureShards(store)) for store in stores) == stored
    assert len(list(folder.glob("cache/*/*.partial"))) == (moment == "write")
    encoded, run_encoder = [], encoding.EncodingPass._run_encoder
    monkeypatch.setattr(
        encoding.EncodingPass,
        "_run_encoder",
        lambda self, inputs: encoded.append(len(inputs["ids"])) or run_encoder(self, inputs),
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert run("fit", ["--config", "config.yaml"]) == 0
    assert sum(encoded) == NUM_VALUES - stored + (0 if stored else MEASURED)
    torch.testing.assert_close(outcome(folder / "lightning_logs/version_1"), undisturbed)
