"""``fusion-pl evaluate`` as a user runs it."""

from __future__ import annotations

import pytest

from fusion_pl.predict import Predictor
from tests.evaluate.models import read, results


def test_the_metrics_are_those_of_the_predictions(evaluated):
    """Predicted with the Python interface, and counted by their names."""
    folder, _ = evaluated
    predictor = Predictor.from_checkpoint(folder / "best.ckpt", device="cpu")
    rows = [row for row in read(folder / "rows.csv") if row["split"] == "test"]
    predictions = predictor.predict([{name: row[name] or None for name in ("first", "second")} for row in rows])
    labels = [set(filter(None, row["label"].split("|"))) for row in rows]
    right = [set(prediction.names) == names for prediction, names in zip(predictions, labels, strict=True)]
    found = results(folder / "out")
    assert found["overview"]["rows"] == len(rows)
    score = found["metrics"][predictor.task.score]
    assert score["value"] == pytest.approx(sum(right) / len(right))
    assert score["interval"][0] < score["value"] < score["interval"][1]
