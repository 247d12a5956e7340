from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from fusion_pl.metrics import balanced_class_weights, classification_metrics, confusion_matrix, per_class_metrics


def test_a_perfect_predictor_has_perfect_scores():
    target = torch.arange(12) % 3
    measured = classification_metrics(3, "val/")(torch.eye(3)[target], target)
    assert {name: value.item() for name, value in measured.items()} == {
        "val/accuracy": 1.0,
        "val/f1": 1.0,
        "val/auroc": 1.0,
        "val/calibration_error": 0.0,
    }


def test_metrics_equal_their_formulas():
    torch.manual_seed(0)
    target = torch.randint(3, (50,))
    scores = torch.randn(50, 3).softmax(-1)
    said = scores.argmax(-1)
    measured = classification_metrics(3, "")(scores, target)
    assert measured["accuracy"].item() == pytest.approx((said == target).float().mean().item())
    f1, auroc = [], []
    for c in range(3):
        hit = ((said == c) & (target == c)).sum().item()
        f1.append(2 * hit / ((said == c).sum() + (target == c).sum()).item())
        wins = scores[target == c, c].unsqueeze(1) > scores[target != c, c].unsqueeze(0)
        auroc.append(wins.float().mean().item())
    assert measured["f1"].item() == pytest.approx(sum(f1) / 3, abs=1e-6)
    assert measured["auroc"].item() == pytest.approx(sum(auroc) / 3, abs=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_class_without_samples_is_left_out_as_by_scikit_learn():
    torch.manual_seed(0)
    target, scores = torch.randint(3, (40,)) * 2, torch.randn(40, 5).softmax(-1)  # no class 1 and 3
    scores[:, 3] = 0  # and none is predicted
    measured = classification_metrics(5, "")(scores, target)
    areas = [roc_auc_score(target == c, scores[:, c]) for c in (0, 2, 4)]
    assert measured["auroc"].item() == pytest.approx(np.mean(areas), abs=1e-6)
    assert measured["f1"].item() == pytest.approx(f1_score(target, scores.argmax(-1), average="macro"), abs=1e-6)
    assert 1 in scores.argmax(-1)
    alone = classification_metrics(5, "")(scores, torch.zeros_like(target))
    assert alone["auroc"].isnan()


def test_uneven_batches_count_samples_not_batches():
    torch.manual_seed(0)
    target, scores = torch.randint(3, (25,)), torch.randn(25, 3).softmax(-1)
    whole, parts = classification_metrics(3, ""), classification_metrics(3, "")
    for piece in (slice(0, 16), slice(16, 24), slice(24, 25)):
        parts.update(scores[piece], target[piece])
    expected, measured = whole(scores, target), parts.compute()
    for name in expected:
        assert measured[name].item() == pytest.approx(expected[name].item(), abs=1e-6)


def test_confusion_rows_are_true_classes():
    matrix = confusion_matrix(2)(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]))
    assert matrix.tolist() == [[1, 1], [0, 1]]
    assert per_class_metrics(matrix, ["a", "b"])["a"] == {"precision": 1.0, "recall": 0.5, "f1": 0.6667, "samples": 2}


def test_balanced_weights_give_every_class_the_same_total_weight():
    counts = torch.tensor([10.0, 30.0, 60.0])
    shares = balanced_class_weights([10, 30, 60]) * counts
    assert torch.allclose(shares, shares.mean().expand(3))
    assert shares.sum().item() == pytest.approx(100.0)
