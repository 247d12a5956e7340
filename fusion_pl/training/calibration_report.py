"""Measure the calibration of a validation or test, before and after calibration, for every subset of the inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from fusion_pl.metrics import (
    EqualMassCalibrationError,
    calibration_error,
    chance_calibration_error,
    equal_mass_bins,
)
from fusion_pl.tasks import Task
from fusion_pl.uncertainty.calibration import Calibration


class Bins(NamedTuple):
    """Bins of a reliability diagram: mean confidence, share of true predictions, and number of samples."""

    confidences: Float[Tensor, " K"]
    shares: Float[Tensor, " K"]
    sizes: Int[Tensor, " K"]


class CalibrationScores(EqualMassCalibrationError):  # noqa: N818 - a metric, no exception
    """Calibration error, Brier score and NLL of predictions; exact for several processes."""

    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, task: Task, logits: Float[Tensor, "B L"], target: Tensor) -> None:  # type: ignore[override]
        """Add the predictions of a batch."""
        probabilities = task.probabilities(logits)
        super().update(*task.confidences(probabilities, target))
        brier, brier_count = task.sum_squared_errors(probabilities, target)
        nll, nll_count = task.sum_losses(logits, target)
        self.sums += torch.stack([brier, nll])
        self.counts += torch.tensor([int(brier_count), int(nll_count), len(target)], device=self.counts.device)

    def compute(self) -> dict[str, float]:  # type: ignore[override]
        """Return the scores, the error of a perfectly calibrated model, and the number of samples; NaN without any."""
        brier, nll = (self.sums / self.counts[:2]).tolist()
        error = float(calibration_error(*self.bins()))
        chance = chance_calibration_error(dim_zero_cat(self.confidences)) if len(self.confidences) else math.nan
        return {"ece": error, "ece_by_chance": chance, "brier": brier, "nll": nll, "samples": int(self.counts[2])}


class CalibrationReport:
    """Calibration of an evaluation: input names joined by ``+`` -> scores ``before`` and ``after`` calibration.

    The metrics exist during an evaluation only. Every process evaluates the same subsets in the same order.
    """

    def __init__(self) -> None:
        self.scores: dict[str, dict[str, CalibrationScores]] = {}

    def update(
        self,
        inputs: str,
        task: Task,
        logits: Mapping[str, Float[Tensor, "B L"]],
        target: Tensor,
        rows: Bool[Tensor, " B"] | None = None,
    ) -> None:
        """Add a batch: ``logits`` are those ``before`` and, if the model is calibrated, ``after`` calibration."""
        for moment, values in logits.items():
            metrics = self.scores.setdefault(inputs, {})
            if moment not in metrics:
                metrics[moment] = CalibrationScores().to(values.device)
            kept = slice(None) if rows is None else rows
            metrics[moment].update(task, values.float()[kept], target[kept])

    def compute(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the scores of all processes; call it on every process."""
        return {
            inputs: {moment: metric.compute() for moment, metric in metrics.items()}
            for inputs, metrics in self.scores.items()
        }

    def bins(self, inputs: str) -> dict[str, Bins]:
        """Return the bins before and after calibration."""
        metrics = self.scores.get(inputs, {})
        bins = {}
        for moment, metric in metrics.items():
            with metric.sync_context():
                bins[moment] = Bins(*metric.bins())
        return bins


def reliability_bins(task: Task, logits: Mapping[str, Float[Tensor, "N L"]], target: Tensor) -> dict[str, Bins]:
    """Return the bins of samples with logits ``before`` and ``after`` calibration."""
    probabilities = {moment: task.probabilities(values.float()) for moment, values in logits.items()}
    confidences = {moment: task.confidences(values, target) for moment, values in probabilities.items()}
    return {moment: Bins(*equal_mass_bins(*values)) for moment, values in confidences.items()}


def describe_bins(bins: Mapping[str, Bins]) -> dict[str, dict[str, list[float]]]:
    """Return bins as plain data."""
    return {moment: {name: values.tolist() for name, values in one._asdict().items()} for moment, one in bins.items()}


def read_bins(content: Any) -> dict[str, Bins]:
    """Return the bins of ``describe_bins``.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: if they are damaged.
    """
    bins = {}
    for moment, values in content.items():
        confidences, shares = (torch.tensor([float(one) for one in values[name]]) for name in ("confidences", "shares"))
        sizes = torch.tensor([int(one) for one in values["sizes"]], dtype=torch.long)
        if not len(confidences) == len(shares) == len(sizes):
            raise ValueError("the numbers of bins differ")
        bins[str(moment)] = Bins(confidences, shares, sizes)
    return bins


def describe_calibration(
    calibration: Calibration | None, measured: Mapping[str, Mapping[str, Mapping[str, float]]], inputs: str
) -> dict[str, Any]:
    """Return the calibration of a run for ``metrics.json``.

    Args:
        calibration: calibration of the model.
        measured: result of ``CalibrationReport.compute``; empty in ``fit``, which measures it while fitting.
        inputs: names of all inputs, joined by ``+``.
    """
    if calibration is None:
        content: dict[str, Any] = {"method": "none"}
    else:
        temperature = calibration.temperature
        subsets = {"+".join(names): value for names, value in calibration.temperatures}
        numbers = {"scale": calibration.scale, "shift": calibration.shift}
        content = {
            "method": calibration.method,
            **(numbers if temperature is None else {"temperature": temperature}),
            "temperatures": subsets,
            "validation_samples": calibration.samples,
            **({"reason": calibration.reason} if calibration.reason else {}),
            "changes_only_rows_that_lack_inputs": bool(calibration.reason and subsets) and inputs not in subsets,
            "before": calibration.before,
            "after": calibration.after,
        }
    if measured:
        content |= measured[inputs]
        content["by_inputs"] = {name: scores for name, scores in measured.items() if name != inputs}
    return content


def calibration_line(content: Mapping[str, Any], samples: str) -> str:
    """Return one line about the calibration of a run.

    Args:
        content: result of ``describe_calibration``.
        samples: number of samples and split, such as ``500 val``.
    """
    before, after = content.get("before") or {}, content.get("after") or {}
    method = content["method"]
    if "temperature" in content:
        method += f" {content['temperature']:.2f}"
    if subsets := len(content.get("temperatures", ())):
        method += f", {subsets} for subsets of the inputs"
    if reason := content.get("reason"):  # beside temperatures of subsets, it is in metrics.json only
        number = "1 subset" if subsets == 1 else f"{subsets} subsets"
        incomplete = content.get("changes_only_rows_that_lack_inputs")
        rows = f"rows that lack inputs ({number})" if incomplete else f"rows with {number} of the inputs"
        method = f"temperature only for {rows}, the others need none" if subsets else f"none, because {reason}"
    if not before or math.isnan(before["nll"]):
        return f"calibration: {method}"
    nll, error = f"{before['nll']:.3f}", f"{100 * before['ece']:.1f} %"
    if after and after != before:
        nll, error = f"{nll} -> {after['nll']:.3f}", f"{error} -> {100 * after['ece']:.1f} %"
    if "ece_by_chance" in (last := after or before):
        error += f", {100 * last['ece_by_chance']:.1f} % by chance"
    return f"calibration: {method}; NLL {nll}, calibration error {error} ({samples} samples)"
