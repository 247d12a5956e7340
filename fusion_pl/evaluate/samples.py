"""The hardest and the most doubtful samples, with their text, picture and sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion_pl.analysis.page import Card
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.groups import EMPTY_GROUP
from fusion_pl.evaluate.section import EvaluationSection
from fusion_pl.html import preview
from fusion_pl.messages import truncate

NUM_SAMPLES = 12
MAX_CELL = 60  # characters of the cell of a group


def hardest_section(evaluation: Evaluation, columns: Sequence[str]) -> EvaluationSection:
    """Return the samples with the greatest loss, with their cells in the columns of ``--groups``."""
    text = "The samples to whose label the model gives the least probability: its worst errors, or wrong labels."
    records = _records(evaluation, evaluation.losses, "loss", columns)
    return _samples_section(evaluation, records, "Hardest samples", text, "hardest")


def doubtful_section(evaluation: Evaluation, columns: Sequence[str]) -> EvaluationSection:
    """Return the samples with the most doubt, with their cells in the columns of ``--groups``."""
    decision = "class" if evaluation.task.exclusive_classes else "set of labels"
    text = f"The samples with the most doubt (1 - the probability of the most probable {decision}), right or wrong."
    records = _records(evaluation, evaluation.doubts["probability"], "doubt", columns)
    return _samples_section(evaluation, records, "Most doubtful samples", text, "doubtful")


def _samples_section(
    evaluation: Evaluation, records: dict[int, dict[str, Any]], title: str, text: str, key: str
) -> EvaluationSection:
    cards = [_card(evaluation, index, record) for index, record in records.items()]
    return EvaluationSection(title, text, cards=cards, key=key, results={"samples": list(records.values())})


def _records(evaluation: Evaluation, values: Tensor, name: str, columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Return the records of the samples with the largest values, by their index."""
    chosen = torch.argsort(values, descending=True, stable=True)[:NUM_SAMPLES].tolist()
    return {index: _record(evaluation, index, columns) | {name: float(values[index])} for index in chosen}


def _record(evaluation: Evaluation, index: int, columns: Sequence[str]) -> dict[str, Any]:
    """Return what is known of a sample, as plain data."""
    row = int(evaluation.rows[index])
    table, classes = evaluation.data.table, evaluation.classes
    return {
        "id": table.sample_id(row),
        "row": int(table.row_numbers[row]),
        "target": evaluation.task.class_names(evaluation.target[index].tolist(), classes),
        **evaluation.task.prediction(evaluation.probabilities[index], classes),
        "groups": {column: (table.cell(column, row) or "").strip() for column in columns},
        "is_correct": bool(evaluation.correct[index]),
        "probabilities": dict(zip(classes, evaluation.probabilities[index].tolist(), strict=True)),
    }


def _card(evaluation: Evaluation, index: int, record: dict[str, Any]) -> Card:
    """Return a sample with the previews of its inputs."""
    task = evaluation.task
    sample = evaluation.data.samples("predict")[int(evaluation.rows[index])]
    previews = [preview(value, name) for name, value in sample.inputs.items()]
    target = record["target"][0] if task.exclusive_classes else task.format_decision(record["target"])
    predicted = task.format_decision(record[task.prediction_fields[0]])
    labels = f"label {target}" if target else "no labels"
    labels += f", predicted {predicted}" if predicted else ", none predicted"
    probability = f" with probability {record['probability']:.3f}" if "probability" in record else ""
    value = next(f"{name} {record[name]:.3f}" for name in ("loss", "doubt") if name in record)
    text = f"row {record['row']}: {labels}{probability}; {value}"
    missing = [name for name in evaluation.predictor.processors if name not in sample.inputs]
    if missing:
        text += f"; without {', '.join(missing)}"
    if groups := record["groups"]:
        text += "; " + ", ".join(f"{name}: {truncate(cell, MAX_CELL) or EMPTY_GROUP}" for name, cell in groups.items())
    return Card(record["id"], text, previews)
