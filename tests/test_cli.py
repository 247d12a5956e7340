"""The commands as a user types them. Most run in this process, because imports take most of the time."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fusion_pl.__main__ import HELP, main
from fusion_pl.cli.run import run
from tests import texts
from tests.commands import Command


def encoder(name, **init_args):
    return {"class_path": f"fusion_pl.encoders.{name}", "init_args": init_args}


@pytest.fixture
def config(manifest, tmp_path, monkeypatch):
    """A complete configuration in an empty folder."""
    monkeypatch.chdir(tmp_path)
    content = {
        "seed_everything": 1,
        "model": {
            "encoders": {
                "text": encoder("TinyText", dim=8),
                "image": encoder("TinyImage", dim=16, image_size=16, channels=1),
                "audio": encoder("TinyAudio", dim=8, num_layers=1),
            },
            "fusion": {"class_path": "fusion_pl.fusion.Weighted", "init_args": {"dim": 16}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": str(manifest), "batch_size": 5, "num_workers": 0},
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(autouse=True)
def _restore_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fusion-pl"])


def results(folder="lightning_logs", version=0):
    with open(f"{folder}/version_{version}/metrics.json") as file:
        return json.load(file)


def test_train_test_and_predict(config, manifest, tmp_path, capsys):
    assert run("fit", ["--config", str(config)]) == 0
    fitted = results()
    assert fitted["command"] == "fit"
    assert fitted["samples"] == {"train": 24, "val": 12}
    assert fitted["seed"] == 1
    assert {"val/accuracy", "val/f1", "val/auroc", "val/calibration_error", "val/loss"} <= fitted["metrics"].keys()
    assert set(fitted["per_class"]) == {"high", "low"}
    assert fitted["versions"]["lightning"]
    assert os.path.samefile(fitted["checkpoint"], "lightning_logs/version_0/checkpoints/best.ckpt")
    import torch

    checkpoint = torch.load(fitted["checkpoint"], weights_only=True)
    assert fitted["epoch"] == checkpoint["epoch"]  # the reported validation is that of the best checkpoint
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["model"]["fusion"]["init_args"]["dropout"] == 0.1  # a default that is not in the configuration

    assert run("test", ["--config", "lightning_logs/version_0/config.yaml"]) == 0
    tested = results(version=1)
    assert tested["samples"] == {"test": 12}
    assert os.path.samefile(tested["checkpoint"], fitted["checkpoint"])
    assert "test/accuracy" in capsys.readouterr().out

    os.rename("lightning_logs/version_0/checkpoints/best.ckpt", "moved.ckpt")
    arguments = ["--ckpt_path", "moved.ckpt", "--data.manifest", str(manifest), "--data.num_workers", "0"]
    assert run("predict", [*arguments, "--output", "p.csv"]) == 0
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"s{i}" for i in range(48)]
    assert all(float(row["p(high)"]) + float(row["p(low)"]) == pytest.approx(1, abs=1e-5) for row in rows)
    correct = [row["label"] == ("high", "low")[i % 2] for i, row in enumerate(rows)]
    assert sum(correct[36:]) / 12 == pytest.approx(tested["metrics"]["test/accuracy"])

    assert run("predict", [*arguments, "--output", "p.jsonl"]) == 0
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [row["label"] for row in rows]


def test_tensorboard_has_the_curves_of_the_readme(config):
    assert run("fit", ["--config", str(config), "--trainer.max_epochs", "3"]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("lightning_logs/version_0")
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    validation = {"loss", "accuracy", "f1", "auroc", "calibration_error", "weight/text", "weight/image", "weight/audio"}
    assert {"train/loss", "train/loss_step", "train/accuracy"} <= scalars
    assert {f"Validation/{name}" for name in validation} <= scalars
    assert any(name.startswith("lr-") for name in scalars)
    assert any("samples_per_sec" in name for name in scalars)
    assert "Validation/confusion" in events.Tags()["images"]


def test_markup_in_a_name_is_printed_literally(tmp_path, monkeypatch, capsys):
    """Rich would parse the markup, and a terminal would execute the escape sequence."""
    monkeypatch.chdir(tmp_path)
    texts.write_config(tmp_path)
    content = yaml.safe_load(Path("config.yaml").read_text())
    name = "[/b][red]\x1b[2J"
    content["model"]["encoders"] = {name: content["model"]["encoders"]["text"]}
    content["data"]["init_args"]["inputs"] = {name: "text"}
    Path("config.yaml").write_text(yaml.safe_dump(content))
    assert texts.fit("--trainer.max_epochs", "1", "--trainer.logger", "false") == 0
    assert "[/b][red]\\x1b[2J" in capsys.readouterr().out


def test_a_second_config_and_the_command_line_override(config, tmp_path):
    (tmp_path / "more.yaml").write_text(
        "trainer: {max_epochs: 1}\nmodel: {fusion: {class_path: fusion_pl.fusion.Mean}}\n"
    )
    assert run("fit", ["--config", str(config), "--config", "more.yaml", "--data.batch_size", "7"]) == 0
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["model"]["fusion"]["class_path"] == "fusion_pl.fusion.Mean"
    assert saved["trainer"]["max_epochs"] == 1
    assert saved["data"]["init_args"]["batch_size"] == 7


def test_a_resumed_run_keeps_its_folder(config):
    assert run("fit", ["--config", str(config), "--trainer.max_epochs", "1"]) == 0
    assert run("fit", ["--config", str(config), "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert results()["epochs"] == 3
    assert os.listdir("lightning_logs") == ["version_0"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--config", "none.yaml"], "none.yaml"),
        (["--model.fusion", "fusion_pl.fusion.Concatt"], "there is no class 'fusion_pl.fusion.Concatt'"),
        (["--model.fusion.dimm", "3"], "no option 'dimm'"),
        (["--model.fusion.dim", "wide"], "model.fusion.dim is wide, expected a whole number"),
        (["--model.fusion.dim", "0"], "Weighted was given dim=0"),
        (["--data.batch_sizes", "3"], "no option 'batch_sizes'"),
        (["--data.manifest", "none.csv"], "the manifest none.csv does not exist"),
        (["--data.inputs", "{photo: image}"], "data.inputs has the input 'photo'"),
        (["--trainer.precision", "17"], "trainer.precision is 17, expected one of"),
        (["--trainer.max_epochs", "-1"], "give trainer.max_steps, or model.lr_scheduler.init_args.total_steps"),
        (["--ckpt_path", "none.ckpt"], "there is no checkpoint none.ckpt"),
        (["--ckpt_path", "last"], "there is no last.ckpt below lightning_logs"),
    ],
)
def test_a_user_error_is_one_sentence(config, arguments, match, capsys):
    options = arguments if arguments[0] == "--config" else ["--config", str(config), *arguments]
    assert run("fit", options) == 2
    message = capsys.readouterr().err
    assert match in message
    assert "Traceback" not in message
    assert not list(Path().glob("lightning_logs/*/checkpoints"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "required: ckpt_path"),
        (
            ["--ckpt_path", "none.ckpt", "--data.manifest", "m.csv", "--output", "p.csv"],
            "there is no checkpoint none.ckpt",
        ),
        (
            ["--ckpt_path", "none.ckpt", "--data.manifest", "m.csv", "--output", "p.txt"],
            "written as .csv, .jsonl or .parquet",
        ),
        (
            ["--ckpt_path", "none.ckpt", "--data.manifest", "m.csv", "--output", "no/p.csv"],
            "folder no does not exist: create it, or",
        ),
        (
            ["--ckpt_path", "none.ckpt", "--output", "p.csv"],
            "give a table with --data.manifest, or one sample with --input",
        ),
    ],
)
def test_a_user_error_of_predict_is_one_sentence(tmp_path, monkeypatch, arguments, match, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("predict", arguments) == 2
    assert match in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(config, capsys):
    assert run("fit", ["--config", str(config), "--trainer.max_epochs", "1"]) == 0
    assert run("test", ["--config", str(config), "--model.fusion", "fusion_pl.fusion.Mean"]) == 2
    assert "was trained with another fusion head" in capsys.readouterr().err
    assert run("test", ["--config", str(config), "--model.fusion.dim", "8"]) == 2
    assert "the checkpoint's weights do not fit this configuration" in capsys.readouterr().err


def test_help_and_an_unknown_command_do_not_import_the_libraries(monkeypatch, capsys):
    def output(*arguments):
        monkeypatch.setattr(sys, "argv", ["fusion-pl", *arguments])
        return main(), capsys.readouterr()

    assert output("--help")[1].out == HELP
    code, captured = output("fitt")
    assert code == 2
    assert "did you mean fit?" in captured.err
    call = "import sys; sys.argv = ['fusion-pl', '--help']; from fusion_pl.__main__ import main; main(); "
    loaded = call + "print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert out.endswith("False\n")


def test_a_terminated_run_saves_and_can_be_resumed(config, tmp_path):
    endless = ["--trainer.max_epochs", "100000", "--early_stopping.patience", "100000"]
    log = tmp_path / "log"
    process = Command(["fit", "--config", str(config), *endless], [log, log])
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 180
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=180)
    output = log.read_text()
    assert code == 128 + signal.SIGTERM, output
    assert "Stopped; saved" in output
    assert "Traceback" not in output
    import torch

    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] > 0
    more = ["--trainer.max_steps", str(saved["global_step"] + 3), "--trainer.max_epochs", "100000"]
    assert run("fit", ["--config", str(config), "--ckpt_path", "last", *more]) == 0
