"""Scores of the validation samples, which a checkpoint contains for prediction sets and abstention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion_pl.torch_files import is_complete_tensor
from fusion_pl.types import UserError
from fusion_pl.uncertainty.conformal import sample_scores
from fusion_pl.uncertainty.doubt import doubt_scores


@dataclass(frozen=True)
class ValidationScores:
    """Scores of N validation samples, with all inputs that they have.

    Attributes:
        conformity: largest conformity score of the classes of each sample, see ``sample_scores``.
        target: its class; None if a sample may have several labels.
        doubts: name -> scores of doubt, see ``doubt_scores``.
        predicted: predicted class, or labels joined by ``+`` -> number of samples, most frequent first.
        inputs: inputs that a sample has, joined by ``+`` -> number of samples, most frequent first.
    """

    conformity: Float[Tensor, " N"]
    target: Int[Tensor, " N"] | None
    doubts: dict[str, Float[Tensor, " N"]]
    predicted: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)

    @classmethod
    def measure(
        cls,
        logits: Float[Tensor, "N C"],
        probabilities: Float[Tensor, "N C"],
        target: Int[Tensor, "N ..."],
        evidential: bool,
        exclusive_classes: bool = True,
    ) -> ValidationScores:
        """Compute the scores from logits without calibration and calibrated probabilities."""
        return cls(
            sample_scores(probabilities, target, exclusive_classes),
            target if exclusive_classes else None,
            doubt_scores(logits, probabilities, evidential, exclusive_classes),
        )

    def to_config(self) -> dict[str, Any]:
        """Return the content for a checkpoint."""
        return dict(vars(self))


def read_validation_scores(config: Mapping[str, Any]) -> ValidationScores | None:
    """Return the scores in the configuration of a checkpoint; None if it has none.

    Raises:
        UserError: if they are damaged.
    """
    content = config.get("validation_scores")
    if content is None:
        return None
    try:
        doubts = {str(name): values for name, values in content["doubts"].items()}
        conformity, target = content["conformity"], content["target"]
        counts = [_read_counts(content.get(name, {}), len(conformity)) for name in ("predicted", "inputs")]
        count, num_classes = len(conformity), len(config["classes"])
        is_valid = all(is_complete_tensor(values, torch.float64, (count,)) for values in (conformity, *doubts.values()))
        is_valid &= count > 0 and (target is None or is_complete_tensor(target, torch.int64, (count,)))
        is_valid = is_valid and (target is None or bool(((target >= 0) & (target < num_classes)).all()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"its validation scores are damaged ({type(error).__name__})") from error
    if not is_valid:
        raise UserError("its validation scores are damaged (a number is missing or not finite)")
    return ValidationScores(conformity, target, doubts, *counts)


def _read_counts(content: Mapping[str, Any], samples: int) -> dict[str, int]:
    counts = {str(name): int(count) for name, count in content.items()}
    if any(count < 1 for count in counts.values()) or sum(counts.values()) > samples:
        raise ValueError("the numbers of samples are wrong")
    return counts
