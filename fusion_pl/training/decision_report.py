"""Measure prediction sets and doubt on the test split."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion_pl.fusion.evidential import Evidential
from fusion_pl.training.calibrate import calibrate_outputs
from fusion_pl.types import UserError
from fusion_pl.uncertainty.calibration import Outputs
from fusion_pl.uncertainty.conformal import measure_coverage, prediction_sets, set_thresholds
from fusion_pl.uncertainty.doubt import area_under_risk_coverage, doubt_scores, risk_coverage

COVERAGES = (0.8, 0.9, 0.95)  # of the prediction sets
SHARES = (0.5, 0.7, 0.9, 1.0)  # of the samples, those with the least doubt, whose accuracy is reported


def describe_decisions(model: Any, outputs: Outputs) -> dict[str, Any]:
    """Return realised coverage of prediction sets, and accuracy by doubt."""
    logits = calibrate_outputs(model, outputs)
    return {
        "prediction_sets": _describe_sets(model, outputs, model.task.probabilities(logits)),
        "doubt": _describe_doubt(doubts_of(model, outputs), ~model.task.is_correct(logits, outputs.target)),
    }


def doubts_of(model: Any, outputs: Outputs) -> dict[str, Tensor]:
    """Return the scores of doubt of stored outputs."""
    task, is_evidential = model.task, isinstance(model.fusion, Evidential)
    probabilities = task.probabilities(calibrate_outputs(model, outputs))
    return doubt_scores(task.class_scores(outputs.logits), probabilities, is_evidential, task.exclusive_classes)


def _describe_sets(model: Any, outputs: Outputs, probabilities: Float[Tensor, "N C"]) -> dict[str, Any]:
    """Return coverage and mean size of the sets, overall, by class and by present inputs."""
    described: dict[str, Any] = {}
    scores, classes, inputs = model.validation_scores, model.classes, list(model.encoders)
    for coverage in COVERAGES if scores is not None else ():
        try:
            thresholds = set_thresholds(scores.conformity, scores.target, len(classes), coverage, by_class=False)
        except UserError:  # too few validation samples for this coverage
            continue
        sets = prediction_sets(probabilities, thresholds, model.task.exclusive_classes)
        has_class = _classes_of_samples(outputs.target, len(classes))
        covered = (sets | ~has_class).all(-1)
        groups = {"+".join(names): rows for names, rows in _rows_by_inputs(outputs, inputs)}
        described[str(coverage)] = {
            **measure_coverage(covered),
            "mean_size": float(sets.sum(-1).double().mean()),
            "by_class": {name: measure_coverage(sets[has_class[:, i], i]) for i, name in enumerate(classes)},
            "by_inputs": {name: measure_coverage(covered[rows]) for name, rows in groups.items()},
        }
    return described


def _classes_of_samples(target: Int[Tensor, "N ..."], num_classes: int) -> Bool[Tensor, "N C"]:
    """Return which classes each sample is known to have."""
    return target == 1 if target.ndim == 2 else torch.nn.functional.one_hot(target, num_classes).bool()


def _rows_by_inputs(outputs: Outputs, inputs: list[str]) -> list[tuple[list[str], Bool[Tensor, " N"]]]:
    """Return the names of the present inputs, and the rows that have exactly these."""
    patterns = torch.unique(outputs.present, dim=0)
    names = [[name for name, is_present in zip(inputs, row, strict=True) if is_present] for row in patterns.tolist()]
    return [(name, (outputs.present == pattern).all(1)) for name, pattern in zip(names, patterns, strict=True)]


def _describe_doubt(doubts: dict[str, Tensor], wrong: Bool[Tensor, " N"]) -> dict[str, Any]:
    """Return the area under the risk-coverage curve, and the accuracy of the samples with the least doubt."""
    described = {}
    for name, values in doubts.items():
        accuracies = 1 - risk_coverage(values, wrong)
        kept = {str(share): float(accuracies[max(1, round(share * len(wrong))) - 1]) for share in SHARES}
        described[name] = {"aurc": area_under_risk_coverage(values, wrong), "accuracy_of_share": kept}
    return described
