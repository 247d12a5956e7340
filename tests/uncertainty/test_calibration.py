"""Calibration of synthetic logits whose right temperature is known, and the equal-mass calibration error."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binom

from fusion_pl.metrics import EqualMassCalibrationError, chance_calibration_error
from fusion_pl.tasks import MultiClass, MultiLabel, Ordinal
from fusion_pl.types import UserError
from fusion_pl.uncertainty.calibration import Calibration, Outputs, read_calibration
from fusion_pl.uncertainty.calibration_fit import MIN_SAMPLES, fit_calibration

INPUTS = ["text", "image"]


def draw(samples, temperature, classes=4, seed=0):
    """Return logits of which the softmax, at this temperature, is the distribution of the returned targets."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, generator=random)
    target = (logits.double() / temperature).softmax(-1).multinomial(1, generator=random).squeeze(1)
    return logits, target


def outputs(logits, target, present=(True, True), complete=True):
    count = len(logits)
    return Outputs(logits, target, torch.tensor([present] * count), torch.full((count,), complete))


def join(*parts):
    return Outputs(*(torch.cat(values) for values in zip(*parts, strict=True)))


def smoothed_nll(logits, target):
    """The objective, restated: one more sample of each kind has a random class."""
    smoothing = 1 / (len(target) + 1)
    log_p = log_softmax(logits, axis=1)
    chosen = log_p[np.arange(len(target)), target]
    return -((1 - smoothing) * chosen + smoothing * log_p.mean(1)).mean()


@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_temperature_is_that_of_a_slow_search_and_near_the_true_one(temperature):
    logits, target = draw(2000, temperature)
    fitted = fit_calibration(MultiClass(), outputs(logits, target), INPUTS, "temperature")
    z, y = logits.double().numpy(), target.numpy()
    found = minimize_scalar(
        lambda t: smoothed_nll(z / t, y), bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}
    )
    assert fitted.temperature == pytest.approx(found.x, rel=1e-4)
    assert fitted.temperature == pytest.approx(temperature, rel=0.1)
    assert fitted.after["nll"] < fitted.before["nll"]
    assert fitted.after["ece"] < fitted.before["ece"] / 2


def test_vector_scaling_is_that_of_a_slow_search():
    logits, target = draw(1500, 1.0)
    wrong = 2 * logits + torch.tensor([1.0, 0.0, -1.0, 0.5])
    fitted = fit_calibration(MultiClass(), outputs(wrong, target), INPUTS, "vector")
    z, y = wrong.double().numpy(), target.numpy()
    found = minimize(lambda x: smoothed_nll(z * np.exp(x[:4]) + x[4:], y), np.zeros(8), method="BFGS")
    shift = np.array(fitted.shift) - np.mean(fitted.shift)  # a softmax does not depend on a common shift
    assert fitted.scale == pytest.approx(np.exp(found.x[:4]), rel=1e-3)
    assert shift == pytest.approx(found.x[4:] - found.x[4:].mean(), abs=1e-3)
    assert fitted.temperature is None


def test_labels_have_a_temperature_of_their_sigmoid_and_unknown_ones_count_nowhere():
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(800, 3, generator=random)
    target = (torch.rand(800, 3, generator=random) < (logits / 3).sigmoid()).long()
    task = MultiLabel()
    task.set_num_classes(3)
    known = fit_calibration(task, outputs(logits[:, :2], target[:, :2]), INPUTS, "temperature")
    assert known.temperature == pytest.approx(3, rel=0.15)
    target[:, 2] = -1
    fitted = fit_calibration(task, outputs(logits, target), INPUTS, "temperature")
    assert fitted.temperature == pytest.approx(known.temperature, rel=1e-6)
    for moment in ("before", "after"):
        assert getattr(fitted, moment) == pytest.approx(getattr(known, moment), rel=1e-6)


def test_ordered_classes_have_a_temperature_of_their_conditional_logits():
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2000, 3, generator=random)
    task = Ordinal()
    target = task.probabilities(logits.double() / 2.5).multinomial(1, generator=random).squeeze(1)
    fitted = fit_calibration(task, outputs(logits, target), INPUTS, "temperature")
    assert fitted.temperature == pytest.approx(2.5, rel=0.1)
    p, median = task.probabilities(logits).numpy(), task.decide(task.probabilities(logits)).numpy()
    assert fitted.before["nll"] == pytest.approx(-np.log(p[range(2000), target]).mean(), rel=1e-5)
    slow = slow_calibration_error(p[range(2000), median].tolist(), (median == target.numpy()).tolist(), 15)
    assert fitted.before["ece"] == pytest.approx(slow, rel=1e-5)


