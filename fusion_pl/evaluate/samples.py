"""The hardest and the most doubtful samples, with their text, picture and sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fusion_pl.analysis.page import Card
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.section import EvaluationSection
from fusion_pl.html import preview

NUM_SAMPLES = 12


def hardest_section(evaluation: Evaluation) -> EvaluationSection:
    """Return the samples with the greatest loss."""
    text = "The samples to whose label the model gives the least probability: its worst errors, or wrong labels."
    return _samples_section(evaluation, evaluation.losses, "loss", "Hardest samples", text, "hardest")


def doubtful_section(evaluation: Evaluation) -> EvaluationSection:
    """Return the samples with the most doubt."""
    decision = "class" if evaluation.task.exclusive_classes else "set of labels"
    text = f"The samples with the most doubt (1 - the probability of the most probable {decision}), right or wrong."
    doubts = evaluation.doubts["probability"]
    return _samples_section(evaluation, doubts, "doubt", "Most doubtful samples", text, "doubtful")


def _samples_section(
    evaluation: Evaluation, values: Tensor, name: str, title: str, text: str, key: str
) -> EvaluationSection:
    chosen = torch.argsort(values, descending=True, stable=True)[:NUM_SAMPLES].tolist()
    records = [_record(evaluation, index) | {name: float(values[index])} for index in chosen]
    cards = [_card(evaluation, index, record, name) for index, record in zip(chosen, records, strict=True)]
    return EvaluationSection(title, text, cards=cards, key=key, results={"samples": records})


def _record(evaluation: Evaluation, index: int) -> dict[str, Any]:
    """Return what is known of a sample, as plain data."""
    row = int(evaluation.rows[index])
    table, classes = evaluation.data.table, evaluation.classes
    return {
        "id": table.sample_id(row),
        "row": int(table.row_numbers[row]),
        "target": evaluation.task.class_names(evaluation.target[index].tolist(), classes),
        **evaluation.task.prediction(evaluation.probabilities[index], classes),
        "is_correct": bool(evaluation.correct[index]),
        "probabilities": dict(zip(classes, evaluation.probabilities[index].tolist(), strict=True)),
    }


def _card(evaluation: Evaluation, index: int, record: dict[str, Any], value_name: str) -> Card:
    """Return a sample with the previews of its inputs."""
    sample = evaluation.data.samples("predict")[int(evaluation.rows[index])]
    previews = [preview(value, name) for name, value in sample.inputs.items()]
    target = ", ".join(record["target"]) or "no label"
    predicted = evaluation.task.format_decision(record[evaluation.task.prediction_fields[0]]) or "no label"
    probability = f" with probability {record['probability']:.3f}" if "probability" in record else ""
    value = f"{value_name} {record[value_name]:.3f}"
    text = f"row {record['row']}: label {target}, predicted {predicted}{probability}; {value}"
    missing = [name for name in evaluation.predictor.processors if name not in sample.inputs]
    if missing:
        text += f"; without {', '.join(missing)}"
    return Card(record["id"], text, previews)
