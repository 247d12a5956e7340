"""Numbers that ``fusion-pl predict`` prints when it has finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion_pl.predict import Predictor
from fusion_pl.tables.hashes import row_hashes
from fusion_pl.tables.labels import has_label_columns, read_label_column
from fusion_pl.tables.split_record import SplitRecord
from fusion_pl.tables.splits import DEFAULT_SPLIT
from fusion_pl.tables.table import Table
from fusion_pl.tasks import LabelColumn
from fusion_pl.types import Prediction


@dataclass
class Counts:
    """Numbers of failed rows, of abstentions, of other rows with a known label, and of correct predictions among these.

    Attributes:
        trained: number of the rows with a known label that the model was trained on.
        first_failed: index of the first failed row.
        first_error: its error message.
    """

    failed: int = 0
    abstained: int = 0
    labelled: int = 0
    correct: int = 0
    trained: int = 0
    first_failed: int = 0
    first_error: str = ""

    def add(self, start: int, predictions: Sequence[Prediction], labels: KnownLabels | None) -> None:
        """Count the predictions of consecutive rows, of which ``start`` is the first one."""
        is_trained = labels.is_trained(start, start + len(predictions)) if labels else ()
        for row, prediction in enumerate(predictions, start):
            if prediction.error is not None:
                if not self.failed:
                    self.first_failed, self.first_error = row, prediction.error
                self.failed += 1
            elif prediction.abstained:
                self.abstained += 1
            elif labels and labels.is_known[row]:
                self.labelled += 1
                self.correct += labels.match(row, prediction)
                self.trained += bool(is_trained[row - start])

    @classmethod
    def sum(cls, parts: Sequence[Counts]) -> Counts:
        """Return the counts of several ranges of rows, in the order of the rows."""
        total = cls()
        for part in parts:
            if part.failed and not total.failed:
                total.first_failed, total.first_error = part.first_failed, part.first_error
            for name in ("failed", "abstained", "labelled", "correct", "trained"):
                setattr(total, name, getattr(total, name) + getattr(part, name))
        return total


class KnownLabels:
    """Labels of the rows of a table, with which predictions are compared.

    Args:
        predictor: the model.
        table: the table.
        columns: its label columns.
        record: splits that the checkpoint of the model records.

    Attributes:
        targets: target of each row.
        is_known: whether each row has a label that the model knows.
        has_label: whether each row has any label, also one that the model does not know.
    """

    def __init__(
        self, predictor: Predictor, table: Table, columns: Sequence[LabelColumn], record: SplitRecord | None
    ) -> None:
        self.predictor, self.table, self.record = predictor, table, record
        self.names = {column.name for column in columns}
        self.targets = predictor.task.read_targets(columns, predictor.classes)
        self.is_known = predictor.task.is_known(self.targets)
        filled = [np.array([*map(_is_filled, column.cells), False])[column.codes] for column in columns]
        self.has_label: NDArray[np.bool_] = self.is_known | np.any(filled, axis=0)

    @classmethod
    def read(cls, predictor: Predictor, table: Table, record: SplitRecord | None) -> KnownLabels | None:
        """Read the label columns of the training; return None if the table lacks one of them."""
        names = [predictor.label] if isinstance(predictor.label, str) else predictor.label or []
        if not names or not has_label_columns(table, names, predictor.task):
            return None
        return cls(predictor, table, [read_label_column(table, name) for name in names], record)

    def is_trained(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return whether the model was trained on each row of a range, as far as its checkpoint knows."""
        if self.record is None:
            return np.zeros(stop - start, bool)
        hashes = row_hashes(self.table.slice(start, stop), ignored_columns={*self.names, DEFAULT_SPLIT})
        trained = self.record.hashes["train"]  # sorted
        return np.searchsorted(trained, hashes, "right") > np.searchsorted(trained, hashes, "left")

    def match(self, row: int, prediction: Prediction) -> bool:
        """Return whether a prediction is the label of its row."""
        return self.predictor.task.matches(prediction.names, self.targets[row], self.predictor.classes)


def _is_filled(cell: str | tuple[str, ...]) -> bool:
    """Return whether a label cell, which may be a list, is not blank."""
    return any(text.strip() for text in ([cell] if isinstance(cell, str) else cell))
