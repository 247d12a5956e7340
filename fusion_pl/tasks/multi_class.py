"""Task with one class per sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torchmetrics import Metric, MetricCollection

from fusion_pl.messages import did_you_mean, join_names
from fusion_pl.metrics import classification_metrics, confusion_matrix, per_class_metrics
from fusion_pl.tasks.base import LabelColumn, Logits, Probabilities, Target, Targets, Task, cell_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MultiClass(Task):
    """Decide for one of C classes: the cell of the label column is the name of a class.

    The logits are trained by the cross-entropy of their softmax. The decision is the most probable class. The metrics
    are accuracy, macro-F1, one-vs-rest macro AUROC and expected calibration error; accuracy chooses the checkpoint.
    """

    def infer_classes(self, columns: Sequence[LabelColumn]) -> list[str]:
        """Return the distinct labels, in numeric order if all are integers, else in alphabetical order."""
        return sorted_classes(cell_text(cell) for cell in columns[0].cells)

    def read_targets(self, columns: Sequence[LabelColumn], classes: Sequence[str]) -> Targets:
        """Return the class index of each row, -1 if its label is not one of the classes."""
        index = {name: target for target, name in enumerate(classes)}
        (column,) = columns
        return np.array([*(index.get(cell_text(cell), -1) for cell in column.cells), -1], np.int64)[column.codes]

    def find_invalid(self, columns: Sequence[LabelColumn], classes: Sequence[str]) -> list[NDArray[np.bool_]]:
        """Return for each row whether its label is empty or not one of the classes."""
        return [self.read_targets(columns, classes) < 0]

    def explain_invalid(self, cell: str | tuple[str, ...] | None, classes: Sequence[str], several_columns: bool) -> str:
        """Return what is wrong with a label, and what to do."""
        if not (label := cell_text(cell or "")):
            return "the label is empty: give the row a class, or remove it"
        text = f"{label!r} is not one of the classes {join_names(classes)}{did_you_mean(label, classes)}"
        if set(label.split("|")) <= set(classes):
            return f"{text}; for several labels per row, give --model.task MultiLabel (in Python task=MultiLabel())"
        return text

    def is_known(self, targets: Targets) -> NDArray[np.bool_]:
        """Return for each row whether it has a class."""
        return targets >= 0

    def has_class(self, targets: Targets, index: int) -> NDArray[np.bool_]:
        """Return for each row whether it has a class."""
        is_class: NDArray[np.bool_] = targets == index
        return is_class

    def count_classes(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return the number of rows per class."""
        return np.bincount(targets[targets >= 0], minlength=num_classes).astype(np.int64)

    def count_absent(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return the number of rows of other classes, per class."""
        counts = self.count_classes(targets, num_classes)
        return np.asarray(counts.sum() - counts)

    def strata(self, targets: Targets) -> NDArray[np.int64]:
        """Return the class index of each row."""
        return targets

    def class_names(self, target: Any, classes: Sequence[str]) -> list[str]:
        """Return the class of one row."""
        return [classes[int(target)]]

    def total_weight(self, target: Target, weights: Float[Tensor, " C"] | None) -> Tensor | int:
        """Return the number of samples, or the sum of the weights of their classes."""
        if weights is None:
            return len(target)
        total = weights[target].sum()
        return total.where(total > 0, 1.0)  # avoids 0 / 0 if all weights in the batch are 0

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the softmax of the logits."""
        return logits.softmax(-1)

    def decide(self, probabilities: Probabilities) -> Target:
        """Return the index of the most probable class."""
        return probabilities.argmax(-1)

    def is_correct(self, logits: Logits, target: Target) -> Bool[Tensor, " B"]:
        """Return whether the class with the largest logit is that of the sample."""
        return logits.argmax(-1) == target

    def losses(self, logits: Logits, target: Target, smoothing: float = 0.0) -> Float[Tensor, " B"]:
        """Return the cross-entropy of each sample."""
        return cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)

    def confidences(
        self, probabilities: Probabilities, target: Target
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Return the probability of each sample's predicted class, and whether that class is its target."""
        predicted = self.decide(probabilities)
        return probabilities.gather(-1, predicted.unsqueeze(-1)).squeeze(-1), predicted == target

    def sum_squared_errors(
        self, probabilities: Probabilities, target: Target
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Return the sum over samples of the squared errors of the probabilities of all classes."""
        return (probabilities - one_hot(target, probabilities.shape[-1])).square().sum(), len(target)

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        """Return accuracy, macro-F1, macro AUROC and expected calibration error."""
        return classification_metrics(num_classes, prefix)

    def outcomes(self, num_classes: int) -> Metric:
        """Return the confusion matrix."""
        return confusion_matrix(num_classes)

    def per_class(self, outcomes: Tensor, classes: list[str]) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1 and number of samples per class."""
        return per_class_metrics(outcomes, classes)

    def plot(self, outcomes: Tensor, classes: list[str], title: str) -> Figure | None:
        """Plot the confusion matrix."""
        from fusion_pl.tasks.figures import plot_confusion_matrix

        return plot_confusion_matrix(outcomes, classes, title)

    def prediction(self, probabilities: Float[Tensor, " C"], classes: Sequence[str]) -> dict[str, Any]:
        """Return the most probable class and its probability."""
        index = int(self.decide(probabilities.unsqueeze(0)))
        return {"label": classes[index], "probability": float(probabilities[index])}

    def matches(self, names: Sequence[str], target: Any, classes: Sequence[str]) -> bool:
        """Return whether the predicted class is that of the sample."""
        return list(names) == self.class_names(target, classes)


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Return distinct names that are not empty, in numeric order if all are integers, else in alphabetical order.

    Example:
        >>> sorted_classes(["10", "9", "", "10"])
        ['9', '10']
    """
    distinct = set(names) - {""}
    if all(name.removeprefix("-").isdecimal() for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)
