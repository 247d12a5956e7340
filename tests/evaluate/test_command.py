"""``fusion-pl evaluate`` as a user runs it."""

from __future__ import annotations

import html
from collections import Counter

import pytest

from fusion_pl.predict import Predictor
from tests.evaluate.models import SPOILT, read, results


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


def test_the_spoilt_speaker_is_found(evaluated):
    folder, _ = evaluated
    found = results(folder / "out")
    groups = [(column, group) for column, members in found["groups"].items() for group in members]
    worse = {(column, group["name"]) for column, group in groups if group["is_worse"]}
    assert worse == {("speaker", SPOILT)}
    (warning,) = found["overview"]["warnings"]
    assert f"the model is worse on the group {SPOILT} of speaker" in warning
    assert html.escape(warning) in (folder / "out/report.html").read_text()


def test_every_row_is_in_one_group_of_each_column(evaluated):
    folder, _ = evaluated
    found = results(folder / "out")
    rows = [row for row in read(folder / "rows.csv") if row["split"] == "test"]
    counts = {group["name"]: group["rows"] for group in found["groups"]["speaker"]}
    assert counts == Counter(row["speaker"] for row in rows)
    assert {group["name"]: group["rows"] for group in found["groups"]["note"]} == {
        "few": sum(row["note"] == "few" for row in rows),
        "(empty)": sum(row["note"] == "" for row in rows),
    }
    ages = sorted(int(row["age"]) for row in rows)
    assert len(found["groups"]["age"]) == 4
    for group in found["groups"]["age"]:
        low, high = map(int, group["name"].split(" to "))
        assert group["rows"] == sum(low <= age <= high for age in ages)
    patterns = Counter(" + ".join(name for name in ("first", "second") if row[name]) for row in rows)
    assert {group["name"]: group["rows"] for group in found["groups"]["present inputs"]} == patterns
    assert all(sum(group["rows"] for group in groups) == len(rows) for groups in found["groups"].values())
    small = next(group for group in found["groups"]["note"] if group["name"] == "few")
    assert small["p_value"] is None
    assert "too few rows" in (folder / "out/report.md").read_text()
    lengths = {name: groups for name, groups in found["groups"].items() if name.startswith("length of ")}
    assert set(lengths) == {"length of first (characters)", "length of second (characters)"}
    assert {group["name"] for group in lengths["length of first (characters)"]} > {"(empty)"}
