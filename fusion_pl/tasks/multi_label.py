"""Task with any number of labels per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import Metric, MetricCollection

from fusion_pl.losses import BinaryCrossEntropy
from fusion_pl.messages import did_you_mean, join_names
from fusion_pl.tasks.base import LabelColumn, Logits, Probabilities, Target, Targets, Task, cell_text
from fusion_pl.tasks.multi_class import sorted_classes
from fusion_pl.tasks.multi_label_metrics import Outcomes, best_thresholds, f1_scores, multi_label_metrics
from fusion_pl.types import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNKNOWN = -1
FLAGS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}


class MultiLabel(Task):
    """Decide for each of C labels whether a sample has it.

    A cell of the label column contains names that are separated by a character (``drama|crime``), or a list of names
    (``["drama", "crime"]``); or each label has a column with 1 and 0 (``data.label: [drama, crime]``), in which an
    empty cell is unknown. Unknown labels count in no loss and no metric; a row of which all labels are unknown is left
    out.

    The logits are trained by the binary cross-entropy of each label. A sample has the labels whose probability reaches
    their threshold. The metrics are macro average precision, which chooses the checkpoint, macro AUROC, macro- and
    micro-F1, and the share of samples whose known labels are all right (exact match).

    Args:
        separator: characters between the names in a cell, and in predictions.
        empty: meaning of an empty cell: the sample has ``none`` of the labels, or they are ``unknown``. An empty list
            is none.
        threshold: smallest probability of a predicted label, in (0, 1); ``validation``: one per label, with the
            largest F1 in the validation of the checkpoint, which contains them.

    Raises:
        UserError: if an argument is out of range.
    """

    exclusive_classes = False
    uses_softmax = False
    several_columns = True
    default_criterion = BinaryCrossEntropy
    monitor = "average_precision"
    score = "exact_match"
    error = "hamming_loss"
    prediction_fields = ("labels",)
    thresholds: Tensor  # of calibrated probabilities
    training_thresholds: Tensor  # of the probabilities during training, which are not calibrated

    def __init__(
        self,
        separator: str = "|",
        empty: Literal["none", "unknown"] = "none",
        threshold: float | Literal["validation"] = 0.5,
    ) -> None:
        super().__init__()
        if not separator.strip():
            raise UserError(f"MultiLabel was given separator={separator!r}, expected characters such as |")
        if not isinstance(threshold, str) and not 0 < threshold < 1:
            raise UserError(f"MultiLabel was given threshold={threshold}, expected a probability above 0 and below 1")
        self.separator, self.empty, self.threshold = separator, empty, threshold
        self.chooses_thresholds = False

    def infer_classes(self, columns: Sequence[LabelColumn]) -> list[str]:
        """Return the names in all cells, sorted; of several columns, the names of the columns."""
        if len(columns) > 1:
            return [column.name for column in columns]
        return sorted_classes(name for cell in columns[0].cells for name in self.read_names(cell) or [])

    def read_targets(self, columns: Sequence[LabelColumn], classes: Sequence[str]) -> Targets:
        """Return 1, 0 or -1 for each row and class."""
        if len(columns) > 1:
            by_name = {column.name: self._read_flags(column) for column in columns}
            return np.stack([by_name[name] for name in classes], axis=1)
        (column,) = columns
        index = {name: number for number, name in enumerate(classes)}
        targets = np.full((len(column.cells) + 1, len(classes)), UNKNOWN, np.int64)
        targets[-1] = 0 if self.empty == "none" else UNKNOWN
        for code, cell in enumerate(column.cells):
            names = self.read_names(cell)
            if names is None or not index.keys() >= set(names):
                continue  # invalid
            targets[code] = targets[-1] if not names and isinstance(cell, str) and not cell.strip() else 0
            targets[code, [index[name] for name in names]] = 1
        return targets[column.codes]

    def find_invalid(self, columns: Sequence[LabelColumn], classes: Sequence[str]) -> list[NDArray[np.bool_]]:
        """Return whether each cell has unknown names; of several columns, whether it is not 1, 0 or empty."""
        if len(columns) > 1:
            flags = [[cell_text(cell).lower() in {*FLAGS, ""} for cell in column.cells] for column in columns]
        else:
            names = [self.read_names(cell) for cell in columns[0].cells]
            flags = [[found is not None and set(found) <= set(classes) for found in names]]
        valid = (np.array([*values, True], bool) for values in flags)
        return [~values[column.codes] for values, column in zip(valid, columns, strict=True)]

    def explain_invalid(self, cell: str | tuple[str, ...] | None, classes: Sequence[str], several_columns: bool) -> str:
        """Return what is wrong with a cell, and what to do."""
        if several_columns:
            return f"{cell!r} is neither 1 nor 0: expected 1, 0, or an empty cell if it is unknown"
        names = self.read_names(cell or "")
        if names is None:
            return f"{cell!r} is not a list of labels such as [drama, crime]: close its brackets and quotation marks"
        unknown = next(name for name in names if name not in classes)
        return f"{unknown!r} is not one of the labels {join_names(classes)}{did_you_mean(unknown, classes)}"

    def _read_flags(self, column: LabelColumn) -> NDArray[np.int64]:
        values = [FLAGS.get(cell_text(cell).lower(), UNKNOWN) for cell in column.cells]
        return np.array([*values, UNKNOWN], np.int64)[column.codes]

    def read_names(self, cell: str | tuple[str, ...]) -> list[str] | None:
        """Return the distinct names in a cell; None if it is a list that cannot be read."""
        items: Any = cell if isinstance(cell, tuple) else cell.split(self.separator)
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                items = yaml.load(cell, yaml.BaseLoader)
            except yaml.YAMLError:
                return None
            if not all(isinstance(item, str) for item in items):
                return None
        return list(dict.fromkeys(name for item in items if (name := item.strip())))

    def is_known(self, targets: Targets) -> NDArray[np.bool_]:
        """Return for each row whether a label is known."""
        return np.asarray((targets >= 0).any(1))

    def has_class(self, targets: Targets, index: int) -> NDArray[np.bool_]:
        """Return for each row whether it has a label."""
        return np.asarray(targets[:, index] == 1)

    def count_classes(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return the number of rows per label."""
        return np.asarray((targets == 1).sum(0))

    def count_absent(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return the number of rows per label that are known not to have it."""
        return np.asarray((targets == 0).sum(0))

    def strata(self, targets: Targets) -> NDArray[np.int64]:
        """Return the rarest label of each row, and the number of labels for a row without labels."""
        num_classes = targets.shape[1]
        counts = (targets == 1).sum(0)
        rarest = np.where(targets == 1, counts, len(targets) + 1).argmin(1)
        strata = np.where((targets == 1).any(1), rarest, num_classes)
        return np.where(self.is_known(targets), strata, -1)

    def class_names(self, target: Any, classes: Sequence[str]) -> list[str]:
        """Return the labels of one row."""
        return [name for name, value in zip(classes, target, strict=True) if value == 1]

    def set_num_classes(self, num_classes: int) -> None:
        """Create the thresholds; a checkpoint contains those that are chosen, not those of the configuration."""
        threshold = 0.5 if isinstance(self.threshold, str) else self.threshold
        is_chosen = isinstance(self.threshold, str)
        for name in ("thresholds", "training_thresholds"):
            self.register_buffer(name, torch.full((num_classes,), threshold), persistent=is_chosen)

    def start_validation(self, in_training: bool) -> None:
        """Choose thresholds in validations during training only."""
        self.chooses_thresholds = in_training and self.threshold == "validation"

    def current_thresholds(self, probabilities: Probabilities, target: Target) -> Float[Tensor, " C"]:
        """Return the thresholds; during training, first choose them with all predictions of the validation."""
        if not self.chooses_thresholds:
            return self.thresholds
        self.training_thresholds.copy_(best_thresholds(probabilities, target))
        return self.training_thresholds

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the sigmoid of the logits."""
        return logits.sigmoid()

    def log_odds(self, logits: Logits, index: int) -> Float[Tensor, " B"]:
        """Return the logit of one label."""
        return logits[..., index].double()

    def decide(self, probabilities: Probabilities) -> Target:
        """Return 1 for each label whose probability reaches its threshold, else 0."""
        thresholds = self.training_thresholds if self.training else self.thresholds
        return (probabilities >= thresholds.to(probabilities.device)).long()

    def is_correct(self, logits: Logits, target: Target) -> Bool[Tensor, " B"]:
        """Return whether all known labels of each sample are predicted correctly."""
        decided = self.decide(self.probabilities(logits.float()))
        return ((decided == target) | (target < 0)).all(-1)

    def sample_losses(self, logits: Logits, target: Target) -> Float[Tensor, " B"]:
        """Return the mean of the binary cross-entropies of the known labels of each sample."""
        return self.losses(logits, target) / (target >= 0).sum(-1)

    def sample_errors(self, logits: Logits, target: Target) -> Float[Tensor, " B"]:
        """Return the share of the known labels of each sample that are predicted wrongly."""
        known = target >= 0
        wrong = (self.decide(self.probabilities(logits.float())) != target) & known
        return wrong.sum(-1).double() / known.sum(-1)

    def total_weight(self, target: Target, weights: Float[Tensor, " C"] | None) -> Tensor | int:
        """Return the number of known labels, or the sum of their weights."""
        known = (target >= 0).float()
        total = (known if weights is None else known * weights).sum()
        return total.where(total > 0, 1.0)

    def losses(self, logits: Logits, target: Target, smoothing: float = 0.0) -> Float[Tensor, " B"]:
        """Return the sum of the binary cross-entropies of the known labels of each sample."""
        smoothed = target.clamp(min=0).to(logits.dtype) * (1 - smoothing) + smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
        return losses.masked_fill(target < 0, 0.0).sum(-1)

    def sum_losses(
        self, logits: Logits, target: Target, smoothing: float = 0.0
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Return the sum of the binary cross-entropies of the known labels, and their number."""
        return self.losses(logits, target, smoothing).sum(), (target >= 0).sum()

    def confidences(
        self, probabilities: Probabilities, target: Target
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Return the probability of every known label of every sample, and whether the sample has it."""
        return probabilities[target >= 0], target[target >= 0] == 1

    def sum_squared_errors(
        self, probabilities: Probabilities, target: Target
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Return the sum of the squared errors of the probabilities of all known labels, and their number."""
        return (probabilities - target).square().masked_fill(target < 0, 0.0).sum(), (target >= 0).sum()

    @property
    def has_chosen_thresholds(self) -> bool:
        """Whether the thresholds are chosen on validation."""
        return self.threshold == "validation"

    def choose_thresholds(self, probabilities: Probabilities, target: Target) -> None:
        """Choose the threshold of each label with the largest F1."""
        self.thresholds.copy_(best_thresholds(probabilities, target))

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        """Return macro average precision, macro AUROC, macro- and micro-F1, and exact match."""
        return multi_label_metrics(self.current_thresholds, num_classes, prefix)

    def outcomes(self, num_classes: int) -> Metric:
        """Return the numbers of true and false positives and negatives of each label."""
        return Outcomes(self.current_thresholds, num_classes)

    def per_class(self, outcomes: Tensor, classes: list[str]) -> dict[str, dict[str, float]]:
        """Return precision, recall, F1, number of samples and threshold per label."""
        true_positives, predicted, positives = outcomes[:, 1, 1], outcomes[:, :, 1].sum(1), outcomes[:, 1].sum(1)
        columns = {
            "precision": true_positives / predicted.clamp(min=1),
            "recall": true_positives / positives.clamp(min=1),
            "f1": f1_scores(outcomes).nan_to_num(0.0),
            "threshold": self.thresholds.cpu(),
        }
        return {
            name: {metric: round(values[i].item(), 4) for metric, values in columns.items()}
            | {"samples": int(positives[i])}
            for i, name in enumerate(classes)
        }

    def plot(self, outcomes: Tensor, classes: list[str], title: str) -> Figure | None:
        """Plot precision, recall and F1 of each label."""
        from fusion_pl.tasks.figures import plot_labels

        return plot_labels(self.per_class(outcomes, classes), title)

    def prediction(self, probabilities: Float[Tensor, " C"], classes: Sequence[str]) -> dict[str, Any]:
        """Return the names of the labels whose probability reaches their threshold."""
        decided = self.decide(probabilities.unsqueeze(0)).squeeze(0)
        return {"labels": [name for name, value in zip(classes, decided.tolist(), strict=True) if value]}

    def matches(self, names: Sequence[str], target: Any, classes: Sequence[str]) -> bool:
        """Return whether all known labels are predicted correctly."""
        return all((name in names) == value for name, value in zip(classes, target, strict=True) if value >= 0)

    def format_decision(self, value: Any) -> Any:
        """Return the labels as one text."""
        return None if value is None else self.separator.join(value)