def test_a_model_without_errors_does_not_become_certain():
    """Without smoothing, the best temperature would be 0, and one error would cost any number of nats."""
    target = torch.arange(300) % 4
    logits = torch.nn.functional.one_hot(target, 4) * 3.0
    fitted = fit_calibration(MultiClass(), outputs(logits, target), INPUTS, "temperature")
    error = 1 - float((logits[0] / fitted.temperature).softmax(-1).max())
    assert error == pytest.approx(0.75 / 301, rel=1e-3)  # one sample more, with a random class of four


@pytest.mark.parametrize(
    ("samples", "damage", "reason"),
    [
        (MIN_SAMPLES - 1, False, f"only {MIN_SAMPLES - 1} validation samples"),
        (200, True, "NaN or infinite"),
        (200, False, "held-out validation samples"),
    ],
)
def test_a_calibration_that_cannot_help_is_left_out_with_a_reason(samples, damage, reason):
    logits, target = draw(samples, 1.0)
    logits[3, 1] = math.nan if damage else logits[3, 1]
    fitted = fit_calibration(MultiClass(), outputs(logits, target), INPUTS, "temperature")
    assert reason in fitted.reason
    assert (fitted.scale, fitted.shift, fitted.temperatures) == ([1.0], [0.0], [])


def restated_gains(logits, target, folds=5):
    """Fit with scipy on four folds, and measure the fifth, in the folds that the docstring describes."""
    fold = torch.randperm(len(target), generator=torch.Generator().manual_seed(0)).numpy() % folds
    z, y = logits.double().numpy(), target.numpy()
    gains = np.zeros(len(y))
    for index in range(folds):
        rest, held = fold != index, fold == index
        objective = lambda log_t: smoothed_nll(z[rest] / np.exp(log_t), y[rest])  # noqa: E731, B023
        t = np.exp(minimize_scalar(objective, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10}).x)
        rows = np.flatnonzero(held)
        gains[held] = log_softmax(z[rows] / t, axis=1)[range(len(rows)), y[rows]]
        gains[held] -= log_softmax(z[rows], axis=1)[range(len(rows)), y[rows]]
    return gains


@pytest.mark.parametrize("seed", range(8))
def test_a_fit_is_used_if_it_helps_held_out_samples_by_more_than_a_standard_error(seed):
    logits, target = draw(120, 1.25, seed=seed)
    fitted = fit_calibration(MultiClass(), outputs(logits, target), INPUTS, "temperature")
    gains = restated_gains(logits, target)
    error = gains.std(ddof=1) / math.sqrt(len(gains))
    assert (fitted.temperature != 1) == (gains.mean() > error)
    if fitted.temperature == 1:
        mean = gains.mean()
        lowers = f"would lower the negative log-likelihood of held-out validation samples by only {mean:.4f}"
        raises = f"would raise the negative log-likelihood of held-out validation samples by {-mean:.4f}"
        assert (lowers if mean > 0 else raises) in fitted.reason
        assert (f"the standard error is {error:.4f}" in fitted.reason) == (mean > 0)


def test_one_sure_mistake_does_not_make_a_model_unsure():
    """It improves the likelihood of the samples of the fit by far, and that of new samples not at all."""
    target = torch.arange(100) % 4
    logits = torch.nn.functional.one_hot(target, 4) * 5.0 + 0.1 * torch.randn(100, 4, generator=torch.manual_seed(0))
    logits[7] = torch.nn.functional.one_hot(torch.tensor(0), 4) * 30.0  # sure of class 0, and its class is 3
    fitted = fit_calibration(MultiClass(), outputs(logits, target), INPUTS, "temperature")
    best = minimize_scalar(lambda t: smoothed_nll(logits.double().numpy() / t, target.numpy()), bounds=(0.1, 20))
    gain = smoothed_nll(logits.double().numpy(), target.numpy()) - best.fun
    assert 100 * gain > math.log(100) / 2  # what Schwarz's criterion asks
    assert fitted.temperature == 1
    assert "held-out validation samples" in fitted.reason


def test_a_subset_with_enough_samples_has_its_temperature():
    whole = outputs(*draw(300, 1.5))
    often = outputs(*draw(MIN_SAMPLES + 50, 5, seed=1), present=(True, False), complete=False)
    rare = outputs(*draw(MIN_SAMPLES - 1, 5, seed=2), present=(False, True), complete=False)
    fitted = fit_calibration(MultiClass(), join(whole, often, rare), INPUTS, "temperature")
    alone = fit_calibration(MultiClass(), outputs(*draw(MIN_SAMPLES + 50, 5, seed=1)), INPUTS, "temperature")
    assert fitted.temperature == fit_calibration(MultiClass(), whole, INPUTS, "temperature").temperature
    assert fitted.temperatures == [(["text"], pytest.approx(alone.temperature))]
    assert fitted.samples == 300


