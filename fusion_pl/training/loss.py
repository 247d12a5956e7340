"""The training loss: its options, and how its named terms are computed."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

import fusion_pl.losses
from fusion_pl.fusion.base import Fusion, LossOfLogits
from fusion_pl.losses import Criterion
from fusion_pl.messages import join_names
from fusion_pl.metrics import balanced_class_weights
from fusion_pl.tasks import Task
from fusion_pl.types import Batch, Fused, UserError


@dataclass(frozen=True)
class Loss:
    """Options of the loss of the fusion head's prediction and, optionally, of the loss of an auxiliary head per input.

    Args:
        label_smoothing: share of the target probability that is distributed over all classes, in [0, 1).
        class_weights: one weight per class, or ``balanced`` for the inverse class frequency in the training split; it
            excludes ``data.sampling: class_balanced``.
        auxiliary_weight: weight of the sum of the auxiliary losses, 0 or more. Above 0, each input has an auxiliary
            head: a linear classifier on its embedding, used in training only, so that each encoder learns to classify
            even if the encoder of another input learns faster.
            Source: the multi-task form of "What Makes Training Multi-modal Classification Networks Hard?",
            arXiv:1905.12681, with one weight for all inputs instead of an estimated weight per input.
        mixup: parameter α of the Beta(α, α) distribution of the weights with which pairs of samples are mixed in
            training, after the encoders and in all inputs alike; a common value is 0.2. 0 = samples are not mixed.
            Training accuracy then refers to the class of the sample with the larger weight. See
            ``fusion_pl.training.mixup.Pairs``.
        criterion: loss of logits with targets; by default that of the task: ``CrossEntropy`` for exclusive classes,
            ``BinaryCrossEntropy`` for several labels.

    Raises:
        UserError: if a value is out of range.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    auxiliary_weight: float = 0.0
    mixup: float = 0.0
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.loss.label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if not 0 <= self.auxiliary_weight < math.inf:
            raise UserError(f"model.loss.auxiliary_weight must be 0 or more, not {self.auxiliary_weight}")
        if not 0 <= self.mixup < math.inf:
            raise UserError(f"model.loss.mixup must be 0 (off) or more, not {self.mixup}")


class TrainingLoss(nn.Module):
    """Compute the terms of the training loss by name; their sum is minimised.

    Args:
        options: options of the loss.
        task: the task, whose criterion is used if the options have none.
        classes: names of the classes.

    Raises:
        UserError: if the class weights are invalid, or the options do not fit the task.
    """

    weights: Tensor | None

    def __init__(self, options: Loss, task: Task, classes: list[str]) -> None:
        super().__init__()
        _check_class_weights(options.class_weights, classes)
        self.options = options
        self._task = [task]  # in a list, so that it is a module of the model only
        self.criterion = options.criterion or task.default_criterion()
        self._check_criterion()
        self.register_buffer("weights", None, persistent=False)  # one per class

    def _check_criterion(self) -> None:
        (task,), name = self._task, type(self.criterion).__name__
        fits = "exclusive_classes" if task.exclusive_classes else "several_labels"
        known = [cls for cls in vars(fusion_pl.losses).values() if isinstance(cls, type) and issubclass(cls, Criterion)]
        if not getattr(self.criterion, fits):
            names = join_names(cls.__name__ for cls in known if getattr(cls, fits))
            raise UserError(
                f"model.loss.criterion {name} does not fit the task {type(task).__name__}: give one of {names}"
            )
        if self.options.label_smoothing and not self.criterion.smooths_labels:
            names = join_names(cls.__name__ for cls in known if cls.smooths_labels and getattr(cls, fits))
            raise UserError(
                f"model.loss.label_smoothing is not supported by the criterion {name}: set it to 0, or use {names}"
            )

    def set_up(self, data: object, device: torch.device) -> None:
        """Count the classes of the training samples, for class weights and the criterion.

        Args:
            data: data module of the training.
            device: device of the model.

        Raises:
            UserError: if ``class_weights: balanced`` has no data module that counts them, or one that draws all classes
                equally often.
        """
        weights = _class_weight_tensor(self.options.class_weights, data)
        self.weights = None if weights is None else weights.to(device)
        counts = getattr(data, "class_counts", None)
        if counts is not None:
            absent = getattr(data, "absent_counts", None)  # without: the classes of the data exclude each other
            self.criterion.set_counts(counts, absent or [sum(counts) - count for count in counts])

    def criterion_of(self, batch: Batch) -> LossOfLogits:
        r"""Return a function that computes the loss of a batch from logits and an optional sample mask.

        The loss is the weighted mean :math:`\sum_{i \in A} w_{t_i} l_i / \sum_i w_{t_i}`, so that only the ratio of
        the class weights matters. A sample outside the mask A has loss 0 but is counted in the denominator. Of several
        labels, the mean is over all known labels.
        """
        assert batch.target is not None
        (task,), target, weights = self._task, batch.target, self.weights
        total = task.total_weight(target, weights)

        def compute(logits: Tensor, mask: Tensor | None = None) -> Tensor:
            scores = task.class_scores(logits.float())
            losses = self.criterion(scores, target, weights, self.options.label_smoothing)
            # Masked losses stay in the sum as zeros: a batch without the input still has a gradient of each parameter.
            if mask is not None:
                losses = losses.masked_fill(~(mask if losses.ndim == 1 else mask.unsqueeze(-1)), 0.0)
            return torch.div(losses.sum(), total)

        return compute

    def forward(
        self, fusion: Fusion, fused: Fused, auxiliary_logits: Mapping[str, Float[Tensor, "B C"]], batch: Batch
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the losses of the fusion head and the weighted losses of the auxiliary heads (``auxiliary/<input>``).

        Args:
            fusion: the fusion head.
            fused: its output for the batch.
            auxiliary_logits: name of the input -> logits of its auxiliary head.
            batch: the batch, including its targets.
        """
        criterion = self.criterion_of(batch)
        losses = fusion.loss(fused, batch, criterion)
        held_out = fusion.held_out_mask(batch)
        for name, logits in auxiliary_logits.items():
            mask = batch.present[name] if held_out is None else batch.present[name] & ~held_out
            losses = losses | {f"auxiliary/{name}": self.options.auxiliary_weight * criterion(logits, mask)}
        return losses


def total_loss(losses: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """Return the sum of named losses."""
    return functools.reduce(torch.add, losses.values())


def _check_class_weights(weights: Literal["balanced"] | list[float] | None, classes: list[str]) -> None:
    """Raise a ``UserError`` if the class weights are invalid or their number is not the number of classes."""
    if not isinstance(weights, list):
        return
    if len(weights) != len(classes):
        raise UserError(f"model.loss.class_weights has {len(weights)} numbers, expected one for each of {classes}")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UserError(f"model.loss.class_weights is {weights}, expected numbers that are 0 or more, not all 0")


def _class_weight_tensor(weights: Literal["balanced"] | list[float] | None, data: object) -> Tensor | None:
    """Return the class weights; None if all classes have the same weight."""
    if weights != "balanced":
        return None if weights is None else torch.tensor(weights, dtype=torch.float)
    if getattr(data, "sampling", None) == "class_balanced":
        raise UserError(
            "model.loss.class_weights balanced and data.sampling class_balanced exclude each other: together, rare "
            "classes would count more than frequent ones; give only one of them"
        )
    counts = getattr(data, "class_counts", None)
    if counts is None:
        raise UserError(
            "class_weights: balanced counts the training samples of a FusionData, which a stream does not know: "
            "give one number per class"
        )
    return balanced_class_weights(counts)
