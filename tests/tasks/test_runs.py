"""A table with several labels per row through fit, test, validate and predict, as a user runs them."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from fusion_pl import FusionClassifier, Predictor
from fusion_pl.analysis.compare import compare_command
from fusion_pl.analysis.plan import parse_heads
from fusion_pl.cli.run import run, run_reporting_errors
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Concat
from fusion_pl.losses import Focal
from fusion_pl.tasks import MultiClass, MultiLabel, Ordinal
from fusion_pl.tasks.multi_label_metrics import best_thresholds
from fusion_pl.training import Loss
from fusion_pl.types import UserError
from fusion_pl.uncertainty import calibration
from tests.commands import fork_spawned_processes, run_command

TAGS = ["crime", "drama", "war"]


def write_table(path):
    """Texts that contain the names of their labels; the words are in random order."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "tags", "split"])
        for row in range(240):
            tags = [name for name in TAGS if rng.random() < 0.4]
            words = rng.permutation([*tags, "the", "film"])
            writer.writerow([" ".join(words), "|".join(tags), ("train", "train", "val", "test")[row % 4]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which a model with thresholds of the validation was trained."""
    folder, before, arguments = tmp_path_factory.mktemp("labels"), Path.cwd(), sys.argv
    write_table(folder / "rows.csv")
    content = {
        "model": {
            "encoders": {"text": {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 32}}},
            "fusion": {"class_path": "fusion_pl.fusion.Concat", "init_args": {"dim": 32}},
            "task": {"class_path": "MultiLabel", "init_args": {"threshold": "validation"}},
            "loss": {"auxiliary_weight": 0.5, "criterion": {"class_path": "Asymmetric"}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": "rows.csv", "label": "tags", "batch_size": 8, "num_workers": 0},
        },
        "trainer": {"max_epochs": 4, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    os.chdir(folder)
    try:
        assert run("fit", ["--config", "config.yaml"]) == 0
        assert run("test", ["--config", "config.yaml"]) == 0
    finally:
        os.chdir(before)
        sys.argv = arguments
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(folder)
    return folder


def results(version):
    return json.loads(Path(f"lightning_logs/version_{version}/metrics.json").read_text())


def test_the_checkpoint_is_chosen_by_average_precision_and_contains_thresholds(here):
    fitted, tested = results(0), results(1)
    best = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
    thresholds = best["state_dict"]["task.thresholds"]
    assert thresholds.tolist() != [0.5] * 3
    for metrics in (fitted, tested):  # the test uses the thresholds of the checkpoint
        found = [metrics["per_class"][name]["threshold"] for name in TAGS]
        assert found == pytest.approx(thresholds.tolist(), abs=1e-4)
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert (config["checkpoint"]["monitor"], config["checkpoint"]["mode"]) == ("val/average_precision", "max")
    assert fitted["samples"] == {"train": 120, "val": 60}
    assert tested["metrics"]["test/average_precision"] > 0.9


def test_validate_reports_what_fit_reported(here):
    assert run("validate", ["--config", "config.yaml", "--trainer.logger.name", "again", "--ckpt_path", BEST]) == 0
    found = json.loads(Path("lightning_logs/again/version_0/metrics.json").read_text())
    names = [name for name in found["metrics"] if name in results(0)["metrics"]]
    assert {"val/f1", "val/exact_match", "val/loss"} <= set(names)
    after = results(0)["calibration"]["after"]["nll"]  # validate measures what predict gives, fit what it trains
    assert found["metrics"].pop("val/loss") == pytest.approx(after, rel=1e-4)
    for name in set(names) - {"val/loss"}:
        assert found["metrics"][name] == pytest.approx(results(0)["metrics"][name], abs=1e-6)
    assert found["per_class"] == results(0)["per_class"]


BEST = "lightning_logs/version_0/checkpoints/best.ckpt"


def test_thresholds_are_chosen_with_all_rows_of_a_large_validation(here, monkeypatch):
    """The calibration is fitted on an even selection of them."""
    monkeypatch.setattr(calibration, "MAX_SAMPLES", 8)
    assert run("fit", ["--config", "config.yaml", "--trainer.logger.name", "large", "--trainer.max_epochs", "1"]) == 0
    predictor = Predictor.from_checkpoint("lightning_logs/large/version_0/checkpoints/best.ckpt", device="cpu")
    with open("rows.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    found = [one.probabilities for one in predictor.predict([{"text": row["text"]} for row in rows])]
    probabilities = torch.tensor([[one[name] for name in TAGS] for one in found])
    target = torch.tensor([[int(name in row["tags"].split("|")) for name in TAGS] for row in rows])
    expected = best_thresholds(probabilities, target)
    torch.testing.assert_close(predictor.model.task.thresholds, expected, rtol=1e-4, atol=1e-4)


def test_predictions_have_labels_above_their_thresholds(here, capsys):
    arguments = ["--ckpt_path", BEST, "--data.manifest", "rows.csv", "--data.num_workers", "0", "--overwrite"]
    assert run("predict", [*arguments, "--output", "p.csv"]) == 0
    printed = capsys.readouterr().err
    assert run("predict", [*arguments, "--output", "p.jsonl"]) == 0
    thresholds = torch.load(BEST, weights_only=True)["state_dict"]["task.thresholds"].tolist()
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    with open("rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    truth = [set(filter(None, row["tags"].split("|"))) for row in table]
    assert list(rows[0]) == ["id", "labels", "p(crime)", "p(drama)", "p(war)", "error"]
    for row, line in zip(rows, lines, strict=True):
        expected = [name for name, limit in zip(TAGS, thresholds, strict=True) if line["probabilities"][name] >= limit]
        assert line["labels"] == expected
        assert row["labels"] == "|".join(expected)
        assert "label" not in line
    match = np.mean([set(line["labels"]) == labels for line, labels in zip(lines, truth, strict=True)])
    trained = {row["text"] for row in table if row["split"] == "train"}
    seen = sum(row["text"] in trained for row in table)
    assert f"exact match {match:.4f} (240 rows with a known label, {seen} of which the model was trained" in printed
    assert 120 <= seen < 240


def test_other_thresholds_than_those_of_the_checkpoint_are_not_ignored(here, capsys):
    """Those that were chosen belong to the checkpoint; a number belongs to the configuration."""
    options = ["--config", "config.yaml", "--ckpt_path"]
    assert run("test", [*options, BEST, "--model.task.threshold", "0.9"]) == 2
    assert "do not fit this configuration: use the config.yaml of its run" in capsys.readouterr().err
    fixed = ["--trainer.logger.name", "fixed"]
    assert (
        run("fit", ["--config", "config.yaml", "--model.task.threshold", "0.5", "--trainer.max_epochs", "1", *fixed])
        == 0
    )
    path = "lightning_logs/fixed/version_0/checkpoints/best.ckpt"
    assert run("test", [*options, path, "--model.task.threshold", "0.9", *fixed]) == 0
    metrics = json.loads(Path("lightning_logs/fixed/version_1/metrics.json").read_text())
    assert {row["threshold"] for row in metrics["per_class"].values()} == {0.9}


def test_terms_of_the_loss_are_logged_and_sum_to_the_loss(here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("lightning_logs/version_0")
    events.Reload()
    values = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(values["train/loss"]) == 4
    terms = np.add(values["train/loss/fused"], values["train/loss/auxiliary/text"])
    np.testing.assert_allclose(terms, values["train/loss"], rtol=1e-5)
    assert "Validation/confusion" in events.Tags()["images"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model.fusion", "Evidential"], "Evidential takes the softmax of one logit per class, which MultiLabel"),
        (
            ["--model.loss.criterion", "CrossEntropy"],
            "CrossEntropy does not fit the task MultiLabel: give one of Binary",
        ),
        (
            ["--model.loss.label_smoothing", "0.1"],
            "not supported by the criterion Asymmetric: set it to 0, or use Binary",
        ),
        (["--model.task", "MultiClass"], "Asymmetric does not fit the task MultiClass: give one of CrossEntropy"),
        (["--data.task", "MultiClass"], "data.task is set by model.task: give model.task instead"),
        (["--checkpoint.monitor", "val/accuracy"], "no run measures 'val/accuracy'"),
        (
            ["--ckpt_path", BEST, "--model.task", "MultiClass", "--model.loss.criterion", "null"],
            "was trained with another task (MultiLabel) than this configuration asks for (MultiClass): use the config",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(arguments, text, here, capsys):
    assert run("fit", ["--config", "config.yaml", *arguments]) == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_training_in_python_needs_the_task_once(tmp_path):
    write_table(tmp_path / "rows.csv")
    seed_everything(0)
    data = ManifestData(str(tmp_path / "rows.csv"), label="tags", num_workers=0, task=MultiLabel())
    model = FusionClassifier(
        {"text": TinyText(dim=16)}, Concat, data.classes, task=data.task, loss=Loss(criterion=Focal())
    )
    data.processors = model.processors
    best = ModelCheckpoint(tmp_path / "run", monitor="val/average_precision", mode="max", save_weights_only=True)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[best],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    predictor = Predictor.from_checkpoint(best.best_model_path)
    prediction = predictor.predict({"text": "the war drama"})
    assert prediction.label is None
    assert prediction.labels == [name for name in TAGS if prediction.probabilities[name] >= 0.5]
    other = FusionClassifier({"text": TinyText(dim=16)}, Concat, data.classes)
    with pytest.raises(UserError, match="the model has the task MultiClass, and the data MultiLabel"):
        Trainer(max_epochs=1, logger=False, accelerator="cpu", enable_checkpointing=False).fit(other, datamodule=data)


def test_compare_ranks_by_average_precision_and_tests_exact_match(tmp_path, monkeypatch, capfd):
    """Each run has its own process."""
    write_table(tmp_path / "rows.csv")
    inputs = {"text": "text", "again": "text"}
    content = {
        "model": {
            "encoders": {
                name: {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 16}} for name in inputs
            },
            "task": {"class_path": "fusion_pl.tasks.MultiLabel"},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": "rows.csv", "label": "tags", "inputs": inputs, "num_workers": 0},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    fork_spawned_processes(monkeypatch)
    arguments = ["--fusions", "Mean,Vote,Evidential", "--seeds", "1", "--inputs", "all", "--output", "out"]
    assert run_reporting_errors(lambda: compare_command(["--config", "config.yaml", *arguments])) == 0
    assert "Best on validation: " in capfd.readouterr().out
    result = json.loads((tmp_path / "out/runs/Mean-again+text-0/result.json").read_text())
    assert result["correct"].count("1") / 60 == pytest.approx(result["test"]["test/exact_match"])
    assert result["subsets"]["again+text"] == pytest.approx(result["test"]["test/exact_match"])
    report = (tmp_path / "out/report.md").read_text()
    for text in ("test exact match in %", "validation average precision", "test average precision", "softmax of one"):
        assert text in report
    assert "accuracy" not in report
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = {row["fusion"]: row for row in csv.DictReader(file)}
    assert float(rows["Mean"]["test/exact_match(text)"]) == pytest.approx(result["subsets"]["text"])
    assert {name: row["status"] == "failed" for name, row in rows.items()} == {
        "Mean": False,
        "Vote": False,
        "Evidential": True,
    }
    heads = {task: set(parse_heads("all", task)) for task in (MultiClass, MultiLabel, Ordinal)}
    late = {f"fusion_pl.fusion.{name}" for name in ("Average", "ProductOfExperts", "Stacking", "Vote")}
    trusted = {f"fusion_pl.fusion.{name}" for name in ("Evidential", "QualityAware")}
    assert heads[MultiLabel] == heads[MultiClass] - trusted
    assert heads[Ordinal] == heads[MultiLabel] - late


def test_two_processes_choose_the_thresholds_of_all_samples(here):
    """With 59 validation samples, of which one process has one more, and with unknown labels."""
    with open("rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::7]:
        row["tags"] = ""
    with open("unknown.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows[:2] + rows[3:])
    options = ["--config", "config.yaml", "--data.manifest", "unknown.csv", "--model.task.empty", "unknown"]
    options += ["--trainer.logger.name", "ddp"]
    processes = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.max_epochs", "2"]
    ran = run_command("fit", *options, *processes, processes=2)
    assert ran.returncode == 0, ran.stderr
    assert "rows, whose labels are all unknown" in ran.stderr
    assert run("validate", options) == 0
    two, one = (json.loads(Path(f"lightning_logs/ddp/version_{number}/metrics.json").read_text()) for number in (0, 1))
    assert two["samples"]["val"] == one["samples"]["val"]
    assert two["samples"]["val"] % 2 == 1
    for name, value in two["metrics"].items():
        assert one["metrics"][name] == pytest.approx(value, abs=1e-6)
    assert one["per_class"] == two["per_class"]


def terms(name):
    """Return the curves of the terms of the loss, over all files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"lightning_logs/{name}/version_0")
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("train/loss/")]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in tags}


def test_terms_of_the_loss_are_those_of_the_whole_epoch_after_a_resume(here):
    options = ["--config", "config.yaml", "--trainer.max_epochs", "2", "--early_stopping.patience", "9"]
    options += ["--model.lr_scheduler", "ConstantLR", "--model.lr_scheduler.factor", "1.0"]
    stopped = [*options, "--trainer.logger.name", "stopped"]
    assert run("fit", [*options, "--trainer.logger.name", "whole"]) == 0
    steps = ["--trainer.max_steps", "20", "--checkpoint.every_n_train_steps", "20"]  # in the second epoch of 15 steps
    assert run("fit", [*stopped, *steps]) == 0
    assert run("fit", [*stopped, "--ckpt_path", "last"]) == 0
    whole, resumed = terms("whole"), terms("stopped")
    assert whole.keys() == resumed.keys() == {"train/loss/fused", "train/loss/auxiliary/text"}
    for name, values in whole.items():
        assert resumed[name][-1] == pytest.approx(values[-1], rel=1e-5)