def test_logits_are_scaled_by_the_inputs_that_are_present():
    calibration = Calibration("temperature", [0.5], [0.0], [(["text"], 4.0)])
    logits = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    present = {"text": torch.tensor([True, True]), "image": torch.tensor([True, False])}
    assert torch.equal(calibration.apply(logits, present), torch.stack([logits[0] / 2, logits[1] / 4]))
    assert torch.equal(calibration.apply(logits, present, subset=["text"]), logits / 4)
    assert torch.equal(calibration.apply(logits, present, subset=["image"]), logits / 2)


def test_a_calibration_is_plain_data_and_back():
    calibration = fit_calibration(MultiClass(), outputs(*draw(300, 2.0)), INPUTS, "temperature")
    config = {"classes": list("abcd"), "calibration": asdict(calibration)}
    assert read_calibration(config, INPUTS, MultiClass()) == calibration
    assert read_calibration({"classes": list("abcd")}, INPUTS, MultiClass()) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"scale": [0.0]},
        {"scale": [math.nan]},
        {"scale": [1.0, 1.0]},
        {"shift": []},
        {"scale": "text"},
        {"temperatures": [(["sound"], 1.0)]},
        {"temperatures": [(["text"], -1.0)]},
        {"temperatures": 3},
        {"before": None},
        {"samples": 10**400},
    ],
)
def test_a_damaged_calibration_is_refused(damage):
    config = {"classes": list("abcd"), "calibration": asdict(Calibration("temperature")) | damage}
    with pytest.raises(UserError, match="its calibration is damaged"):
        read_calibration(config, INPUTS, MultiClass())


def slow_calibration_error(confidences, outcomes, num_bins):
    """Sort, cut into bins whose sizes differ by at most one, and average; equal confidences share their outcomes."""
    shared = [np.mean([o for c, o in zip(confidences, outcomes, strict=True) if c == one]) for one in confidences]
    rows = sorted(zip(confidences, shared, strict=True))
    error, start = 0.0, 0
    for index in range(num_bins):
        size = len(rows) // num_bins + (index < len(rows) % num_bins)
        part = rows[start : start + size]
        start += size
        error += abs(sum(c for c, _ in part) - sum(o for _, o in part))
    return error / len(rows)


@pytest.mark.parametrize(("samples", "num_bins"), [(100, 15), (97, 10), (4, 15), (1, 1)])
def test_calibration_error_equals_a_slow_restatement(samples, num_bins):
    rng = np.random.default_rng(samples)
    confidences = rng.random(samples).round(1)  # many are equal
    outcomes = rng.random(samples) < confidences**2
    metric = EqualMassCalibrationError(num_bins)
    order = rng.permutation(samples)  # the result does not depend on the order, or on batches
    for part in np.array_split(order, 3):
        metric.update(torch.tensor(confidences[part]), torch.tensor(outcomes[part]))
    assert metric.compute().item() == pytest.approx(slow_calibration_error(confidences, outcomes, num_bins))


def test_calibration_error_of_no_samples_is_undefined():
    metric = EqualMassCalibrationError()
    metric.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert metric.compute().isnan()


@pytest.mark.parametrize(("samples", "confidence"), [(495, 0.8), (1500, 0.5)])
def test_the_error_by_chance_is_the_mean_deviation_of_a_binomial_number(samples, confidence):
    """15 bins of n samples with equal confidence: the mean of |k - n p| / n over all k."""
    size = samples // 15
    counts = np.arange(size + 1)
    expected = (binom.pmf(counts, size, confidence) * np.abs(counts / size - confidence)).sum()
    assert chance_calibration_error(torch.full((samples,), confidence)) == pytest.approx(expected, rel=0.05)


def test_the_error_by_chance_is_that_of_models_that_are_calibrated():
    errors = []
    for seed in range(200):
        logits, target = draw(300, 1.0, seed=seed)
        confidence, predicted = logits.double().softmax(-1).max(-1)
        metric = EqualMassCalibrationError()
        metric.update(confidence, predicted == target)
        errors.append([metric.compute().item(), chance_calibration_error(confidence, draws=5)])
    measured, expected = np.mean(errors, axis=0)
    assert measured == pytest.approx(expected, rel=0.05)


def test_the_error_by_chance_of_no_samples_is_undefined_and_of_certain_ones_zero():
    assert math.isnan(chance_calibration_error(torch.zeros(0)))
    assert chance_calibration_error(torch.tensor([1.0, 0.0, 1.0])) == 0
