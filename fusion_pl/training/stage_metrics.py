"""Validation and test metrics: exact means over samples, for any batch sizes and any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from fusion_pl.metrics import subsets
from fusion_pl.tasks import Task
from fusion_pl.training.calibration_report import CalibrationReport
from fusion_pl.types import Batch, Encoded, Fused
from fusion_pl.uncertainty.calibration import Calibration

MANY_INPUTS = 5  # models with fewer inputs are evaluated with every subset of their inputs


class Mean(Metric):
    """Mean over samples; NaN if there are no samples or any value is NaN.

    Processes exchange sums and counts, so that the mean is exact. Lightning's mean of logged numbers is not exact if
    processes have different counts, and torchmetrics' ``MeanMetric`` either ignores NaN or ignores the weights.
    """

    total: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor | int, count: Tensor | int) -> None:
        """Add the sum and the number of the values of a batch."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """Return the mean over all samples."""
        return self.total / self.count


class Count(Mean):
    """Number of samples."""

    def compute(self) -> Tensor:
        """Return the number of samples."""
        return self.count


class StageMetrics(nn.Module):
    """Metrics of validation or test.

    Args:
        stage: ``val`` or ``test``, the prefix of all metric names.
        task: the task, which has the metrics of its predictions.
        num_classes: number of classes.
        hidden_layers: input name -> indices of the hidden layers that its encoder mixes; usually none.
    """

    def __init__(self, stage: str, task: Task, num_classes: int, hidden_layers: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.stage = stage
        self._task = [task]  # in a list, so that it is a module of the model only
        self.hidden_layers = {name: list(layers) for name, layers in hidden_layers.items()}
        self.subsets = proper_subsets(list(hidden_layers))
        self.loss = Mean()
        self.samples = Count()
        self.predictions = task.metrics(num_classes, f"{stage}/")
        self.outcomes = task.outcomes(num_classes)
        self.weights = nn.ModuleDict({name: Mean() for name in hidden_layers})
        self.by_inputs = nn.ModuleDict({"+".join(subset): Mean() for subset in self.subsets})
        self.calibration = CalibrationReport()
        layer_keys = (f"{name}/{layer}" for name, layers in self.hidden_layers.items() for layer in layers)
        self.layer_weights = nn.ModuleDict({key: Mean() for key in layer_keys})

    @property
    def task(self) -> Task:
        """The task of the model."""
        return self._task[0]

    def reset_outcomes(self) -> None:
        """Reset the metrics that are not logged."""
        self.outcomes.reset()
        self.samples.reset()
        self.calibration = CalibrationReport()

    def calibrate(
        self, fused: Fused, calibration: Calibration | None, batch: Batch, subset: Sequence[str] | None = None
    ) -> Fused:
        """Return the output with calibrated logits, and measure the calibration before and after.

        A subset of the inputs is measured on the samples that have an input of it.
        """
        assert batch.target is not None
        logits = {"before": fused.logits.float()}
        if calibration is not None:
            logits["after"] = calibration.apply(fused.logits, batch.present, subset)
        rows = None if subset is None else _has_any(batch, subset)
        self.calibration.update("+".join(subset or self.weights), self.task, logits, batch.target, rows)
        return fused._replace(logits=logits.get("after", logits["before"]))

    def update(self, fused: Fused, encoded: Mapping[str, Encoded], batch: Batch) -> dict[str, Metric]:
        """Update the metrics with a batch, and return the updated metrics by name, for logging.

        The loss is the negative log-likelihood, without label smoothing and weights, so that runs can be compared. The
        weight of an input is averaged over all samples and is 0 if the input is missing; the weight of a hidden layer
        is averaged over the samples that have the input.
        """
        assert batch.target is not None
        logits, size = fused.logits.float(), len(batch.ids)
        probabilities = self.task.probabilities(logits)
        self.loss.update(*self.task.sum_losses(logits, batch.target))
        self.samples.update(0, size)
        self.predictions.update(probabilities, batch.target)
        self.outcomes.update(probabilities, batch.target)
        metrics: dict[str, Metric] = {f"{self.stage}/loss": self.loss}
        metrics |= dict(self.predictions.items(keep_base=False, copy_state=False))
        if fused.weights is not None:
            for (name, mean), weight in zip(self.weights.items(), fused.weights.float().sum(0), strict=True):
                metrics |= self._update_mean(f"weight/{name}", mean, weight, size)
        for name, layers in self.hidden_layers.items():
            layer_weights = encoded[name].layer_weights
            if layer_weights is None:
                continue
            count = batch.present[name].sum()
            for layer, weight in zip(layers, layer_weights.float().sum(0), strict=True):
                key = f"{name}/{layer}"
                metrics |= self._update_mean(f"layer_weight/{key}", self.layer_weights[key], weight, count)
        return metrics

    def update_subset(self, subset: Sequence[str], fused: Fused, batch: Batch) -> dict[str, Metric]:
        """Update the score for a subset of the inputs; count only samples that have an input of the subset."""
        assert batch.target is not None
        has_any = _has_any(batch, subset)
        correct = self.task.is_correct(fused.logits, batch.target) & has_any
        key = "+".join(subset)
        return self._update_mean(f"{self.task.score}/{key}", self.by_inputs[key], correct.sum(), has_any.sum())

    def _update_mean(self, name: str, mean: nn.Module, total: Tensor, count: Tensor | int) -> dict[str, Metric]:
        assert isinstance(mean, Mean)
        mean.update(total, count)
        return {f"{self.stage}/{name}": mean}


def _has_any(batch: Batch, subset: Sequence[str]) -> Tensor:
    """Return whether each sample has an input of the subset."""
    return torch.stack([batch.present[name] for name in subset]).any(0)


def proper_subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the proper subsets of the inputs on which a model is evaluated.

    With five or more inputs, only subsets of one input and subsets without one input are returned.

    Example:
        >>> proper_subsets(["text", "image"])
        [('text',), ('image',)]
    """
    if len(names) < MANY_INPUTS:
        return subsets(names)[:-1]
    return [*combinations(names, 1), *combinations(names, len(names) - 1)]


def scores_by_inputs(metrics: Mapping[str, float], score: str, inputs: Sequence[str]) -> dict[str, float]:
    """Return the score of each measured subset of the inputs, including all inputs; names are joined by ``+``.

    Args:
        metrics: dictionary from the name of a logged metric to its value.
        score: name of the score with the stage, such as ``test/accuracy``.
        inputs: names of all inputs of the model.
    """
    prefix = f"{score}/"
    by_subset = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return by_subset | {"+".join(inputs): metrics[score]}


def evaluation_stage(trainer: Trainer) -> str:
    """Return the stage that a Trainer evaluates: ``val`` or ``test``."""
    return "test" if trainer.testing else "val"


def metrics_of_stage(trainer: Trainer, module: Any) -> StageMetrics:
    """Return the metrics of the stage that a Trainer evaluates."""
    stage_metrics: StageMetrics = module.stage_metrics[evaluation_stage(trainer)]
    return stage_metrics
