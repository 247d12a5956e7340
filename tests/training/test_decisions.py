"""Prediction sets and abstention as a user meets them: predict with a checkpoint, and what test reports."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from fusion_pl import Predictor
from fusion_pl.checkpoint import build_model, read_checkpoint
from fusion_pl.cli.run import run
from fusion_pl.types import UserError
from tests.calibrated import DATA, best, fit, predict, results, table, write_table
from tests.texts import BEST, load


def validation_rows():
    return [index for index, row in enumerate(table()) if row["split"] == "val"]


def test_sets_contain_the_label_of_the_asked_share_of_the_validation(here):
    assert predict("sets.csv", "--coverage", "0.9") == 0
    assert predict("sets.jsonl", "--coverage", "0.9") == 0
    with open("sets.csv", newline="") as file:
        found = list(csv.DictReader(file))
    lines = [json.loads(line) for line in Path("sets.jsonl").read_text().splitlines()]
    assert [row["set"].split("|") for row in found] == [line["set"] for line in lines]
    assert "abstained" not in lines[0]
    sizes = {len(line["set"]) for line in lines}
    assert min(sizes) >= 1 < max(sizes)
    rows = validation_rows()
    covered = sum(table()[row]["label"] in lines[row]["set"] for row in rows)
    assert covered == math.ceil(0.9 * (len(rows) + 1))  # exact, because no two scores are equal
    assert all(line["label"] in line["set"] for line in lines)
    predictor = Predictor.from_checkpoint(BEST, device="cpu")
    sample = {"first": table()[0]["first"], "second": table()[0]["second"] or None}
    assert predictor.predict(sample, coverage=0.9).set == lines[0]["set"]
    assert predictor.predict(sample).set is None


def test_sets_by_class_contain_each_class_in_that_share(here):
    assert predict("classes.jsonl", "--coverage", "0.9", "--coverage_by_class", "true") == 0
    lines = [json.loads(line) for line in Path("classes.jsonl").read_text().splitlines()]
    for name in "xyz":
        rows = [row for row in validation_rows() if table()[row]["label"] == name]
        assert sum(name in lines[row]["set"] for row in rows) == math.ceil(0.9 * (len(rows) + 1))


@pytest.mark.parametrize("doubt", ["probability", "entropy", "energy"])
def test_abstention_leaves_a_label_to_the_asked_share_of_the_validation(doubt, here, capsys):
    assert predict("doubt.csv", "--abstain", "0.7", "--doubt", doubt) == 0
    with open("doubt.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert {row["abstained"] for row in found} == {"true", "false"}
    assert all((row["label"] == "") == (row["probability"] == "") == (row["abstained"] == "true") for row in found)
    assert all(row["p(x)"] for row in found)
    rows = validation_rows()
    answered = sum(found[row]["abstained"] == "false" for row in rows)
    assert answered == pytest.approx(0.7 * len(rows), abs=2)  # samples with equal texts have equal doubt
    printed = capsys.readouterr().err
    silent = sum(row["abstained"] == "true" for row in found)
    assert f"{silent} of 639 have no label, because the model abstains" in printed
    right = [row["label"] == truth["label"] for row, truth in zip(found, table(), strict=True) if row["label"]]
    trained = {(row["first"], row["second"]) for row in table() if row["split"] == "train"}
    seen = sum(
        (truth["first"], truth["second"]) in trained for row, truth in zip(found, table(), strict=True) if row["label"]
    )
    known = f"({len(right)} rows with a known label that the model does not abstain from, {seen} of which the model"
    assert f"accuracy {sum(right) / len(right):.4f} {known} was trained on)" in printed
    assert 0 < seen < len(right)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coverage", "1.5"], "coverage is 1.5, expected a share above 0 and below 1"),
        (["--abstain", "0"], "abstain is 0.0, expected a share above 0 and below 1"),
        (["--coverage_by_class", "true"], "coverage_by_class needs a coverage"),
        (["--doubt", "entropy"], "doubt entropy needs abstain"),
        (["--coverage", "0.999"], "a coverage of 0.999 needs at least 999 validation samples"),
        (["--abstain", "0.7", "--doubt", "evidential"], "doubt is 'evidential', and the checkpoint has the scores of"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(options, message, here, capsys):
    assert predict("refused.csv", *options) == 2
    assert message in capsys.readouterr().err
    assert not Path("refused.csv").exists()


def test_the_head_evidential_has_its_own_doubt(here):
    options = ["--trainer.logger.init_args.save_dir", "evidence", "--model.calibration", "none"]
    assert fit(*options, epochs=1, head="Evidential") == 0
    checkpoint = str(best("evidence"))
    options = ["--output", "evidence.jsonl", "--abstain", "0.5", "--doubt", "evidential"]
    assert run("predict", ["--ckpt_path", checkpoint, *DATA, *options]) == 0
    lines = [json.loads(line) for line in Path("evidence.jsonl").read_text().splitlines()]
    rows = validation_rows()
    assert sum(not lines[row]["abstained"] for row in rows) == pytest.approx(len(rows) / 2, abs=2)
    config = "evidence/version_0/config.yaml"
    assert run("test", ["--config", config, "--ckpt_path", checkpoint]) == 0
    assert set(results(1, "evidence")["prediction_sets"]) == {"0.8", "0.9", "0.95"}  # also without calibration


class FailWithinEpoch(Callback):
    """Fail in the second epoch, after a step that follows the best validation."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise UserError("no more")


