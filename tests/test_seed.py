"""The seed of a run, from ``--seed_everything`` to its ``config.yaml``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.texts import RUN, fit, load, values

from .test_exact_resume import DDP


def seed_of(version):
    return yaml.safe_load(Path(f"lightning_logs/version_{version}/config.yaml").read_text())["seed_everything"]


def weights(version):
    return load(f"lightning_logs/version_{version}/checkpoints/last.ckpt")["state_dict"]


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_random_seed_is_another_one_in_each_run_and_repeats_it(value, fresh, capsys):
    for version in range(2):
        assert fit("--seed_everything", value) == 0
        assert f"Seed set to {seed_of(version)}" in capsys.readouterr().err
    assert seed_of(0) != seed_of(1)
    assert values("train/loss_step") != values("train/loss_step", RUN.with_name("version_1"))
    assert fit("--config", str(RUN / "config.yaml")) == 0
    torch.testing.assert_close(weights(2), weights(0), rtol=0, atol=0)


def test_a_resumed_run_keeps_its_random_seed(fresh):
    assert fit("--seed_everything", "false") == 0
    first = seed_of(0)
    assert fit("--seed_everything", "false", "--trainer.max_epochs", "3", "--ckpt_path", "last") == 0
    assert seed_of(0) == first
    (RUN / "config.yaml").write_text("[")
    assert fit("--seed_everything", "false", "--trainer.max_epochs", "4", "--ckpt_path", "last") == 0
    assert seed_of(0) != first


class WriteIds(Callback):
    """Write the ids of the samples that each process trains on."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with Path(f"ids-{trainer.global_rank}").open("a") as file:
            file.writelines(f"{trainer.current_epoch} {sample_id}\n" for sample_id in batch.ids)


def test_two_processes_have_the_same_random_seed(fresh):
    Path("ids.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": ["tests.test_seed.WriteIds"]}}))
    options = ["--config", "config.yaml", "--config", "ids.yaml", "--seed_everything", "true"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fusion_pl", "fit", *options, *DDP]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ids = [Path(f"ids-{rank}").read_text().splitlines() for rank in range(2)]
    assert len(ids[0]) == len(ids[1]) == len(set(ids[0])) == 24
    assert len({*ids[0], *ids[1]}) == 48


def test_processes_that_cannot_share_a_random_seed_are_refused(fresh, capsys, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    for name, more in (("LOCAL_RANK", []), ("OTHER", ["--trainer.num_nodes", "2"])):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert fit("--seed_everything", "true", *more) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert "--seed_everything true draws a random seed, which would be another one in each process" in message
        assert "give a number, such as --seed_everything 1" in message
    assert not Path("lightning_logs").exists()
