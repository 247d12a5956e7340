"""Outliers as a user meets them: predict with a checkpoint that fit wrote."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion_pl import Predictor
from fusion_pl.checkpoint import build_model, read_checkpoint
from fusion_pl.cli.run import run
from fusion_pl.training.outlier_statistics import StoredEmbeddings
from fusion_pl.types import UserError
from tests.calibrated import DATA, best, expected_detectors, predict, table
from tests.texts import BEST, LAST, load

NAMES = ["first", "second", "first+second"]


def assert_equal(found, expected):
    """A new encoding of the rows has other rounding errors."""
    assert list(found) == list(expected)
    for name, content in found.items():
        for part, values in content.items():
            torch.testing.assert_close(values, expected[name][part], rtol=2e-3, atol=1e-3)


def test_statistics_are_those_of_training_rows_and_scores_those_of_validation_rows(here):
    assert_equal(load(BEST)["fusion_pl"]["outlier_detectors"], expected_detectors(BEST, table()))


def test_the_last_checkpoint_has_detectors_if_it_is_the_best(here):
    best_one, last = load(BEST), load(LAST)
    assert bool(last["fusion_pl"]["outlier_detectors"]) == (best_one["epoch"] == last["epoch"])


def test_each_input_has_a_p_value_and_a_missing_one_has_none(here):
    assert predict("outliers.csv", "--outliers", "true") == 0
    assert predict("outliers.jsonl", "--outliers", "true", "--coverage", "0.9") == 0
    with open("outliers.csv", newline="") as file:
        found = list(csv.DictReader(file))
    lines = [json.loads(line) for line in Path("outliers.jsonl").read_text().splitlines()]
    assert all(line["set"] for line in lines)
    for row, line, truth in zip(found, lines, table(), strict=True):
        assert list(line["outlier_p_values"]) == NAMES
        assert (line["outlier_p_values"]["second"] is None) == (truth["second"] == "")
        for name, p_value in line["outlier_p_values"].items():
            cell = row[f"outlier_p_value({name})"]
            assert cell == ("" if p_value is None else f"{p_value:.6g}")
    for name in NAMES:  # a share of α of the test rows, which are drawn as the validation rows are
        rows = zip(lines, table(), strict=True)
        p_values = [line["outlier_p_values"][name] for line, row in rows if row["split"] == "test"]
        assert np.mean([p <= 0.2 for p in p_values if p is not None]) == pytest.approx(0.2, abs=0.12)
    assert predict("without.jsonl") == 0
    assert "outlier_p_values" not in json.loads(Path("without.jsonl").read_text().splitlines()[0])


def test_the_input_with_another_language_is_found(here):
    predictor = Predictor.from_checkpoint(BEST, device="cpu")
    foreign = ["où est la gare", "nous partons", "la maison est vieille", "je ne sais pas", "quelle heure est-il"]
    rows = [row for row in table() if row["split"] == "test" and row["second"]][: len(foreign)]
    samples = [{"first": text, "second": row["second"]} for text, row in zip(foreign, rows, strict=True)]
    found = [one.outlier_p_values for one in predictor.predict(samples, outliers=True)]
    usual = predictor.predict([{"first": row["first"], "second": row["second"]} for row in rows], outliers=True)
    assert np.mean([p["first"] for p in found]) < 0.05
    assert [p["second"] for p in found] == [one.outlier_p_values["second"] for one in usual]


def test_a_large_validation_is_reduced_evenly():
    stored = StoredEmbeddings()
    for _ in range(2):  # a reset discards everything
        stored.reset()
        for start in range(0, 45_000, 700):
            rows = torch.arange(start, min(start + 700, 45_000))
            stored.update({"text": rows.float().unsqueeze(1)}, rows, torch.ones(len(rows), 1, dtype=torch.bool))
            assert sum(map(len, stored.target)) <= 10_000
    embeddings, target, _ = stored.compute()
    assert target.tolist() == list(range(0, 45_000, 8))
    assert embeddings[:, 0].tolist() == target.tolist()


def test_several_labels_have_outliers_too(here):
    with open("rows.csv", newline="") as file, open("several.csv", "w", newline="") as copy:
        copy.write(file.read().replace(",x,", ",x|y,"))
    out = ["--model.task", "MultiLabel", "--trainer.logger.init_args.save_dir", "several"]
    out += [
        "--data.input_dropout",
        "{first: 0.9}",
        "--data.augment",
        "{second: {class_path: fusion_pl.data.augment.Typos, init_args: {rate: 0.9}}}",
    ]
    config = ["--config", "lightning_logs/version_0/config.yaml", "--data.manifest", "several.csv"]
    assert run("fit", [*config, *out, "--trainer.max_epochs", "1", "--checkpoint.monitor", "val/loss"]) == 0
    found = load(best("several"))["fusion_pl"]["outlier_detectors"]
    assert_equal(found, expected_detectors(best("several"), table(), one_mean=True))  # not augmented, nothing dropped
    arguments = ["--ckpt_path", str(best("several")), *DATA, "--outliers", "true", "--output", "several.jsonl"]
    assert run("predict", arguments) == 0
    line = json.loads(Path("several.jsonl").read_text().splitlines()[0])
    assert list(line["outlier_p_values"]) == NAMES


def test_a_checkpoint_without_statistics_says_what_to_do(here):
    checkpoint = read_checkpoint(BEST)
    detectors = checkpoint["fusion_pl"].pop("outlier_detectors")
    predictor = Predictor(build_model(checkpoint, BEST), device="cpu")
    with pytest.raises(UserError, match="outliers needs statistics of at least 50 training and 50 validation samples"):
        predictor.predict({"first": "red 1"}, outliers=True)
    checkpoint["fusion_pl"]["outlier_detectors"] = {"first+second": detectors["first"]}
    predictor = Predictor(build_model(checkpoint, BEST), device="cpu")
    with pytest.raises(UserError, match=r"the outlier detector of first\+second does not fit the model"):
        predictor.predict({"first": "red 1"}, outliers=True)