def test_a_checkpoint_from_within_an_epoch_has_no_scores_of_older_weights(here, capsys):
    options = ["--trainer.logger.init_args.save_dir", "stopped", "--trainer.callbacks", f"{__name__}.FailWithinEpoch"]
    assert fit(*options, epochs=2) == 2
    last = best("stopped").with_name("last.ckpt")
    assert load(best("stopped"))["fusion_pl"]["outlier_detectors"]
    content = load(last)["fusion_pl"]
    assert (content["validation_scores"], content["outlier_detectors"]) == (None, {})
    assert content["calibration"] == load(best("stopped"))["fusion_pl"]["calibration"]
    for option in (["--coverage", "0.9"], ["--abstain", "0.7"], ["--outliers", "true"]):
        assert run("predict", ["--ckpt_path", str(last), *DATA, "--output", "last.csv", *option]) == 2
        message = capsys.readouterr().err
        assert "the checkpoint has none" in message
        assert "use best.ckpt" in message


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A folder with a model of several labels: x and y together, z alone but not in test; some rows have none."""
    folder = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_table(folder)
        records = table()
        for number, record in enumerate(records):
            has_z = number % 3 and record["split"] != "test"
            record["label"] = {"x": "x|y", "y": "y", "z": "z" if has_z else ""}[record["label"]]
        with open("labels.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
        encoder = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 16}}
        options = ["--model.task", "MultiLabel", "--model.encoders", json.dumps({"first": encoder})]
        options += ["--model.fusion", "Concat", "--data", "ManifestData", "--data.manifest", "labels.csv"]
        options += ["--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
        options += ["--trainer.logger.init_args.save_dir", "runs"]
        assert run("fit", options) == 0
        assert run("test", [*options, "--ckpt_path", "best"]) == 0
    return folder, records


def test_sets_of_several_labels_contain_all_labels_of_the_asked_share(labels, monkeypatch, capsys):
    folder, records = labels
    monkeypatch.chdir(folder)
    arguments = ["--ckpt_path", str(best("runs")), "--data.manifest", "labels.csv", "--output", "sets.jsonl"]
    assert run("predict", [*arguments, "--coverage", "0.9"]) == 0
    lines = [json.loads(line) for line in Path("sets.jsonl").read_text().splitlines()]
    used = [index for index, record in enumerate(records) if record["split"] == "val"]
    covered = sum(set(records[index]["label"].split("|")) - {""} <= set(lines[index]["set"]) for index in used)
    assert covered >= math.ceil(0.9 * (len(used) + 1))
    smallest = min(lines[index]["probabilities"][name] for index in used for name in lines[index]["set"])
    strict = [{n for n, p in lines[index]["probabilities"].items() if p > smallest} for index in used]
    owned = [set(records[index]["label"].split("|")) - {""} for index in used]
    assert sum(own <= found for own, found in zip(owned, strict, strict=True)) < math.ceil(0.9 * (len(used) + 1))
    by_class = results(1, "runs")["prediction_sets"]["0.9"]["by_class"]
    assert by_class.keys() == {"x", "y", "z"}
    assert by_class["z"] == {"samples": 0, "coverage": None, "interval": [None, None]}
    capsys.readouterr()
    assert run("predict", [*arguments, "--overwrite", "--coverage", "0.9", "--coverage_by_class", "true"]) == 2
    assert "coverage_by_class needs one class per sample, and MultiLabel has several" in capsys.readouterr().err


def test_abstention_from_several_labels(labels, monkeypatch):
    folder, records = labels
    monkeypatch.chdir(folder)
    arguments = ["--ckpt_path", str(best("runs")), "--data.manifest", "labels.csv"]
    for doubt in ("probability", "entropy", "energy"):
        options = ["--output", f"{doubt}.csv", "--abstain", "0.7", "--doubt", doubt]
        assert run("predict", [*arguments, *options]) == 0
        with open(f"{doubt}.csv", newline="") as file:
            found = list(csv.DictReader(file))
        used = [row for row, record in zip(found, records, strict=True) if record["split"] == "val"]
        assert sum(row["abstained"] == "false" for row in used) == pytest.approx(0.7 * len(used), abs=2)
        assert not any(row["labels"] for row in found if row["abstained"] == "true")


def test_the_checkpoint_has_the_numbers_of_predictions_of_the_validation(labels, monkeypatch):
    folder, records = labels
    monkeypatch.chdir(folder)
    arguments = ["--ckpt_path", str(best("runs")), "--data.manifest", "labels.csv", "--output", "plain.jsonl"]
    assert run("predict", arguments) == 0
    lines = [json.loads(line) for line in Path("plain.jsonl").read_text().splitlines()]
    found = read_checkpoint(best("runs"))["fusion_pl"]["validation_scores"]
    used = [line["labels"] for line, record in zip(lines, records, strict=True) if record["split"] == "val"]
    assert found["predicted"] == Counter("+".join(names) or "no label" for names in used)
    assert found["inputs"] == {"first": len(used)}


def test_a_checkpoint_without_scores_says_what_to_do(here):
    checkpoint = read_checkpoint(BEST)
    checkpoint["fusion_pl"].pop("validation_scores")
    predictor = Predictor(build_model(checkpoint, BEST), device="cpu")
    with pytest.raises(UserError, match="the checkpoint has none: train with fusion-pl fit"):
        predictor.predict({"first": "red 1"}, coverage=0.9)


@pytest.mark.parametrize(
    "damage",
    [
        *({"conformity": 3}, {"target": torch.tensor([7])}, {"conformity": torch.full((240,), math.nan)}),
        *({"predicted": {"x": 10**6}}, {"predicted": {"x": 0}}, {"inputs": {"first": "many"}}, {"inputs": [5]}),
    ],
)
def test_damaged_scores_are_refused(damage, here):
    checkpoint = read_checkpoint(BEST)
    checkpoint["fusion_pl"]["validation_scores"] |= damage
    with pytest.raises(UserError, match="its validation scores are damaged"):
        build_model(checkpoint, BEST)


def test_the_test_reports_realised_coverage_and_risk(here):
    arguments = ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]
    assert run("test", [*arguments, "--trainer.logger.init_args.save_dir", "sets"]) == 0
    measured = results(0, "sets")
    assert predict("sets.jsonl", "--coverage", "0.9") == 0
    lines = [json.loads(line) for line in Path("sets.jsonl").read_text().splitlines()]
    rows = [(line, row) for line, row in zip(lines, table(), strict=True) if row["split"] == "test"]
    covered = [row["label"] in line["set"] for line, row in rows]
    found = measured["prediction_sets"]["0.9"]
    assert found["coverage"] == pytest.approx(np.mean(covered))
    assert found["mean_size"] == pytest.approx(np.mean([len(line["set"]) for line, _ in rows]))
    assert found["interval"][0] < found["coverage"] < found["interval"][1]
    for name in "xyz":
        own = [is_covered for is_covered, (_, row) in zip(covered, rows, strict=True) if row["label"] == name]
        assert found["by_class"][name]["coverage"] == pytest.approx(np.mean(own))
    alone = [is_covered for is_covered, (_, row) in zip(covered, rows, strict=True) if not row["second"]]
    assert found["by_inputs"]["first"]["samples"] == len(alone)
    assert found["by_inputs"]["first"]["coverage"] == pytest.approx(np.mean(alone))
    doubt = measured["doubt"]
    assert set(doubt) == {"probability", "entropy", "energy"}
    assert doubt["probability"]["accuracy_of_share"]["1.0"] == pytest.approx(measured["metrics"]["test/accuracy"])
    assert doubt["probability"]["accuracy_of_share"]["0.5"] > measured["metrics"]["test/accuracy"]
    assert 0 < doubt["probability"]["aurc"] < 1 - measured["metrics"]["test/accuracy"]
