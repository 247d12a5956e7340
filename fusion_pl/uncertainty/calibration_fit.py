"""Fit a calibration on the validation samples, and use it only if it helps samples that it was not fitted on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fusion_pl.tasks import Task
from fusion_pl.uncertainty.calibration import Calibration, Method, Outputs, calibration_scores

# With 50 samples, 10 classes and 75 % accuracy, the standard error of log T is 0.3; it falls with the square root.
MIN_SAMPLES = 50
NUM_FOLDS = 5


def fit_calibration(task: Task, outputs: Outputs, inputs: Sequence[str], method: Method) -> Calibration:
    r"""Fit a calibration that minimises the negative log-likelihood (NLL) of validation samples, in float64.

    The targets are smoothed by 1 / (n + 1), as if one more sample had a random class: if all n predictions are right,
    the share of errors among new samples is still not 0, and the temperature must not approach 0.

    A fit is used only if it helps samples that it was not fitted on. The n samples are divided into five random folds.
    :math:`d_i = \ell_i(z) - \ell_i(c_{-f(i)}(z))` is by how much the NLL of sample i falls with the calibration
    :math:`c_{-f(i)}` that is fitted on the four folds without i. The calibration of all samples is used if the mean of
    d exceeds one standard error, :math:`\bar d > s_d / \sqrt n`; otherwise the logits stay as they are.

    Samples with only some of their inputs have a temperature of this subset, if there are at least 50 of them and if
    by the same rule it is better for them than the common calibration. Otherwise they have the common one.

    Source: "On Calibration of Modern Neural Networks", arXiv:1706.04599; "Probabilistic Outputs for Support Vector
    Machines", Platt 1999, for the smoothing (there 1 / (n_c + 2) of class c). Deviations: smoothing; the fit is not
    always used; positive scales.

    Args:
        task: task that has the likelihood.
        outputs: outputs of the model.
        inputs: names of the inputs, in the order of the columns of ``outputs.present``.
        method: ``temperature`` or ``vector``.
    """
    whole = outputs.select(outputs.complete)
    samples = len(whole.logits)
    if samples < MIN_SAMPLES:
        reason = f"only {samples} validation samples, and a calibration needs at least {MIN_SAMPLES}"
        return Calibration(method, samples=samples, reason=reason)
    if not outputs.logits.isfinite().all():
        return Calibration(method, samples=samples, reason="some logits of the validation are NaN or infinite")
    size = whole.logits.shape[-1] if method == "vector" else 1
    common, reason = minimise_nll(task, whole, size), ""
    gains = _cross_fitted_gains(task, whole, whole.logits.double(), common)
    if not _is_positive(gains):
        reason = _explain_gain(float(gains.mean()), _standard_error(gains))
        common = torch.ones(1).double(), torch.zeros(1).double()
    temperatures = _fit_subsets(task, outputs, inputs, common)
    fitted = Calibration(method, common[0].tolist(), common[1].tolist(), temperatures, samples, reason=reason)
    present = dict(zip(inputs, whole.present.unbind(1), strict=True))
    measured = {
        "before": calibration_scores(task, whole.logits, whole.target),
        "after": calibration_scores(task, fitted.apply(whole.logits, present), whole.target),
    }
    return Calibration(**vars(fitted) | measured)


def _fit_subsets(
    task: Task, outputs: Outputs, inputs: Sequence[str], common: tuple[Tensor, Tensor]
) -> list[tuple[list[str], float]]:
    """Return the temperatures of subsets of the inputs that are better than the common calibration."""
    temperatures = []
    for pattern, count in zip(*torch.unique(outputs.present, dim=0, return_counts=True), strict=True):
        if count < MIN_SAMPLES or not pattern.any():
            continue
        rows = outputs.select((outputs.present == pattern).all(1))
        fitted = minimise_nll(task, rows, 1)
        if _is_positive(_cross_fitted_gains(task, rows, rows.logits * common[0] + common[1], fitted)):
            names = [name for name, is_present in zip(inputs, pattern.tolist(), strict=True) if is_present]
            temperatures.append((names, 1 / fitted[0].item()))
    return temperatures


def _cross_fitted_gains(
    task: Task, outputs: Outputs, logits: Float[Tensor, "N L"], fitted: tuple[Tensor, Tensor]
) -> Float[Tensor, " N"]:
    """Return by how much the NLL of each sample falls with the calibration that is fitted without its fold.

    Args:
        task: task that has the likelihood.
        outputs: outputs of the model.
        logits: their logits without this calibration.
        fitted: scales and shifts that were fitted on all samples, from which the search starts.
    """
    count = len(outputs.logits)
    folds = torch.randperm(count, generator=torch.Generator().manual_seed(0)) % NUM_FOLDS
    calibrated = torch.empty_like(logits)
    for fold in range(NUM_FOLDS):
        scale, shift = minimise_nll(task, outputs.select(folds != fold), len(fitted[0]), fitted)
        calibrated[folds == fold] = outputs.logits[folds == fold] * scale + shift
    return task.losses(logits, outputs.target) - task.losses(calibrated, outputs.target)


def _is_positive(gains: Float[Tensor, " N"]) -> bool:
    """Return whether the mean of gains exceeds its standard error."""
    return bool(gains.mean() > _standard_error(gains))


def _explain_gain(mean: float, error: float) -> str:
    """Return the reason why a calibration whose mean gain does not exceed its standard error is not used."""
    nll = "the negative log-likelihood of held-out validation samples"
    if mean <= 0:
        return f"it would raise {nll} by {-mean:.4f}"
    return f"it would lower {nll} by only {mean:.4f}, and the standard error is {error:.4f}"


def _standard_error(gains: Float[Tensor, " N"]) -> float:
    return float(gains.std() / math.sqrt(len(gains)))


def minimise_nll(
    task: Task, outputs: Outputs, size: int, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """Return the scales, and the shifts, that minimise the smoothed NLL; the shift of a single scale is 0."""
    logits, smoothing = outputs.logits.double(), 1 / (len(outputs.logits) + 1)
    scale, shift = start or (torch.ones(size).double(), torch.zeros(size).double())
    log_scale, shift = scale.log().requires_grad_(), shift.clone().requires_grad_(size > 1)
    parameters = [log_scale, shift] if size > 1 else [log_scale]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total, count = task.sum_losses(logits * log_scale.exp() + shift, outputs.target, smoothing)
        loss = total / max(int(count), 1)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return log_scale.detach().exp(), shift.detach()
