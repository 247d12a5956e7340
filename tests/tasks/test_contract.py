"""Checks for every ``Task`` in ``fusion_pl.tasks`` and every ``Criterion`` in ``fusion_pl.losses``."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil

import numpy as np
import pytest
import torch

import fusion_pl.losses
import fusion_pl.tasks
from fusion_pl.config import config_of, import_class
from fusion_pl.fusion import Concat, Mean, Vote
from fusion_pl.losses import Criterion
from fusion_pl.tasks import LabelColumn, Task
from fusion_pl.training.loss import Loss, TrainingLoss, total_loss
from fusion_pl.types import Batch, Encoded, Fused, UserError

NAMES = ["1", "2", "3", "4"]
COLUMN = LabelColumn("label", np.array([0, 1, 2, 3, 0, 3, 2, 1, 1]), [*NAMES])


def discover():
    for found in pkgutil.iter_modules(fusion_pl.tasks.__path__, "fusion_pl.tasks."):
        for _, member in inspect.getmembers(importlib.import_module(found.name), inspect.isclass):
            if issubclass(member, Task) and not inspect.isabstract(member) and member.__module__ == found.name:
                yield member


TASKS = sorted(discover(), key=lambda task: task.__name__)
CRITERIA = [
    member
    for _, member in inspect.getmembers(fusion_pl.losses, inspect.isclass)
    if issubclass(member, Criterion) and not inspect.isabstract(member)
]
PAIRS = [(task, criterion) for task in TASKS for criterion in CRITERIA]
every_task = pytest.mark.parametrize("cls", TASKS)


def fits(task, criterion):
    return criterion.exclusive_classes if task.exclusive_classes else criterion.several_labels


@pytest.fixture
def task(cls):
    task = cls()
    task.set_num_classes(len(NAMES))
    return task


@pytest.fixture
def targets(task):
    return task.read_targets([COLUMN], NAMES)


def logits_of(task, rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(rows, task.num_logits(len(NAMES)), generator=generator)).to(dtype)


def test_finds_the_exported_tasks():
    exported = {getattr(fusion_pl.tasks, name) for name in fusion_pl.tasks.__all__}
    assert {cls for cls in exported if issubclass(cls, Task)} - {Task} == set(TASKS)


@every_task
def test_a_table_gives_classes_targets_and_counts(task, targets):
    assert task.infer_classes([COLUMN]) == NAMES
    assert len(targets) == 9
    assert task.is_known(targets).all()
    counts = [int(task.has_class(targets, index).sum()) for index in range(4)]
    assert task.count_classes(targets, 4).tolist() == counts == [2, 3, 2, 2]
    assert task.count_absent(targets, 4).tolist() == [9 - count for count in counts]
    assert not np.any(task.find_invalid([COLUMN], NAMES))
    assert np.any(task.find_invalid([COLUMN], NAMES[:3]))
    assert "'4' is not one of the" in task.explain_invalid("4", NAMES[:3], several_columns=False)
    strata = task.strata(targets)
    assert strata.shape == (9,)
    assert (strata >= 0).all()
    for row, name in enumerate(COLUMN.codes):
        assert task.class_names(targets[row], NAMES) == [NAMES[name]]


@every_task
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_agree_with_each_other(task, targets, dtype):
    logits, target = logits_of(task, 9, dtype), torch.from_numpy(targets)
    probabilities = task.probabilities(logits)
    assert probabilities.shape == (9, 4)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if task.exclusive_classes:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(9, dtype=dtype))
        torch.testing.assert_close(task.class_scores(logits).softmax(-1), probabilities)
    decided = task.decide(probabilities)
    assert decided.shape == target.shape
    right = (decided == target).reshape(9, -1).all(-1)
    assert torch.equal(task.is_correct(logits, target), right)
    for row in range(9):
        decision = task.prediction(probabilities[row], NAMES)
        assert set(decision) == set(task.prediction_fields)
        names = decision.get("labels", [decision.get("label")])
        assert names == task.class_names(decided[row].tolist(), NAMES)
        assert task.matches(names, targets[row], NAMES) == bool(right[row])
        json.dumps(decision)


@every_task
def test_metrics_are_the_same_for_any_batches(task, targets):
    probabilities, target = task.probabilities(logits_of(task, 9)), torch.from_numpy(targets)
    found = []
    for sizes in ([9], [4, 5], [1, 8]):
        metrics, outcomes = task.metrics(4, "val/"), task.outcomes(4)
        for part, truth in zip(probabilities.split(sizes), target.split(sizes), strict=True):
            metrics.update(part, truth)
            outcomes.update(part, truth)
        values = {name: float(value) for name, value in metrics.compute().items()}
        assert {f"val/{task.monitor}", f"val/{task.score}"} <= set(values)
        per_class = task.per_class(outcomes.compute(), NAMES)
        assert [row["samples"] for row in per_class.values()] == task.count_classes(targets, 4).tolist()
        found.append((values, per_class))
        assert task.plot(outcomes.compute(), NAMES, "val") is not None
    assert found[0][0][f"val/{task.score}"] == pytest.approx(
        task.is_correct(logits_of(task, 9), target).float().mean().item()
    )
    for values, per_class in found[1:]:
        assert values == pytest.approx(found[0][0], abs=1e-6)
        assert per_class == found[0][1]


@every_task
def test_a_checkpoint_can_store_the_task(task):
    config = json.loads(json.dumps(config_of(task)))
    rebuilt = import_class(config["class_path"], Task)(**config["init_args"])
    assert config_of(rebuilt) == config


@pytest.mark.parametrize(("cls", "criterion"), [pair for pair in PAIRS if fits(*pair)])
def test_every_criterion_that_fits_trains_every_logit(task, targets, criterion):
    options = Loss(criterion=criterion(), class_weights=[1.0, 2.0, 1.0, 0.5])
    loss = TrainingLoss(options, task, NAMES)
    loss.criterion.set_counts([2, 3, 2, 2], [7, 6, 7, 7])
    loss.weights = torch.tensor([1.0, 2.0, 1.0, 0.5])
    logits = logits_of(task, 9).requires_grad_()
    ids = [str(row) for row in range(9)]
    batch = Batch({}, {}, torch.from_numpy(targets), ids, [()] * 9)
    losses = loss(Mean({"text": 3}, task.num_logits(4), dim=4), Fused(logits), {}, batch)
    assert list(losses) == ["fused"]
    total = total_loss(losses)
    total.backward()
    assert total.isfinite()
    assert total > 0
    assert (logits.grad != 0).any(0).all()


@pytest.mark.parametrize(("cls", "criterion"), [pair for pair in PAIRS if not fits(*pair)])
def test_a_criterion_that_does_not_fit_is_refused(cls, task, criterion):
    with pytest.raises(UserError, match=f"criterion {criterion.__name__} does not fit the task {cls.__name__}: give"):
        TrainingLoss(Loss(criterion=criterion()), task, NAMES)


@every_task
def test_heads_without_a_softmax_fit_every_task(task):
    head = Concat({"text": 3}, task.num_logits(4), dim=4)
    encoded = Encoded(torch.randn(2, 1, 3), torch.ones(2, 1, dtype=torch.bool), torch.randn(2, 3))
    assert task.probabilities(head({"text": encoded}).logits).shape == (2, 4)
    assert Vote.needs_softmax
    assert not Concat.needs_softmax
