"""Checkpoints of a run that averages weights have the weights with which it is validated, and what belongs to them."""

from __future__ import annotations

import signal
import sys
from copy import deepcopy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from fusion_pl import FusionClassifier, Predictor
from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.encoders import FeatureEncoder
from fusion_pl.fusion import Mean
from fusion_pl.tasks.multi_label_metrics import best_thresholds
from fusion_pl.training.interrupt import SaveWhenStopped, StoppedBySignal
from tests import calibrated
from tests.calibrated import expected_detectors, results, table
from tests.texts import BEST, LAST, load
from tests.training.test_outliers import assert_equal

EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"
AVERAGING = ["--trainer.callbacks", EMA, "--trainer.callbacks.decay", "0.9"]
TASK = ["--model.task", "MultiLabel", "--model.task.threshold", "validation"]

pytestmark = pytest.mark.filterwarnings("ignore:.*loading a checkpoint outside the 'fit' stage:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def averaged_folder(tmp_path_factory):
    """The folder of a run of one epoch, whose averages are far from the last weights."""
    folder = tmp_path_factory.mktemp("averaged")
    calibrated.write_table(folder)
    (folder / "rows.csv").write_text((folder / "rows.csv").read_text().replace(",x,", ",x|y,"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        assert calibrated.fit(*TASK, *AVERAGING, epochs=1) == 0
        yield


def test_both_checkpoints_have_the_averages():
    best, last = load(BEST)["state_dict"], load(LAST)
    torch.testing.assert_close(dict(best), dict(last["state_dict"]), rtol=0, atol=0)
    assert any((best[name] != trained).any() for name, trained in last["current_model_state"].items())


@pytest.mark.parametrize("checkpoint", [BEST, LAST], ids=["best", "last"])
def test_outliers_and_thresholds_are_those_of_the_weights(checkpoint):
    assert_equal(load(checkpoint)["fusion_pl"]["outlier_detectors"], expected_detectors(checkpoint, table(), True))
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    rows = [row for row in table() if row["split"] == "val"]
    samples = [{name: row[name] for name in ("first", "second") if row[name]} for row in rows]
    probabilities = [[one.probabilities[name] for name in "xyz"] for one in predictor.predict(samples)]
    target = [[int(name in row["label"].split("|")) for name in "xyz"] for row in rows]
    expected = best_thresholds(torch.tensor(probabilities), torch.tensor(target))
    torch.testing.assert_close(predictor.model.task.thresholds, expected, rtol=1e-4, atol=1e-4)


def test_the_results_are_those_of_the_weights():
    assert run("validate", ["--config", "lightning_logs/version_0/config.yaml", "--ckpt_path", str(BEST)]) == 0
    trained, validated = results(0), results(1)
    assert validated["calibration"]["before"]["nll"] == pytest.approx(trained["calibration"]["before"]["nll"], rel=1e-4)
    measured = validated["metrics"] | validated["per_class"]
    for name, value in (trained["metrics"] | trained["per_class"]).items():
        assert measured[name] == pytest.approx(value, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("weights_only", [False, True])
def test_statistics_of_numbers_that_are_no_weights_are_saved(weights_only, tmp_path):
    rows = [f"{row},{'ab'[row % 2]},{'val' if row > 7 else 'train'}" for row in range(10)]
    (tmp_path / "rows.csv").write_text("\n".join(["size,label,split", *rows]))
    data = ManifestData(str(tmp_path / "rows.csv"), inputs={"size": ["size"]}, batch_size=4, num_workers=0)
    model = FusionClassifier({"size": FeatureEncoder(features=1)}, Mean, data.classes)
    data.processors = model.processors
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[EMAWeightAveraging(decay=0.9)],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "saved.ckpt", weights_only=weights_only)
    loaded = Predictor.from_checkpoint(tmp_path / "saved.ckpt", device="cpu").model.encoders["size"].processor
    assert (float(loaded.mean), float(loaded.std)) == pytest.approx((3.5, 5.25**0.5))


class Stop(Callback):
    """Stop at once in the validation of the second epoch, as a second Ctrl-C does."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained = deepcopy(pl_module.state_dict())

    def on_validation_batch_end(self, trainer, *args):
        if trainer.current_epoch:
            raise StoppedBySignal(signal.SIGINT)


def test_a_checkpoint_that_another_callback_saves_in_a_validation_has_both_sets_of_weights(model, manifest, tmp_path):
    data, stop = ManifestData(str(manifest), batch_size=8, num_workers=0), Stop()
    data.processors = model.processors
    checkpoint = ModelCheckpoint(tmp_path, "saved", save_on_exception=True)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, callbacks=[EMAWeightAveraging(decay=0.9), SaveWhenStopped(), stop, checkpoint],
    )  # fmt: skip
    with pytest.raises(StoppedBySignal):
        trainer.fit(model, datamodule=data)
    (path,) = [path for path in tmp_path.iterdir() if load(path)["global_step"] == 6]
    saved = load(path)
    name = "fusion.classifier.weight" if "fusion.classifier.weight" in stop.trained else next(iter(stop.trained))
    torch.testing.assert_close(saved["current_model_state"][name], stop.trained[name], rtol=0, atol=0)
    assert (saved["state_dict"][name] != stop.trained[name]).any()
