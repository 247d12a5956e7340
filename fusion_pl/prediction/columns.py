"""Columns of the output, which are known before the first row is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fusion_pl.predict import Predictor
from fusion_pl.tables.table import Table
from fusion_pl.types import Prediction

Kind = Literal["text", "number", "flag", "texts", "numbers"]
KINDS: dict[str, Kind] = {
    "label": "text",
    "probability": "number",
    "labels": "texts",
    "set": "texts",
    "abstained": "flag",
}


@dataclass(frozen=True)
class OutputColumns:
    """Columns of the output of a model.

    Attributes:
        predictor: the model.
        fields: fields of a ``Prediction`` that options fill: ``set``, ``abstained``, ``outlier_p_values`` and
            ``embedding``.
        table: the table whose columns are copied; None if none are.
        copied: names of these columns.
    """

    predictor: Predictor
    fields: Sequence[str] = ()
    table: Table | None = None
    copied: Sequence[str] = ()

    @cached_property
    def _inputs(self) -> list[str]:
        """Names of the inputs that have weights."""
        return list(self.predictor.processors) if self.predictor.empty_output.weights is not None else []

    @cached_property
    def _detectors(self) -> list[str]:
        """Names of the outlier detectors that are used."""
        return list(self.predictor.model.outlier_detectors) if "outlier_p_values" in self.fields else []

    @property
    def decision(self) -> Sequence[str]:
        """Fields of a ``Prediction`` that contain the decision."""
        return self.predictor.task.prediction_fields

    @cached_property
    def _named_fields(self) -> list[str]:
        """Fields of a ``Prediction`` that have a column of the same name, besides id, embedding and error."""
        return [*self.decision, *(name for name in ("set", "abstained") if name in self.fields)]

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Dictionary from column to the kind of its cells, in the order of the output, without copied columns."""
        return {
            "id": "text",
            **{name: KINDS[name] for name in self._named_fields},
            **{f"p({name})": "number" for name in self.predictor.classes},
            **{f"weight({name})": "number" for name in self._inputs},
            **{f"outlier_p_value({name})": "number" for name in self._detectors},
            **({"embedding": "numbers"} if "embedding" in self.fields else {}),
            "error": "text",
        }

    @property
    def copied_names(self) -> dict[str, str]:
        """Dictionary from copied column to its name in the output."""
        taken = self.kinds
        return {name: f"table({name})" if name in taken else name for name in self.copied}

    def values(self, prediction: Prediction) -> list[Any]:
        """Return the cells of a prediction, in the order of ``kinds``."""
        probabilities, weights = prediction.probabilities or {}, prediction.weights or {}
        p_values: Mapping[str, float | None] = prediction.outlier_p_values or {}
        return [
            prediction.id,
            *(getattr(prediction, name) for name in self._named_fields),
            *map(probabilities.get, self.predictor.classes),
            *map(weights.get, self._inputs),
            *map(p_values.get, self._detectors),
            *([prediction.embedding] if "embedding" in self.fields else []),
            prediction.error,
        ]

    def copied_rows(self, start: int, number: int) -> list[tuple[Any, ...]]:
        """Return the cells of the copied columns in each of a number of consecutive rows."""
        if self.table is None or not self.copied:
            return [()] * number
        return list(zip(*(self.table.cells(name, start, start + number) for name in self.copied), strict=True))
