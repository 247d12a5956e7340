"""Inputs of numbers and arrays as a user meets them: fit, resume, test, predict and the data check."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fusion_pl.cli.help import help_text
from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.encoders import FeatureEncoder
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.types import UserError
from tests.test_module import quiet_trainer
from tests.texts import BEST, LAST, fit_in

COLUMNS = ["temperature", "humidity", "pressure"]
ENCODERS = {
    "text": {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}},
    "sensors": {"class_path": "FeatureEncoder", "init_args": {"features": 3, "dim": 16, "missing_numbers": "flag"}},
    "video": {"class_path": "FeatureEncoder", "init_args": {"features": 2, "dim": 16, "width": 3}},
}


def write_folder(folder):
    """48 rows: the class is in the temperature, every fifth humidity and every seventh file is missing."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(48):
        label = row % 2
        np.save(folder / f"{row}.npy", rng.normal(size=(1 + row % 4, 2)).astype("float32") * 100)
        numbers = [20 + 8 * label + rng.normal(), "" if row % 5 == 0 else 40 + 5 * rng.normal(), 101_325 + rng.normal()]
        video = "" if row % 7 == 0 else f"{row}.npy"
        rows.append([f"row {row}", *numbers, video, "ab"[label], ("train", "train", "val", "test")[row // 12]])
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text", *COLUMNS, "video", "label", "split"], *rows])
    config = {
        "seed_everything": 1,
        "model": {"encoders": ENCODERS, "fusion": {"class_path": "Concat"}},
        "data": {
            "class_path": "ManifestData",
            "init_args": {"manifest": "table.csv", "inputs": {"sensors": COLUMNS}, "num_workers": 0, "batch_size": 8},
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which two epochs were trained."""
    folder = tmp_path_factory.mktemp("numbers")
    write_folder(folder)
    assert fit_in(folder) == 0
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return folder


def test_the_checkpoint_has_the_statistics_of_the_training_rows_only(inside):
    with open("table.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    numbers = np.array([[float(row[name] or math.nan) for name in COLUMNS] for row in rows])
    vectors = np.concatenate([np.load(row["video"]).astype("float64") for row in rows if row["video"]])
    weights = torch.load(BEST, weights_only=True)["state_dict"]
    for name, wanted in (("sensors", numbers), ("video", vectors)):
        state = weights[f"encoders.{name}._extra_state"]
        np.testing.assert_allclose(state, [np.nanmean(wanted, 0), np.nanstd(wanted, 0)], rtol=1e-9)


def test_predictions_need_the_checkpoint_alone(inside):
    predictor = Predictor.from_checkpoint(inside / BEST, "cpu")
    assert predictor.columns["sensors"] == COLUMNS
    array = np.load("3.npy")
    numbers = [21.5, 40, 101_325]
    same = [{"sensors": numbers}, {"sensors": np.array(numbers)}, {"sensors": torch.tensor([numbers])}]
    first, *others = (p.probabilities for p in predictor.predict([*same, {"sensors": ("21.5", "40", "101325")}]))
    assert all(other == pytest.approx(first, abs=1e-6) for other in others)
    first, *others = predictor.predict(
        [{"video": value} for value in (str(inside / "3.npy"), array, Path("3.npy").read_bytes(), array.tolist())]
    )
    assert all(other.probabilities == pytest.approx(first.probabilities, abs=1e-6) for other in others)
    wrong, missing, empty = predictor.predict(
        [{"sensors": [1, 2]}, {"sensors": [21.5, None, 101_325]}, {"sensors": [None] * 3, "text": None}]
    )
    assert wrong.error.startswith("the input has 2 numbers, expected 3 numbers")
    assert missing.error is None
    assert empty.error.startswith("the sample has none of the model's inputs")
    refused = predictor.predict({"video": "3.npy"}, open_paths=False)
    assert refused.error.startswith("the input 'video' may not be a path here")


def test_predict_and_test_commands_read_the_columns_from_the_checkpoint(inside, capsys):
    data = ["--data.manifest", "table.csv", "--data.num_workers", "0"]
    assert run("predict", ["--ckpt_path", str(BEST), *data, "--output", "p.jsonl", "--overwrite"]) == 0
    predictions = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert len(predictions) == 48
    assert all(prediction["error"] is None for prediction in predictions)
    assert run("test", ["--config", "config.yaml", "--ckpt_path", str(BEST)]) == 0


def test_a_resumed_run_keeps_the_statistics(inside, monkeypatch):
    """It neither computes them again nor starts from other ones."""
    monkeypatch.setattr(FeatureEncoder, "fit_statistics", lambda *_: pytest.fail("computed again"))
    before = torch.load(LAST, weights_only=True)["state_dict"]["encoders.sensors._extra_state"]
    resume = ["--trainer.max_epochs", "3", "--ckpt_path", "last"]
    assert run("fit", ["--config", "config.yaml", *resume]) == 0
    assert torch.equal(torch.load(LAST, weights_only=True)["state_dict"]["encoders.sensors._extra_state"], before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.encoders.sensors.features", "4"],
            "column '[temperature, humidity, pressure]': the input has 3",
        ),
        (["--data.inputs", "{sensors: [temperature, humid]}"], "there is no column 'humid' for the input 'sensors'"),
        (["--data.inputs", "{sensors: [temperature, text]}"], "row 2, column 'text': 'row 0' is not a finite number"),
        (["--model.encoders.video.width", "2"], "FeatureEncoder(width=2): expected an odd number"),
    ],
)
def test_mistakes_are_one_sentence(inside, capsys, options, message):
    assert run("fit", ["--config", "config.yaml", *options]) == 2
    assert message in capsys.readouterr().err


def test_help_describes_columns_of_numbers(inside):
    assert "list of columns of numbers" in " ".join(help_text("fit", [], everything=True).split())


def test_the_data_check_opens_the_numbers(inside, capsys):
    from fusion_pl.data_check.command import check_command

    arguments = ["--config", "config.yaml", "--output", "check", "--cleaned", "cleaned.csv"]
    assert check_command(arguments) == 0
    report = json.loads(Path("check/report.json").read_text())
    assert (report["errors"], report["missing"]["sensors"]) == (0, {"train": 0, "val": 0, "test": 0})
    assert Path("cleaned.csv").read_text().count("\n") == 49


def test_a_trainer_without_a_data_module_needs_no_statistics_only_without_standardisation(inside, tmp_path):
    for standardise in (False, True):
        data = ManifestData("table.csv", {"sensors": COLUMNS}, num_workers=0, drop_empty=True)
        encoder = FeatureEncoder(3, dim=8, standardise=standardise)
        model = FusionClassifier({"sensors": encoder}, Mean, ["a", "b"])
        data.processors = model.processors
        data.setup("fit")
        trainer = quiet_trainer(tmp_path, max_epochs=1)
        if standardise:
            with pytest.raises(UserError, match="the encoder of 'sensors' needs statistics of the training samples"):
                trainer.fit(model, data.train_dataloader(), data.val_dataloader())
        else:
            trainer.fit(model, data.train_dataloader(), data.val_dataloader())


def test_a_second_fit_keeps_the_statistics(inside, tmp_path):
    """As it keeps the weights, which expect them."""
    model = FusionClassifier({"sensors": FeatureEncoder(3, dim=8)}, Mean, ["a", "b"])
    seen = []
    for val_fraction in (0.2, 0.6):
        data = ManifestData("table.csv", {"sensors": COLUMNS}, val_fraction=val_fraction, split=None, num_workers=0)
        data.drop_empty = True
        data.processors = model.processors
        quiet_trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
        seen.append(model.encoders["sensors"].processor.mean)
    assert torch.equal(*seen)
