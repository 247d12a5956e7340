"""Rules by which a prediction gets a set of classes, or no class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fusion_pl.messages import join_names
from fusion_pl.tasks import Task
from fusion_pl.types import UserError
from fusion_pl.uncertainty.conformal import prediction_sets, set_thresholds
from fusion_pl.uncertainty.doubt import Doubt, abstention_threshold, doubt_scores
from fusion_pl.uncertainty.validation_scores import ValidationScores


@dataclass(frozen=True)
class DecisionRules:
    """How predictions are made from the scores of validation samples.

    Attributes:
        thresholds: largest conformity score of each class in a set; None = no sets.
        doubt: name of the score of doubt.
        max_doubt: largest doubt of a prediction that has a class; None = every prediction has one.
        outliers: whether predictions have the p-values of the outlier detectors.
    """

    thresholds: Float[Tensor, " C"] | None = None
    doubt: Doubt = "probability"
    max_doubt: float | None = None
    outliers: bool = False

    @property
    def field_names(self) -> list[str]:
        """Names of the fields of a ``Prediction`` that are filled because of the rules."""
        filled = {"set": self.thresholds is not None, "abstained": self.max_doubt is not None}
        return [name for name, is_filled in (filled | {"outlier_p_values": self.outliers}).items() if is_filled]

    def fields(
        self, task: Task, logits: Float[Tensor, "B L"], probabilities: Float[Tensor, "B C"], classes: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return the fields ``set`` and ``abstained`` of the predictions of a batch, if there are rules for them.

        Args:
            task: task of the model.
            logits: logits without calibration.
            probabilities: calibrated probabilities.
            classes: names of the classes.
        """
        fields: list[dict[str, Any]] = [{} for _ in range(len(probabilities))]
        if self.thresholds is not None:
            sets = prediction_sets(probabilities, self.thresholds, task.exclusive_classes)
            for row, members in zip(fields, sets.tolist(), strict=True):
                row["set"] = [name for name, is_member in zip(classes, members, strict=True) if is_member]
        if self.max_doubt is not None:
            scores, is_evidential = task.class_scores(logits), self.doubt == "evidential"
            doubts = doubt_scores(scores, probabilities, is_evidential, task.exclusive_classes)[self.doubt]
            for row, doubt in zip(fields, doubts.tolist(), strict=True):
                abstains = doubt > self.max_doubt
                row.update(dict.fromkeys(task.prediction_fields) if abstains else {}, abstained=abstains)
        return fields


def decision_rules(
    task: Task,
    scores: ValidationScores | None,
    num_classes: int,
    coverage: float | None = None,
    coverage_by_class: bool = False,
    abstain: float | None = None,
    doubt: Doubt = "probability",
) -> DecisionRules:
    """Return the rules of a model.

    Args:
        task: task of the model.
        scores: scores of its validation samples.
        num_classes: number of classes C.
        coverage: probability that the set of a sample contains its class, or all its labels; None = no sets.
        coverage_by_class: whether the sets have that probability in each class.
        abstain: share of the validation samples, those with the least doubt, that would get a class; None = all.
        doubt: score of doubt.

    Raises:
        UserError: if the task or the checkpoint does not fit, or a number is out of range.
    """
    if coverage_by_class and coverage is None:
        raise UserError("coverage_by_class needs a coverage, such as coverage 0.9")
    if doubt != "probability" and abstain is None:
        raise UserError(f"doubt {doubt} needs abstain, the share of samples that get a label, such as abstain 0.7")
    if coverage is None and abstain is None:
        return DecisionRules()
    option = "abstain" if coverage is None else "coverage"
    if scores is None:
        raise UserError(
            f"{option} needs the scores of the validation samples, and the checkpoint has none: train with fusion-pl "
            "fit of this version, which writes them, or use best.ckpt instead of a last.ckpt from within an epoch"
        )
    if coverage_by_class and scores.target is None:
        raise UserError(
            f"coverage_by_class needs one class per sample, and {type(task).__name__} has several labels: leave it out"
        )
    if abstain is not None and doubt not in scores.doubts:
        raise UserError(f"doubt is {doubt!r}, and the checkpoint has the scores of {join_names(scores.doubts)}")
    thresholds = None
    if coverage is not None:
        thresholds = set_thresholds(scores.conformity, scores.target, num_classes, coverage, coverage_by_class)
    max_doubt = None if abstain is None else abstention_threshold(scores.doubts[doubt], abstain)
    return DecisionRules(thresholds, doubt, max_doubt)
