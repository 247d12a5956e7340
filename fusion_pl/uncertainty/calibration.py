"""Calibration: scale the logits of a trained model so that its probabilities are right as often as they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion_pl.metrics import calibration_error, equal_mass_bins
from fusion_pl.tasks import Task
from fusion_pl.types import UserError

Method = Literal["none", "temperature", "vector"]
MAX_SAMPLES = 20_000  # of a fit; the standard error of log T is below 2 %


class Outputs(NamedTuple):
    """Outputs of a model for N validation samples, some of them with only a subset of their inputs.

    Attributes:
        logits: logits of the model.
        target: targets of the samples.
        present: one column per input: whether the model had it.
        complete: whether the model had all inputs that the sample has.
    """

    logits: Float[Tensor, "N L"]
    target: Tensor
    present: Bool[Tensor, "N M"]
    complete: Bool[Tensor, " N"]

    def select(self, rows: Bool[Tensor, " N"]) -> Outputs:
        """Return the rows of a mask, evenly reduced to at most ``MAX_SAMPLES``."""
        chosen = rows.nonzero().squeeze(1)
        chosen = chosen[:: max(1, math.ceil(len(chosen) / MAX_SAMPLES))]
        return Outputs(*(values[chosen] for values in self))


@dataclass(frozen=True)
class Calibration:
    """Scales and shifts of logits: ``a ∘ z + b``, or ``z / T_S`` for samples with exactly the inputs S.

    Attributes:
        method: how ``a`` and ``b`` were fitted: ``temperature`` (``a = 1 / T``, ``b = 0``) or ``vector`` (one scale and
            one shift per logit).
        scale: a, of one number or one per logit.
        shift: b, of one number or one per logit.
        temperatures: pairs of input names S and temperature T_S.
        samples: number of validation samples.
        before: calibration error, Brier score and NLL of the validation without calibration.
        after: the same with it.
        reason: sentence that says why ``a = 1`` and ``b = 0``; empty if they were fitted.
    """

    method: str
    scale: list[float] = field(default_factory=lambda: [1.0])
    shift: list[float] = field(default_factory=lambda: [0.0])
    temperatures: list[tuple[list[str], float]] = field(default_factory=list)
    samples: int = 0
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def temperature(self) -> float | None:
        """The common temperature; None for vector scaling."""
        return 1 / self.scale[0] if self.method == "temperature" else None

    def apply(
        self,
        logits: Float[Tensor, "B L"],
        present: Mapping[str, Bool[Tensor, " B"]],
        subset: Sequence[str] | None = None,
    ) -> Float[Tensor, "B L"]:
        """Return the calibrated logits of a batch.

        Args:
            logits: logits of the model.
            present: input name -> presence mask.
            subset: names of the inputs that the model had; None = all.
        """
        calibrated = logits.float() * logits.new_tensor(self.scale, dtype=torch.float)
        calibrated = calibrated + logits.new_tensor(self.shift, dtype=torch.float)
        for names, temperature in self.temperatures:
            masks = [
                (mask if subset is None or name in subset else torch.zeros_like(mask)) == (name in names)
                for name, mask in present.items()
            ]
            rows = torch.stack(masks).all(0).to(logits.device)
            calibrated = torch.where(rows.unsqueeze(-1), logits.float() / temperature, calibrated)
        return calibrated


def calibration_scores(task: Task, logits: Float[Tensor, "N L"], target: Tensor) -> dict[str, float]:
    """Return calibration error (equal-mass bins), Brier score and NLL of predictions."""
    probabilities = task.probabilities(logits.float())
    brier, count = task.sum_squared_errors(probabilities, target)
    nll, _ = task.sum_losses(logits.float(), target)
    error = calibration_error(*equal_mass_bins(*task.confidences(probabilities, target)))
    return {"ece": float(error), "brier": float(brier / count), "nll": float(nll / count)}


def read_calibration(config: Mapping[str, Any], inputs: Sequence[str], task: Task) -> Calibration | None:
    """Return the calibration in the configuration of a checkpoint; None if it has none.

    Raises:
        UserError: if it is damaged.
    """
    content = config.get("calibration")
    if content is None:
        return None
    try:
        sizes = {1, task.num_logits(len(config["classes"]))}
        scale, shift = ([_finite(value) for value in content[name]] for name in ("scale", "shift"))
        temperatures = [([str(name) for name in names], _finite(value)) for names, value in content["temperatures"]]
        is_valid = len(scale) in sizes and len(shift) in sizes and all(value > 0 for value in scale)
        is_valid &= all(value > 0 and set(names) <= set(inputs) for names, value in temperatures)
        scores = [{str(name): _finite(value) for name, value in content[key].items()} for key in ("before", "after")]
        texts = {name: str(content[name])[:1000] for name in ("method", "reason")}
        samples = int(_finite(content["samples"]))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"its calibration is damaged ({type(error).__name__})") from error
    if not is_valid:
        raise UserError("its calibration is damaged (a number or the name of an input is wrong)")
    return Calibration(
        scale=scale, shift=shift, temperatures=temperatures, samples=samples, before=scores[0], after=scores[1], **texts
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("the number is not finite")
    return number
