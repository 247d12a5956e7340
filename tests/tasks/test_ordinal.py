"""CORN against a slow restatement of its formulas, and a whole run."""

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
from torch.nn.functional import cross_entropy

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.losses import CrossEntropy
from fusion_pl.tasks import Ordinal
from fusion_pl.types import UserError

CLASSES = 4


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@pytest.fixture
def logits():
    return 2 * torch.randn(30, CLASSES - 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def target():
    return torch.arange(30) % CLASSES


def exceeded(row):
    """Return P(y > k) of each k, a product of conditional probabilities."""
    return [math.prod(sigmoid(value) for value in row[: k + 1]) for k in range(len(row))]


def test_probabilities_are_differences_of_products_of_sigmoids(logits):
    task = Ordinal()
    assert task.num_logits(CLASSES) == CLASSES - 1
    for row, found in zip(logits.tolist(), task.probabilities(logits).tolist(), strict=True):
        bounds = [1.0, *exceeded(row), 0.0]
        assert found == pytest.approx([bounds[k] - bounds[k + 1] for k in range(CLASSES)])
        assert sum(found) == pytest.approx(1)


def test_the_loss_is_the_sum_of_the_binary_losses_of_the_conditional_subsets(logits, target):
    """Equation 4 of the paper, without its division by the number of terms."""
    expected = 0.0
    for k in range(CLASSES - 1):
        for row, y in zip(logits.tolist(), target.tolist(), strict=True):
            if y > k - 1:  # the conditional subset of k
                expected -= math.log(sigmoid(row[k])) if y > k else math.log(1 - sigmoid(row[k]))
    task = Ordinal()
    total, count = task.sum_losses(logits, target)
    assert (float(total), count) == (pytest.approx(expected), len(target))
    losses = CrossEntropy()(task.class_scores(logits), target, None, 0.0)
    assert float(losses.sum()) == pytest.approx(expected)


def test_the_decision_is_the_median_and_the_metrics_are_about_it(logits, target):
    task, metrics = Ordinal(), Ordinal().metrics(CLASSES, "")
    decided = task.decide(task.probabilities(logits))
    expected = [sum(p > 0.5 for p in exceeded(row)) for row in logits.tolist()]
    assert decided.tolist() == expected
    assert torch.equal(task.is_correct(logits, target), decided == target)
    for part, truth in zip(logits.split(7), target.split(7), strict=True):
        metrics.update(task.probabilities(part), truth)
    found = {name: float(value) for name, value in metrics.compute().items()}
    guess, truth = np.array(expected), target.numpy()
    assert found["mae"] == pytest.approx(np.abs(guess - truth).mean())
    assert found["accuracy"] == pytest.approx((guess == truth).mean())
    chance = np.mean([(g - t) ** 2 for g in guess for t in truth])
    assert found["kappa"] == pytest.approx(1 - ((guess - truth) ** 2).mean() / chance, abs=1e-5)


def test_extreme_logits_have_a_finite_loss():
    logits = torch.tensor([[300.0, -300.0, 300.0], [-300.0, 300.0, 300.0]], requires_grad=True)
    loss = cross_entropy(Ordinal().class_scores(logits), torch.tensor([3, 1]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_names_need_an_order(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,low\nb,high\n")
    with pytest.raises(UserError, match=r"the order of the classes 'high', 'low' in the column 'label' is unknown"):
        _ = ManifestData(str(path), task=Ordinal()).classes
    assert ManifestData(str(path), task=Ordinal(), classes=["low", "high"]).classes == ["low", "high"]


def test_a_run_from_the_table_to_the_predictions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    rng = np.random.default_rng(0)
    with open("rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for row in range(160):
            stars = int(rng.integers(1, 5))
            writer.writerow(["good " * stars + "film", stars, ("train", "train", "val", "test")[row % 4]])
    content = {
        "model": {
            "encoders": {"text": {"class_path": "TinyText", "init_args": {"dim": 32}}},
            "fusion": "Concat",
            "task": "Ordinal",
        },
        "data": {
            "class_path": "ManifestData",
            "init_args": {"manifest": "rows.csv", "batch_size": 8, "num_workers": 0},
        },
        "trainer": {"max_epochs": 5, "accelerator": "cpu", "enable_progress_bar": False},
    }
    Path("config.yaml").write_text(yaml.safe_dump(content))
    assert run("fit", ["--config", "config.yaml"]) == 0
    assert run("test", ["--config", "config.yaml"]) == 0
    config = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert (config["checkpoint"]["monitor"], config["checkpoint"]["mode"]) == ("val/mae", "min")
    metrics = json.loads(Path("lightning_logs/version_1/metrics.json").read_text())["metrics"]
    assert {"test/accuracy", "test/mae", "test/kappa", "test/loss"} <= set(metrics)
    assert metrics["test/kappa"] > 0.5
    assert run("predict", ["--ckpt_path", "best", "--data.manifest", "rows.csv", "--output", "p.csv"]) == 0
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "label", "probability", "p(1)", "p(2)", "p(3)", "p(4)", "error"]
    for row in rows:
        masses = np.cumsum([float(row[f"p({name})"]) for name in range(1, 5)])
        assert int(row["label"]) == 1 + int((masses[:-1] < 0.5 - 1e-6).sum())
    assert "accuracy" in capsys.readouterr().err
    assert run("fit", ["--config", "config.yaml", "--model.fusion", "Average"]) == 2
    assert "which Ordinal does not have" in capsys.readouterr().err
