"""Calibration as a user meets it: fit, test and predict of a table, and the checkpoint between them."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusion_pl import Predictor
from fusion_pl.checkpoint import build_model, read_checkpoint
from fusion_pl.cli.run import run
from fusion_pl.data.collate import Collate
from fusion_pl.types import Sample, UserError
from tests.texts import BEST, load
from tests.texts import fit as fit_texts

DATA = ["--data.manifest", "rows.csv", "--data.num_workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of two inputs that are right in 80 % of the rows; its best checkpoint has the highest validation loss."""
    folder = tmp_path_factory.mktemp("calibrated")
    rng = np.random.default_rng(0)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label", "split"])
        for row in range(639):
            label = row % 3
            words = [("red", "green", "blue")[label if rng.random() < 0.7 else rng.integers(3)] for _ in range(2)]
            texts = [f"{word} {rng.integers(40)}" if rng.random() < 0.9 else "" for word in words]
            split = ("train", "val", "test")[0 if row < 160 else 1 + row % 2]
            writer.writerow([texts[0] or "none", texts[1], "xyz"[label], split])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit() == 0
    return folder


def fit(*arguments, epochs=6):
    encoder = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 16, "max_tokens": 12}}
    model = ["--model.encoders", json.dumps({"first": encoder, "second": encoder}), "--model.fusion", "Concat"]
    model += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
    trainer = [
        "--trainer.max_epochs",
        str(epochs),
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    data = ["--data", "ManifestData", *DATA]
    return run(
        "fit", [*model, *data, *trainer, "--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max", *arguments]
    )


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def results(version, folder="lightning_logs"):
    return json.loads(Path(f"{folder}/version_{version}/metrics.json").read_text())


def best(folder):
    return Path(folder) / "version_0/checkpoints/best.ckpt"


def restated_scores(logits, target):
    """Brier score and NLL of logits."""
    probabilities = torch.tensor(logits).double().softmax(-1)
    hot = torch.nn.functional.one_hot(torch.tensor(target), probabilities.shape[1])
    nll = -probabilities.log()[torch.arange(len(target)), target].mean()
    return {"brier": float((probabilities - hot).square().sum(1).mean()), "nll": float(nll)}


def table():
    with open("rows.csv", newline="") as file:
        return list(csv.DictReader(file))


def predict_rows(rows, calibrated):
    """Return the predictions of some rows with best.ckpt, or with its weights alone."""
    checkpoint = read_checkpoint(BEST)
    if not calibrated:
        checkpoint["fusion_pl"].pop("calibration")
    predictor = Predictor(build_model(checkpoint, BEST), device="cpu")
    return predictor.predict([{"first": row["first"], "second": row["second"] or None} for row in rows])


def test_predictions_are_those_of_the_logits_divided_by_the_temperature_of_their_inputs(here):
    fitted = results(0)["calibration"]
    assert fitted["method"] == "temperature"
    assert abs(math.log(fitted["temperature"])) > 0.1
    assert set(fitted["temperatures"]) & {"first", "second"}
    rows = [row for row in table() if row["split"] == "test"]
    raw, calibrated = predict_rows(rows, calibrated=False), predict_rows(rows, calibrated=True)
    for row, before, after in zip(rows, raw, calibrated, strict=True):
        subset = "first+second" if row["second"] else "first"
        temperature = fitted["temperatures"].get(subset, fitted["temperature"])
        log_p = torch.tensor(list(before.probabilities.values())).double().log()
        assert list(after.probabilities.values()) == pytest.approx((log_p / temperature).softmax(-1).tolist(), abs=1e-5)
        assert before.label == after.label


def test_test_measures_what_predict_gives_and_what_it_gave_without_calibration(here):
    arguments = ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]
    assert run("test", [*arguments, "--trainer.logger.init_args.save_dir", "tests"]) == 0
    measured = results(0, "tests")
    rows = [row for row in table() if row["split"] == "test"]
    target = ["xyz".index(row["label"]) for row in rows]
    for moment, calibrated in (("before", False), ("after", True)):
        logits = [[math.log(p) for p in one.probabilities.values()] for one in predict_rows(rows, calibrated)]
        scores = measured["calibration"][moment]
        assert scores["samples"] == len(rows)
        assert {name: scores[name] for name in ("brier", "nll")} == pytest.approx(
            restated_scores(logits, target), rel=1e-4
        )
    assert measured["metrics"]["test/loss"] == pytest.approx(measured["calibration"]["after"]["nll"], rel=1e-5)
    second = [row | {"first": None} for row in rows if row["second"]]
    logits = [[math.log(p) for p in one.probabilities.values()] for one in predict_rows(second, calibrated=True)]
    target = ["xyz".index(row["label"]) for row in second]
    scores = measured["calibration"]["by_inputs"]["second"]["after"]
    assert scores["samples"] == len(second)
    assert scores["nll"] == pytest.approx(restated_scores(logits, target)["nll"], rel=1e-4)


