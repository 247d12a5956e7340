"""What is measured of a stage: means over its samples, exact whatever the sizes of batches and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from fusion_pl.metrics import classification_metrics, confusion_matrix, subsets
from fusion_pl.types import Batch, Encoded, Fused

MANY_INPUTS = 5  # from here on, not every choice of them is tested


class Mean(Metric):
    """Average over samples; NaN where there is none, and where a number is NaN.

    Sums and counts are what processes exchange, never their averages. Lightning's own mean of logged numbers rounds
    odd counts down on several processes; torchmetrics' ``MeanMetric`` either leaves NaN out or ignores the weights.
    """

    total: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Add the sum of a number over some samples, and how many they are."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """Return the average of all."""
        return self.total / self.count


class StageMetrics(nn.Module):
    """Measure validation or test.

    Args:
        stage: what the names of all numbers start with, ``val`` or ``test``.
        num_classes: C.
        hidden_layers: name of the input -> the hidden layers that its encoder combines, none for most.
    """

    def __init__(self, stage: str, num_classes: int, hidden_layers: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.stage = stage
        self.hidden_layers = {name: list(depths) for name, depths in hidden_layers.items()}
        self.choices = fewer(list(hidden_layers))
        self.loss = Mean()
        self.classification = classification_metrics(num_classes, f"{stage}/")
        self.confusion = confusion_matrix(num_classes)
        self.weights = nn.ModuleDict({name: Mean() for name in hidden_layers})
        self.by_inputs = nn.ModuleDict({"+".join(some): Mean() for some in self.choices})
        depths = (f"{name}/{depth}" for name, found in self.hidden_layers.items() for depth in found)
        self.layer_weights = nn.ModuleDict({key: Mean() for key in depths})

    def update(self, fused: Fused, encoded: Mapping[str, Encoded], batch: Batch) -> dict[str, Metric]:
        """Measure a batch.

        The loss is the plain cross-entropy, neither smoothed nor weighted, so that runs can be compared. An input's
        weight is averaged over all samples, with 0 for those that lack it; the weight of a hidden layer over those that
        have the input.

        Returns:
            What to log: name -> metric.
        """
        assert batch.target is not None
        logits, size = fused.logits.float(), len(batch.ids)
        self.loss.update(cross_entropy(logits, batch.target, reduction="sum"), size)
        self.classification.update(logits.softmax(-1), batch.target)
        self.confusion.update(logits, batch.target)
        found: dict[str, Metric] = {f"{self.stage}/loss": self.loss}
        found |= dict(self.classification.items(keep_base=False, copy_state=False))
        if fused.weights is not None:
            for (name, mean), weight in zip(self.weights.items(), fused.weights.float().sum(0), strict=True):
                found |= self._added(f"weight/{name}", mean, weight, size)
        for name, depths in self.hidden_layers.items():
            weighed = encoded[name].layer_weights
            if weighed is not None:
                for depth, weight in zip(depths, weighed.float().sum(0), strict=True):
                    mean = self.layer_weights[f"{name}/{depth}"]
                    found |= self._added(f"layer_weight/{name}/{depth}", mean, weight, batch.present[name].sum())
        return found

    def update_choice(self, some: Sequence[str], fused: Fused, batch: Batch) -> dict[str, Metric]:
        """Measure the accuracy with some of the inputs, over the samples that have one of them.

        Args:
            some: one of ``choices``.
            fused: what the head decides without the other inputs.
            batch: with its targets.
        """
        assert batch.target is not None
        has = torch.stack([batch.present[name] for name in some]).any(0)
        right = (fused.logits.argmax(-1) == batch.target) & has
        key = "+".join(some)
        return self._added(f"accuracy/{key}", self.by_inputs[key], right.sum(), has.sum())

    def _added(self, name: str, mean: nn.Module, total: Tensor, count: Tensor | int) -> dict[str, Metric]:
        assert isinstance(mean, Mean)
        mean.update(total, count)
        return {f"{self.stage}/{name}": mean}


def fewer(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the choices of inputs, fewer than all of them, that a model is measured with.

    Example:
        >>> fewer(["text", "image"])
        [('text',), ('image',)]
    """
    if len(names) < MANY_INPUTS:
        return subsets(names)[:-1]
    return [*combinations(names, 1), *combinations(names, len(names) - 1)]


def accuracy_by_inputs(metrics: Mapping[str, float], stage: str, inputs: Sequence[str]) -> dict[str, float]:
    """Return the accuracy with each measured subset of the inputs, all inputs included.

    Args:
        metrics: name of the metric -> value.
        stage: ``val`` or ``test``.
        inputs: names of the model's inputs.

    Returns:
        Inputs joined by ``+`` -> accuracy.
    """
    prefix = f"{stage}/accuracy/"
    by_subset = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return by_subset | {"+".join(inputs): metrics[f"{stage}/accuracy"]}
