"""Prediction sets and abstention as a user meets them: predict with a checkpoint, and what test reports."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pl import Predictor
from fusion_pl.checkpoint import build_model, read_checkpoint
from fusion_pl.cli.run import run
from fusion_pl.types import UserError
from tests.calibrated import DATA, best, fit, predict, results, table
from tests.texts import BEST


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
    known = f"({len(right)} rows with a known label that the model does not abstain from)"
    assert f"accuracy {sum(right) / len(right):.4f} {known}" in printed


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
    assert fit("--trainer.logger.init_args.save_dir", "evidence", epochs=1, head="Evidential") == 0
    checkpoint = str(best("evidence"))
    options = ["--output", "evidence.jsonl", "--abstain", "0.5", "--doubt", "evidential"]
    assert run("predict", ["--ckpt_path", checkpoint, *DATA, *options]) == 0
    lines = [json.loads(line) for line in Path("evidence.jsonl").read_text().splitlines()]
    rows = validation_rows()
    assert sum(not lines[row]["abstained"] for row in rows) == pytest.approx(len(rows) / 2, abs=2)


def test_several_labels_have_no_sets(here, capsys):
    with open("rows.csv", newline="") as file, open("labels.csv", "w", newline="") as copy:
        copy.write(file.read().replace(",x,", ",x|y,"))
    options = ["--model.task", "MultiLabel", "--trainer.logger.init_args.save_dir", "labels"]
    encoder = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 16}}
    model = [
        "--model.encoders",
        json.dumps({"first": encoder}),
        "--model.fusion",
        "Concat",
        "--trainer.max_epochs",
        "1",
    ]
    data = ["--data", "ManifestData", "--data.manifest", "labels.csv", "--data.num_workers", "0"]
    assert run("fit", [*model, *data, *options, "--trainer.enable_progress_bar", "false"]) == 0
    fitted = results(0, "labels")["calibration"]
    assert fitted["validation_samples"] == 240
    arguments = ["--ckpt_path", str(best("labels")), "--data.manifest", "labels.csv", "--output", "labels.jsonl"]
    for option in ("--coverage", "--abstain"):
        capsys.readouterr()
        assert run("predict", [*arguments, option, "0.9"]) == 2
        assert "needs one class per sample, and MultiLabel has several labels" in capsys.readouterr().err


def test_a_checkpoint_without_scores_says_what_to_do(here):
    checkpoint = read_checkpoint(BEST)
    checkpoint["fusion_pl"].pop("validation_scores")
    predictor = Predictor(build_model(checkpoint, BEST), device="cpu")
    with pytest.raises(UserError, match="the checkpoint has none: train with fusion-pl fit"):
        predictor.predict({"first": "red 1"}, coverage=0.9)


@pytest.mark.parametrize(
    "damage", [{"conformity": 3}, {"target": torch.tensor([7])}, {"conformity": torch.full((240,), math.nan)}]
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
