"""Calibration as a user meets it: fit, test and predict of a table, and the checkpoint between them."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusion_pl import FusionClassifier, Predictor
from fusion_pl.checkpoint import build_model, read_checkpoint
from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Concat
from fusion_pl.metrics import equal_mass_bins
from fusion_pl.training.calibrate import FitCalibration, StoredOutputs, drop_inputs, subsets_per_sample
from fusion_pl.training.calibration_report import (
    Bins,
    calibration_line,
    describe_bins,
    describe_calibration,
    read_bins,
)
from fusion_pl.training.results import _validate_result
from fusion_pl.training.stage_metrics import proper_subsets
from fusion_pl.types import Batch, Encoded, Sample
from fusion_pl.uncertainty.calibration import Calibration
from tests.calibrated import best, expected_detectors, fit, results, table
from tests.commands import run_command
from tests.texts import BEST, load
from tests.texts import fit as fit_texts


def restated_scores(logits, target):
    """Brier score and NLL of logits."""
    probabilities = torch.tensor(logits).double().softmax(-1)
    hot = torch.nn.functional.one_hot(torch.tensor(target), probabilities.shape[1])
    nll = -probabilities.log()[torch.arange(len(target)), target].mean()
    return {"brier": float((probabilities - hot).square().sum(1).mean()), "nll": float(nll)}


def test_the_outputs_of_one_sample_keep_their_shapes():
    stored = StoredOutputs()
    stored.update(torch.zeros(1, 1), torch.tensor([0]), torch.ones(1, 1, dtype=torch.bool), torch.tensor([True]))
    assert [list(value.shape) for value in stored.gather()] == [[1, 1], [1], [1, 1], [1]]


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


def test_test_measures_what_predict_gives_and_what_it_gave_without_calibration(here, capsys):
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
    printed = capsys.readouterr().out
    first = sum(row["first"] != "" for row in rows)
    assert f"test/accuracy/first (n = {first})" in printed
    assert f"test/accuracy/second (n = {len(second)})" in printed
    assert " test/accuracy  " in printed
    assert measured["samples_by_metric"] == {"test/accuracy/first": first, "test/accuracy/second": len(second)}


def test_training_and_its_validation_are_those_without_calibration(here):
    out = ["--trainer.logger.init_args.save_dir", "none"]
    assert fit("--model.calibration", "none", *out) == 0
    without, with_it = results(0, "none"), results(0)
    assert without["metrics"] == with_it["metrics"]
    assert without["calibration"]["method"] == "none"
    assert set(without["calibration"]["reliability"]) == {"before"}
    weights, same = (load(path)["state_dict"] for path in (best("none"), BEST))
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert load(best("none"))["fusion_pl"]["calibration"] is None


def test_test_can_leave_the_calibration_out(here, capsys):
    arguments = ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]
    out = ["--trainer.logger.init_args.save_dir", "raw"]
    assert run("test", [*arguments, *out, "--model.calibration", "none"]) == 0
    assert "calibration: none; NLL" in capsys.readouterr().out
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


def test_shifts_give_each_sample_each_subset_once():
    """With 500 samples or fewer, the temperature of a subset is that of all samples that have its inputs."""
    names, count = ("a", "b", "c"), 20
    parts = proper_subsets(names)
    present = {name: torch.ones(count, dtype=torch.bool) for name in names}
    present["c"][:5] = False
    ids = [f"row {row}" for row in range(count)]
    batch = Batch({}, present, None, ids, [()] * count)
    tokens = torch.ones(count, 1, 2)
    encoded = {name: Encoded(tokens * one[:, None, None], one[:, None], tokens[:, 0]) for name, one in present.items()}
    seen = [set() for _ in ids]
    for shift in range(subsets_per_sample(len(parts), count)):
        reduced, kept, is_reduced = drop_inputs(encoded, batch, parts, shift)
        for index, name in enumerate(names):
            assert torch.equal(reduced[name].mask.any(1), kept[:, index])
        for row in is_reduced.nonzero().squeeze(1).tolist():
            seen[row].add(tuple(name for name, has in zip(names, kept[row].tolist(), strict=True) if has))
    assert all(one == set(parts) for one in seen[5:])
    assert all(one == {("a",), ("b",)} for one in seen[:5])


def test_fit_leaves_the_reliability_of_its_best_checkpoint_as_numbers_and_pictures(here):
    """The numbers are those of the predictions of best.ckpt for the validation rows."""
    rows = [row for row in table() if row["split"] == "val"]
    for moment, calibrated in (("before", False), ("after", True)):
        predictions = predict_rows(rows, calibrated)
        right = [one.label == row["label"] for one, row in zip(predictions, rows, strict=True)]
        expected = equal_mass_bins(torch.tensor([one.probability for one in predictions]), torch.tensor(right))
        found = results(0)["calibration"]["reliability"][moment]
        for name, values in zip(("confidences", "shares", "sizes"), expected, strict=True):
            assert found[name] == pytest.approx(values.tolist(), abs=1e-5)
        assert sum(found["sizes"]) == len(rows)
    events = EventAccumulator("lightning_logs/version_0")
    events.Reload()
    (shown,) = events.Images("Validation/calibration")
    assert shown.step == load(BEST)["global_step"]
    with (
        Image.open("lightning_logs/version_0/calibration.png") as picture,
        Image.open(io.BytesIO(shown.encoded_image_string)) as in_tensorboard,
    ):
        assert min(picture.size) > 400
        assert picture.convert("RGB").tobytes() == in_tensorboard.tobytes()


def test_the_picture_of_the_test_is_in_tensorboard(here):
    arguments = ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]
    assert run("test", [*arguments, "--trainer.logger.init_args.save_dir", "picture"]) == 0
    events = EventAccumulator("picture/version_0")
    events.Reload()
    assert {"test/calibration", "test/risk_coverage"} <= set(events.Tags()["images"])
    assert Path("picture/version_0/calibration.png").is_file()
    sizes = results(0, "picture")["calibration"]["reliability"]["after"]["sizes"]
    assert sum(sizes) == results(0, "picture")["samples"]["test"]


def test_two_processes_fit_and_measure_what_one_does(here):
    """With 239 test samples; the outputs of all processes are gathered."""
    config = ["--config", "lightning_logs/version_0/config.yaml", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    both = [*config, "--trainer.logger.init_args.save_dir", "two"]
    fitting = [*both, "--trainer.max_epochs", "1", "--checkpoint.dirpath", "two/checkpoints"]
    for arguments in (["fit", *fitting], ["test", *both, "--ckpt_path", str(BEST)]):
        done = run_command(*arguments, processes=2)
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
    checkpoint = Path("two/checkpoints/best.ckpt")
    found, expected = load(checkpoint)["fusion_pl"]["outlier_detectors"], expected_detectors(checkpoint, table())
    for name in ("first", "second", "first+second"):  # of the rows of both processes, in another order
        assert len(found[name]["scores"]) == len(expected[name]["scores"])
        torch.testing.assert_close(found[name]["scores"].mean(), expected[name]["scores"].mean(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_trainer_in_python_calibrates_as_well(is_stream, here, monkeypatch):
    """Of a stream of one's own, no training rows are known for outlier detectors."""
    monkeypatch.setattr(ManifestData, "is_stream", is_stream)
    data = ManifestData("rows.csv", batch_size=32, num_workers=0)
    model = FusionClassifier({"first": TinyText(dim=16), "second": TinyText(dim=16)}, Concat, data.classes)
    data.processors = model.processors
    saved = ModelCheckpoint(
        f"python/{is_stream}", monitor="val/accuracy", mode="max", filename="best", save_weights_only=True
    )
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    limit = {"max_steps": 5} if is_stream else {"max_epochs": 1}
    trainer = Trainer(**limit, callbacks=[saved], **options)
    trainer.fit(model, datamodule=data)
    fitted = model.calibration
    trainer.test(model, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
    predictor = Predictor.from_checkpoint(saved.best_model_path, device="cpu")
    assert predictor.model.calibration == model.calibration == fitted
    assert fitted.samples == 240
    assert list(predictor.model.outlier_detectors) == ([] if is_stream else ["first", "second", "first+second"])
    after = trainer.callback_metrics["test/loss"].item()
    assert sum(isinstance(callback, FitCalibration) for callback in trainer.callbacks) == 1
    assert predictor.predict({"first": "red 1"}, coverage=0.9).set
    assert after != pytest.approx(fitted.before["nll"])


def test_bins_are_plain_data_and_back():
    bins = {"before": Bins(torch.tensor([0.5, 0.75]), torch.tensor([0.25, 1.0]), torch.tensor([4, 3]))}
    content = json.loads(json.dumps(describe_bins(bins)))
    for found, expected in zip(read_bins(content)["before"], bins["before"], strict=True):
        assert torch.equal(found, expected)
    damaged = [3, {"before": 3}, {"before": content["before"] | {"sizes": [1]}}, {"before": {"sizes": []}}]
    for one in [*damaged, {"before": content["before"] | {"shares": ["x", "y"]}}]:
        assert _validate_result(RESULT | {"calibration": {"reliability": one}}) == {}
    assert _validate_result(RESULT | {"calibration": {"reliability": content}})
    assert _validate_result(RESULT)


RESULT = {"metrics": {"val/loss": 1.0}, "per_class": {}, "samples": {"val": 7}, "epoch": 1}


@pytest.mark.parametrize(
    ("subsets", "ends"),
    [
        ([["text"]], "temperature only for rows that lack inputs (1 subset), the others need none; NLL 0.180 -> 0.190, "
         "calibration error 1.6 % -> 2.1 %, 1.9 % by chance (85 val samples)"),
        ([["text"], ["text", "image"]], "temperature only for rows with 2 subsets of the inputs, the others need none; "
         "NLL 0.180 -> 0.190, calibration error 1.6 % -> 2.1 %, 1.9 % by chance (85 val samples)"),
        ([], "none, because it would raise the loss; NLL 0.180, calibration error 1.6 % (85 val samples)"),
    ],
)  # fmt: skip
def test_the_line_names_a_change_that_is_only_of_rows_that_lack_inputs(subsets, ends):
    before, after = {"ece": 0.016, "nll": 0.18}, {"ece": 0.021, "nll": 0.19, "ece_by_chance": 0.019}
    scores = {"before": before, "after": after if subsets else before}
    temperatures = [(names, 1.5) for names in subsets]
    fitted = Calibration("temperature", temperatures=temperatures, reason="it would raise the loss", **scores)
    content = describe_calibration(fitted, {}, "text+image")
    assert content["reason"] == "it would raise the loss"
    assert calibration_line(content, "85 val") == f"calibration: {ends}"