def test_training_and_its_validation_are_those_without_calibration(here):
    out = ["--trainer.logger.init_args.save_dir", "none"]
    assert fit("--model.calibration", "none", *out) == 0
    without, with_it = results(0, "none"), results(0)
    assert without["metrics"] == with_it["metrics"]
    assert without["calibration"] == {"method": "none"}
    weights, same = (load(path)["state_dict"] for path in (best("none"), BEST))
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert load(best("none"))["fusion_pl"]["calibration"] is None


def test_test_can_leave_the_calibration_out(here, capsys):
    arguments = ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]
    out = ["--trainer.logger.init_args.save_dir", "raw"]
    assert run("test", [*arguments, *out, "--model.calibration", "none"]) == 0
    assert "calibration: none, ECE" in capsys.readouterr().out
    measured = results(0, "raw")
    assert "after" not in measured["calibration"]
    assert measured["metrics"]["test/loss"] == pytest.approx(measured["calibration"]["before"]["nll"])


def test_vector_scaling_is_fitted_and_applied(here, capsys):
    out = ["--trainer.logger.init_args.save_dir", "vector"]
    assert fit("--model.calibration", "vector", *out) == 0
    fitted = results(0, "vector")["calibration"]
    assert len(fitted["scale"]) == len(fitted["shift"]) == 3
    assert fitted["after"]["nll"] < fitted["before"]["nll"]
    assert "calibration: vector" in capsys.readouterr().out
    predictor = Predictor.from_checkpoint(best("vector"), device="cpu")
    sample = {"first": "red 1", "second": "blue 2"}
    with torch.inference_mode():
        (logits,) = predictor.model(Collate(predictor.processors)([Sample("0", sample)])).logits
    scale, shift = torch.tensor(fitted["scale"]), torch.tensor(fitted["shift"])
    expected = (logits * scale + shift).softmax(-1).tolist()
    assert list(predictor.predict(sample).probabilities.values()) == pytest.approx(expected, rel=1e-4)


def test_too_few_validation_samples_are_told(again, capsys):
    assert fit_texts() == 0
    line = "calibration: none, because only 12 validation samples, and a calibration needs at least 50"
    assert line in capsys.readouterr().out


def test_a_resumed_run_has_the_calibration_of_its_best_checkpoint(here):
    out = ["--trainer.logger.init_args.save_dir", "resumed"]
    assert fit(*out, epochs=2) == 0
    assert fit(*out, "--ckpt_path", "last") == 0
    saved = load(best("resumed"))["fusion_pl"]["calibration"]
    last = load(best("resumed").with_name("last.ckpt"))["fusion_pl"]["calibration"]
    fitted = results(0, "resumed")["calibration"]
    assert fitted["temperature"] == 1 / saved["scale"][0] != 1 / last["scale"][0]
    assert (fitted["before"], fitted["after"]) == (saved["before"], saved["after"])


def test_the_picture_of_the_test_is_in_tensorboard(here):
    arguments = ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]
    assert run("test", [*arguments, "--trainer.logger.init_args.save_dir", "picture"]) == 0
    events = EventAccumulator("picture/version_0")
    events.Reload()
    assert {"test/calibration", "test/risk_coverage"} <= set(events.Tags()["images"])


def test_two_processes_fit_and_measure_what_one_does(here):
    """With 239 test samples; the outputs of all processes are gathered."""
    config = ["--config", "lightning_logs/version_0/config.yaml", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    both = [*config, "--trainer.logger.init_args.save_dir", "two"]
    fitting = [*both, "--trainer.max_epochs", "1", "--checkpoint.dirpath", "two/checkpoints"]
    for arguments in (["fit", *fitting], ["test", *both, "--ckpt_path", str(BEST)]):
        done = subprocess.run(
            [sys.executable, "-m", "fusion_pl", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    fitted, tested = results(0, "two"), results(1, "two")
    assert fitted["calibration"]["before"]["nll"] == pytest.approx(fitted["metrics"]["val/loss"], rel=1e-5)
    assert fitted["calibration"]["validation_samples"] == fitted["samples"]["val"] == 240
    arguments = ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]
    assert run("test", [*arguments, "--trainer.logger.init_args.save_dir", "one"]) == 0
    one = results(0, "one")
    assert tested["samples"] == one["samples"] == {"test": 239}
    for moment in ("before", "after"):
        assert tested["calibration"][moment] == pytest.approx(one["calibration"][moment], rel=1e-4)
        for subset in ("first", "second"):
            found, expected = (run["calibration"]["by_inputs"][subset][moment] for run in (tested, one))
            assert found == pytest.approx(expected, rel=1e-4)
    assert tested["prediction_sets"] == one["prediction_sets"]


def predict(output, *options):
    arguments = ["--ckpt_path", str(BEST), *DATA, "--overwrite", "--output", output, *options]
    return run("predict", arguments)


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
