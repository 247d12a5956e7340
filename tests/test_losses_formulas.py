"""Each criterion against a slow, plain restatement of its formula, and against torchvision."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from fusion_pl.losses import Asymmetric, BinaryCrossEntropy, CrossEntropy, Focal, LogitAdjusted
from fusion_pl.types import UserError

WEIGHTS = torch.tensor([1.0, 2.5, 0.5])


def scores(seed=0, rows=6):
    return 3 * torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGET = torch.tensor([0, 1, 2, 2, 1, 0])
LABELS = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 1, -1], [-1, 0, 1], [0, 0, 0], [1, 1, 1]])


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_sample(formula):
    """Return the loss of each sample from its probabilities and its class."""
    return torch.tensor(
        [formula(softmax(row), target) for row, target in zip(scores().tolist(), TARGET.tolist(), strict=True)],
        dtype=torch.float64,
    )


def by_label(formula, rows=None):
    """Return the loss of each label from its probability, its value and its class; 0 if it is unknown."""
    rows = scores().tolist() if rows is None else rows
    return torch.tensor(
        [
            [0.0 if y < 0 else formula(sigmoid(x), y, c) for c, (x, y) in enumerate(zip(row, labels, strict=True))]
            for row, labels in zip(rows, LABELS.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )


def test_cross_entropy_has_smoothed_and_weighted_targets():
    def formula(p, y):
        targets = [0.2 / 3 + 0.8 * (c == y) for c in range(3)]
        return -sum(t * w * math.log(q) for t, w, q in zip(targets, WEIGHTS.tolist(), p, strict=True))

    found = CrossEntropy()(scores(), TARGET, WEIGHTS.double(), 0.2)
    torch.testing.assert_close(found, by_sample(formula))


def test_logit_adjusted_adds_the_log_prior_to_the_logits():
    criterion, prior = LogitAdjusted(tau=1.5), [10 / 60, 20 / 60, 30 / 60]
    criterion.set_counts([10, 20, 30], [50, 40, 30])

    def formula(p, y):
        adjusted = [q * pi**1.5 for q, pi in zip(p, prior, strict=True)]
        return -math.log(adjusted[y] / sum(adjusted))

    torch.testing.assert_close(
        criterion(scores(), TARGET, None, 0.0).double(), by_sample(formula), rtol=1e-5, atol=1e-6
    )


def test_focal_of_classes_scales_the_cross_entropy_by_the_missing_probability():
    found = Focal(gamma=1.5)(scores(), TARGET, WEIGHTS.double(), 0.0)
    expected = by_sample(lambda p, y: float(WEIGHTS[y]) * (1 - p[y]) ** 1.5 * -math.log(p[y]))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        Focal(gamma=0.0)(scores(), TARGET, None, 0.0), CrossEntropy()(scores(), TARGET, None, 0.0)
    )


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_of_labels_is_that_of_torchvision(alpha):
    found = Focal(gamma=2.0, alpha=alpha)(scores(), LABELS, None, 0.0)
    expected = sigmoid_focal_loss(scores(), LABELS.clamp(min=0).double(), alpha=-1 if alpha is None else alpha, gamma=2)
    torch.testing.assert_close(found, expected.masked_fill(LABELS < 0, 0.0))


def test_binary_cross_entropy_weights_present_labels():
    def formula(p, y, c):
        y = 0.05 + 0.9 * y
        return float(WEIGHTS[c]) * -([3.0, 1.0, 2.0][c] * y * math.log(p) + (1 - y) * math.log(1 - p))

    found = BinaryCrossEntropy([3.0, 1.0, 2.0])(scores(), LABELS, WEIGHTS.double(), 0.1)
    torch.testing.assert_close(found, by_label(formula))


def test_balanced_positive_weights_are_the_ratio_of_absent_to_present_labels():
    criterion = BinaryCrossEntropy("balanced")
    criterion.set_counts([10, 20, 5], [30, 20, 45])
    ratios = [3.0, 1.0, 9.0]
    torch.testing.assert_close(
        criterion(scores(), LABELS, None, 0.0), BinaryCrossEntropy(ratios)(scores(), LABELS, None, 0.0)
    )


@pytest.mark.parametrize("margin", [0.05, 0.0])
def test_asymmetric_is_its_formula(margin):
    def formula(p, y, c):
        shifted = max(p - margin, 0)
        return -((1 - p) ** 1.5) * math.log(p) if y else -(shifted**3.0) * math.log(1 - shifted)

    found = Asymmetric(3.0, 1.5, margin)(scores(), LABELS, None, 0.0)
    torch.testing.assert_close(found, by_label(formula))


@pytest.mark.parametrize("criterion", [BinaryCrossEntropy(), Focal(), Asymmetric(), Asymmetric(margin=0.0)])
def test_extreme_logits_have_finite_losses_and_gradients(criterion):
    logits = torch.tensor([[-200.0, 0.0, 200.0], [200.0, -200.0, 0.0]], requires_grad=True)
    losses = criterion(logits, torch.tensor([[1, 0, 0], [0, 1, -1]]), None, 0.0)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()
    assert losses[1, 2] == 0
    assert logits.grad[1, 2] == 0


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Focal(gamma=-1.0), "Focal was given gamma=-1.0, expected a number that is 0 or more"),
        (lambda: Focal(alpha=2.0), "alpha=2.0, expected a number from 0 to 1"),
        (lambda: Asymmetric(margin=1.0), "margin=1.0, expected a probability below 1"),
        (lambda: LogitAdjusted(math.nan), "tau=nan, expected a number that is 0 or more"),
        (lambda: BinaryCrossEntropy([1.0, -2.0]), "positive_weights=-2.0, expected"),
        (
            lambda: BinaryCrossEntropy([1.0]).set_counts([1, 1], [1, 1]),
            "was given 1 positive_weights, expected one for",
        ),
        (lambda: LogitAdjusted()(scores(), TARGET, None, 0.0), "train with a FusionData"),
        (lambda: BinaryCrossEntropy("balanced")(scores(), LABELS, None, 0.0), "train with a FusionData"),
    ],
)
def test_invalid_arguments_are_named(build, text):
    with pytest.raises(UserError, match=text):
        build()


@pytest.mark.parametrize(
    "criterion",
    [
        Focal(gamma=0.5),
        Asymmetric(gamma_positive=0.5, gamma_negative=0.5),
        Asymmetric(gamma_positive=0.5, gamma_negative=0.5, margin=0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_of_certain_predictions_are_finite(criterion, dtype):
    """Though 0^γ has an infinite derivative for γ < 1."""
    logits = torch.tensor([[200.0, -200.0, 0.0]] * len(LABELS), dtype=dtype).requires_grad_()
    criterion(logits, LABELS, None, 0.0).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()
    if criterion.exclusive_classes:
        logits.grad = None
        criterion(logits, TARGET * 0, None, 0.0).sum().backward()
        assert logits.grad.isfinite().all()
