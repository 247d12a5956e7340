"""The pass over the samples: equal to predictions of corrupted and of smaller samples, and resumed from its parts."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fusion_pl import FusionClassifier, Predictor
from fusion_pl.data import ManifestData
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.encoders.tiny_text import ByteTokenizer
from fusion_pl.evaluate import sweeps as module
from fusion_pl.evaluate.choose_sweeps import choose_sweeps, draw_rows, parse_sweeps
from fusion_pl.evaluate.corruption import SEVERITIES
from fusion_pl.evaluate.missing import MissingAtRandom, Subset, measured_subsets, missing_rates
from fusion_pl.evaluate.parts import Parts
from fusion_pl.evaluate.sweeps import RobustnessRun
from fusion_pl.fusion import Concat
from fusion_pl.types import UserError
from fusion_pl.uncertainty.calibration import Calibration

INPUTS = ["text", "image", "audio"]


class Constant(TinyText):
    """An encoder whose output does not depend on the text."""

    def forward(self, **tensors):
        encoded = super().forward(**tensors)
        return encoded._replace(tokens=encoded.tokens * 0, embedding=encoded.embedding * 0)


def build(text=TinyText, **options):
    torch.manual_seed(0)
    encoders = {
        "text": text(dim=8),
        "image": TinyImage(dim=16, image_size=16, channels=1),
        "audio": TinyAudio(dim=8, num_layers=1),
    }
    return FusionClassifier(encoders, Concat, ["high", "low"], **options)


def open_table(manifest, model, **options):
    data = ManifestData(str(manifest), num_workers=0, **options)
    data.processors = model.processors
    data.setup("predict")
    return data.samples("predict")


def make_run(manifest, model, rows=range(20), **options):
    samples = open_table(manifest, model)
    names = list(model.processors)
    selections = [*measured_subsets(names), *missing_rates(names)]
    found, _ = choose_sweeps(samples, list(rows), parse_sweeps(True, names))
    run = RobustnessRun(Predictor(model, device="cpu"), samples, list(rows), selections, found, batch_size=8)
    return replace(run, **options)


def measure(run, folder, key="key"):
    return run.measure(Parts(folder, key), Console(file=io.StringIO()))


def predict(model, samples):
    with torch.inference_mode():
        return model.eval()(Collate(model.processors)(samples)).logits


@pytest.fixture(scope="module")
def measured(manifest, tmp_path_factory):
    model = build()
    run = make_run(manifest, model)
    return model, run, measure(run, tmp_path_factory.mktemp("parts"))


def test_severity_0_is_the_prediction_and_severities_are_predictions_of_corrupted_samples(measured):
    model, run, outcomes = measured
    opened = [run.samples[row] for row in run.rows]
    torch.testing.assert_close(outcomes.clean, predict(model, opened), rtol=0, atol=1e-5)
    assert {(sweep.input, sweep.corruption.name) for sweep in run.sweeps} >= {("image", "blur"), ("text", "typos")}
    assert len(run.sweeps) == 3 + 5 + 4
    for index, (name, corruption) in enumerate(run.sweeps):
        for severity in SEVERITIES:
            changed = [
                replace(sample, inputs=sample.inputs | {
                    name: corruption.apply(sample.inputs[name], severity, f"0 {name} {sample.id}")
                })
                if name in sample.inputs else sample
                for sample in opened
            ]  # fmt: skip
            expected = predict(model, changed)
            torch.testing.assert_close(outcomes.corrupted[:, index, severity - 1], expected, rtol=0, atol=1e-5)


def test_selections_are_predictions_of_samples_without_the_other_inputs(measured):
    model, run, outcomes = measured
    opened = [run.samples[row] for row in run.rows]
    present = torch.tensor([[name in sample.inputs for name in INPUTS] for sample in opened])
    assert torch.equal(outcomes.present, present)
    assert not present.all()
    for index, selection in enumerate(run.selections):
        kept = selection.keep(present, INPUTS, [sample.id for sample in opened])
        smaller = [
            replace(sample, inputs={name: sample.inputs[name] for name in INPUTS if mask[INPUTS.index(name)]})
            for sample, mask in zip(opened, kept, strict=True)
        ]
        torch.testing.assert_close(outcomes.selected[:, index], predict(model, smaller), rtol=0, atol=1e-5)
        assert torch.equal(outcomes.counted[:, index], kept.any(1))
    whole = run.selections.index(Subset(tuple(INPUTS)))
    assert torch.equal(outcomes.selected[:, whole], outcomes.clean)
    assert torch.equal(outcomes.selected[:, run.selections.index(MissingAtRandom(0.0))], outcomes.clean)


def test_logits_are_calibrated_for_the_inputs_that_are_left(manifest, tmp_path):
    model = build()
    run = make_run(manifest, model, range(6), sweeps=[])
    before = measure(run, tmp_path)
    model.calibration = Calibration("temperature", [0.5], temperatures=[(["text"], 4.0)])
    after = measure(run, tmp_path, "calibrated")
    index = run.selections.index(Subset(("text",)))
    torch.testing.assert_close(after.selected[:, index], before.selected[:, index] / 4)
    complete = before.present.all(1)
    torch.testing.assert_close(after.clean[complete], before.clean[complete] / 2)


def test_a_model_that_ignores_an_input_is_not_changed_by_it(manifest, tmp_path):
    run = make_run(manifest, build(Constant))
    outcomes = measure(run, tmp_path)
    for index, sweep in enumerate(run.sweeps):
        changes = (outcomes.corrupted[:, index] - outcomes.clean[:, None]).abs().amax()
        assert (changes < 1e-6) == (sweep.input == "text")


def test_the_results_do_not_depend_on_batches_and_processes(manifest, measured, tmp_path):
    _, run, outcomes = measured
    again = measure(replace(run, batch_size=3, num_workers=2), tmp_path)
    for name, values in outcomes._asdict().items():
        found = getattr(again, name)
        torch.testing.assert_close(found.float(), values.float(), rtol=0, atol=1e-5, msg=name)
    other = measure(replace(run, seed=1, selections=run.selections[:1]), tmp_path, "other seed")
    assert torch.equal(other.clean, outcomes.clean)
    assert not torch.equal(other.corrupted, outcomes.corrupted)


def test_a_stopped_run_goes_on_after_its_last_batch(manifest, measured, tmp_path, monkeypatch):
    _, run, outcomes = measured
    encode, batches = module.BatchScores.encode, []

    def stop_at_third(predictor, batch):
        batches.append(batch.ids)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return encode(predictor, batch)

    monkeypatch.setattr(module.BatchScores, "encode", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        measure(run, tmp_path)
    again = measure(run, tmp_path)
    assert [len(ids) for ids in batches] == [8, 8, 4, 4]
    assert batches[2] == batches[3]
    for name, values in outcomes._asdict().items():
        assert torch.equal(getattr(again, name), values), name
    measure(run, tmp_path)
    assert len(batches) == 4


def test_sweeps_are_chosen_by_input_and_corruption(manifest):
    samples, rows = open_table(manifest, build()), list(range(6))

    def pairs(wanted):
        return [(s.input, s.corruption.name) for s in choose_sweeps(samples, rows, parse_sweeps(wanted, INPUTS))[0]]

    assert pairs(["noise"]) == [("image", "noise"), ("audio", "noise")]
    assert [name for name, _ in pairs(["image"])] == ["image"] * 5
    assert pairs(["image", "noise", "blur"]) == [("image", "noise"), ("image", "blur")]
    assert parse_sweeps(True, INPUTS).inputs == INPUTS
    assert parse_sweeps(False, INPUTS) is None
    notes = choose_sweeps(samples, rows, parse_sweeps("noise", INPUTS))[1]
    assert notes == {"text": "None of the chosen corruptions fits text."}
    assert parse_sweeps("image, band limit", INPUTS) == parse_sweeps(["image", "band limit"], INPUTS)
    with pytest.raises(UserError, match=r"no input or corruption 'nois'; did you mean noise.*text, image, audio"):
        parse_sweeps("text,nois", INPUTS)


def test_an_input_without_values_or_without_corruption_gets_a_sentence(tmp_path):
    from fusion_pl.encoders import FeatureEncoder

    model = FusionClassifier(
        {"text": TinyText(dim=8), "x": FeatureEncoder(2), "note": TinyText(dim=8)}, Concat, ["a", "b"]
    )
    (tmp_path / "rows.csv").write_text("text,a,b,note\none,1,2,\ntwo,3,4,\n")
    samples = open_table(tmp_path / "rows.csv", model, inputs={"x": ["a", "b"]})
    found, notes = choose_sweeps(samples, [0, 1], parse_sweeps(True, list(model.processors)))
    assert {sweep.input for sweep in found} == {"text"}
    assert "no corruption of x, whose opened values are Tensor of shape (2,)" in notes["x"]
    assert notes["note"] == "No measured row has the input note."
    outcomes = measure(RobustnessRun(Predictor(model, device="cpu"), samples, [0, 1], [Subset(("x",))], []), tmp_path)
    assert outcomes.corrupted.shape == (2, 0, 5, 2)


def test_drawn_rows_are_the_same_in_every_run_and_stay_in_order(manifest):
    samples = open_table(manifest, build())
    chosen = draw_rows(samples, list(range(48)), 20)
    assert chosen == draw_rows(samples, list(range(48)), 20) == sorted(chosen)
    assert len(set(chosen)) == 20
    assert chosen != draw_rows(samples, list(range(48)), 20, seed=1)
    assert set(draw_rows(samples, list(range(10, 48)), 38)) == set(range(10, 48))
    kept = set(draw_rows(samples, list(range(48)), 47))
    assert set(chosen) <= kept, "fewer samples are a part of more"


class Strict(ByteTokenizer):
    """A processor that refuses long texts."""

    def __call__(self, values, training=False):
        if max(map(len, values)) > 9:
            raise UserError("the text is too long")
        return super().__call__(values, training)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupted_value_that_the_processor_refuses_is_one_sentence(workers, manifest, tmp_path):
    model = build()
    model.encoders["text"].processor = Strict(model.encoders["text"].processor.max_tokens)
    run = make_run(manifest, model, num_workers=workers)
    with pytest.raises(
        UserError, match=r"the text is too long \(with the corruption typos of severity \d: choose other"
    ):
        measure(run, tmp_path)
