"""Two processes have the same results as one, with counts that two does not divide."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from fusion_pl.cli.run import run
from fusion_pl.cli.runs import find_checkpoint
from fusion_pl.data import ManifestData
from fusion_pl.predict import Predictor
from fusion_pl.types import UserError

from .commands import run_command
from .test_cli import encoder

DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]


@pytest.fixture(scope="module")
def folder(manifest, tmp_path_factory):
    """24 rows to train with, 11 to validate and 11 to test."""
    folder = tmp_path_factory.mktemp("processes")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    left = [row for index, row in enumerate(rows) if index not in (30, 41)]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(left)
    content = {
        "seed_everything": 1,
        "model": {
            "encoders": {
                "text": encoder("TinyText", dim=8),
                "image": encoder("TinyImage", dim=16, image_size=16, channels=1, combine="attention"),
                "audio": encoder("TinyAudio", dim=8, num_layers=1),
            },
            "fusion": {"class_path": "fusion_pl.fusion.Weighted", "init_args": {"dim": 16}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {
                "manifest": str(folder / "manifest.csv"),
                "root": str(manifest.parent),
                "batch_size": 4,
                "num_workers": 0,
            },
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def launch(subcommand, folder, *more):
    """Run a command that starts the second process."""
    call = [sys.executable, "-m", "fusion_pl", subcommand, "--config", "config.yaml", *DDP, *more]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def results(folder, version):
    return json.loads((folder / f"lightning_logs/version_{version}/metrics.json").read_text())


@pytest.fixture(scope="module")
def fitted(folder):
    """Results of a run of two processes in bfloat16."""
    launch("fit", folder, "--trainer.precision", "bf16-mixed")
    return results(folder, 0)


def expected_metrics(checkpoint, folder, split):
    """Compute the loss, the weights of inputs and of the picture's hidden layers, sample by sample."""
    model = Predictor.from_checkpoint(checkpoint, device="cpu").model
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    data = ManifestData(**settings["data"]["init_args"] | {"batch_size": 1})
    data.processors = model.processors
    data.setup("test")
    losses, weights, layers = [], [], []
    with torch.no_grad():
        for batch in getattr(data, f"{split}_dataloader")():
            encoded = model.encode(batch)
            fused = model.fuse(encoded)
            losses.append(cross_entropy(fused.logits, batch.target))
            weights.append(fused.weights[0])
            layers += [encoded["image"].layer_weights[0]] if batch.present["image"][0] else []
    assert len(losses) == 11
    found = {f"{split}/loss": torch.stack(losses).mean().item()}
    for name, weight in zip(model.encoders, torch.stack(weights).mean(0).tolist(), strict=True):
        found[f"{split}/weight/{name}"] = weight
    for layer, weight in enumerate(torch.stack(layers).mean(0).tolist()):
        found[f"{split}/layer_weight/image/{layer}"] = weight
    return found


def test_two_processes_have_the_same_metrics_as_one(folder, fitted, monkeypatch):
    """11 test samples: 6 and 5, in batches of 4."""
    done = run_command(
        "test", "--config", "config.yaml", *DDP, "--trainer.precision", "32-true", folder=folder, processes=2
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["fusion-pl"])
    assert run("test", ["--config", "config.yaml", "--trainer.precision", "32-true"]) == 0
    two, one = results(folder, 1), results(folder, 2)
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["samples"] == one["samples"] == {"test": 11}
    assert two["per_class"] == one["per_class"]
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    plain = expected_metrics(folder / fitted["checkpoint"], folder, "test")
    assert {name: two["metrics"][name] for name in plain} == pytest.approx(plain, abs=1e-5)
    assert sum(value for name, value in plain.items() if "/weight/" in name) == pytest.approx(1.0, abs=1e-5)


def test_monitored_metrics_are_exact(folder, fitted):
    assert fitted["precision"] == "bf16-mixed"
    assert fitted["processes"] == 2
    assert fitted["samples"]["val"] == 11
    plain = expected_metrics(folder / fitted["checkpoint"], folder, "val")
    assert {name: fitted["metrics"][name] for name in plain} == pytest.approx(plain, rel=0.02)


def test_one_process_resumes_a_run_of_two(folder, fitted, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(sys, "argv", ["fusion-pl"])
    assert run("fit", ["--config", "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert results(tmp_path / "copy", 0)["epochs"] == 2


@pytest.fixture(scope="module")
def sharded(manifest, tmp_path_factory):
    """Parameter groups with FSDP, and the path of its checkpoint."""
    folder = tmp_path_factory.mktemp("sharded")
    code = "import sys; from tests.sharded import main; main(*sys.argv[1:])"
    done = run_command(manifest, folder / "found.json", processes=2, code=code)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text()), folder / "sharded.ckpt"


def test_sharded_norms_have_no_weight_decay(sharded):
    found, _ = sharded
    assert found["pieces"] == found["parameters"]  # all of them are flat, as the optimizer sees them
    assert found["decay"] == {"new": 0.01, "new_no_decay": 0.0}
    assert not [name for name in found["new"] if found["dimensions"][name] <= 1]
    assert not [name for name in found["new_no_decay"] if found["dimensions"][name] > 1]
    assert len(found["new"] + found["new_no_decay"]) == found["parameters"]
    assert found["joined"].startswith("the strategy joins parameters with and without weight decay")


def test_a_sharded_checkpoint_names_the_command_to_consolidate_it(sharded, manifest, monkeypatch, capsys):
    _, path = sharded
    monkeypatch.chdir(path.parent)
    predict = ["--data.manifest", str(manifest), "--data.num_workers", "0", "--output", "p.csv", "--ckpt_path"]
    with pytest.raises(UserError, match="is a folder with a sharded checkpoint"):  # for the other commands
        find_checkpoint(str(path), Path())
    assert run("predict", [*predict, str(path)]) == 2
    message = capsys.readouterr().err
    module = "lightning.pytorch.utilities.consolidate_checkpoint"
    assert f"{path} is a folder" in message
    assert f"consolidate it with python -m {module} {path}, and use {path}.consolidated" in message
    monkeypatch.setattr(sys, "argv", ["consolidate", str(path)])
    runpy.run_module(module, run_name="__main__")
    assert run("predict", [*predict, f"{path}.consolidated"]) == 0
    assert len((path.parent / "p.csv").read_text().splitlines()) == 49
