"""The effect of each part of a value, by integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion_pl.data.collate import process_values
from fusion_pl.explain.explanation import PartEffects
from fusion_pl.explain.scores import MAX_ROWS, SampleScores
from fusion_pl.processors.base import Span
from fusion_pl.types import Encoded

INTERVALS, POINTS, DIVISIONS = 16, 4, 4  # first intervals of the path, points in each, and parts of a divided one
MAX_POINTS = 4096  # number of points after which no interval is divided
SMALL = 1 / 16  # error of an interval that is not divided, as a share of the tolerance
TOLERANCE = 1e-3  # of the sum of the effects: in log-odds, and relative to a difference above 1


class DifferentiableInput(NamedTuple):
    """An input as a tensor at which gradients can be computed.

    Attributes:
        x: value, (1, T, D) for embeddings of tokens, (1, K, S, S) for pixels.
        baseline: value without content, of the same shape.
        log_odds: function from S values of this shape to the log-odds of the explained class.
        positions: part of the opened value of each position, see ``Processor.positions``.
    """

    x: Tensor
    baseline: Tensor
    log_odds: Callable[[Tensor], Tensor]
    positions: list[NDArray[np.float64]]


def integrated_gradients(scores: SampleScores, name: str, index: int) -> PartEffects:
    r"""Return the integrated gradients of the log-odds of a class, summed over each span of an input.

    ``(x - b) ∘ ∫ ∇f(b + α (x - b)) dα`` for α from 0 to 1, which sum to ``f(x) - f(b)``. x are the embeddings of the
    tokens of a text, and b zeros; or the pixels of an image, and b the mean colour.

    Source: "Axiomatic Attribution for Deep Networks", arXiv:1703.01365; computed by captum.

    Args:
        scores: scores of the sample.
        name: name of the input.
        index: index of the class.
    """
    found = differentiable_input(scores, name, index)
    processor, value = scores.predictor.processors[name], scores.sample.inputs[name]
    if found is None:
        parts = f"{type(scores.encoder(name)).__name__} with {type(processor).__name__}"
        return PartEffects(note=f"Integrated gradients are not available for {parts}: use --method occlusion.")
    # Without cuDNN, whose recurrent layers have gradients in training only, and whose convolutions have other digits.
    with torch.backends.cudnn.flags(enabled=False):
        attributions, difference, error = integrate(found.log_odds, found.x, found.baseline)
    if not error <= TOLERANCE * max(1.0, abs(difference)):
        return PartEffects(
            note=f"Integrated gradients did not converge: with {MAX_POINTS} steps, their sum differs by {error:.3g} "
            f"from the change of the log-odds, {difference:+.3g}; use --method occlusion."
        )
    effects = effects_of_spans(attributions, found.positions, processor.spans(value))
    remainder = float(attributions.cpu().double().sum()) - sum(effects.values())
    return PartEffects(effects, remainder=remainder, error=error)


def differentiable_input(scores: SampleScores, name: str, index: int) -> DifferentiableInput | None:
    """Return an input as embeddings of its tokens or as pixels; None if its encoder or processor does not support it.

    Args:
        scores: scores of the sample.
        name: name of the input.
        index: index of the class.
    """
    processor, value = scores.predictor.processors[name], scores.sample.inputs[name]
    source, positions = scores.encoder(name).differentiable_input(), processor.positions(value)
    if source is None or not positions:
        return None
    arguments = process_values(processor, name, [value], [scores.sample.id])
    assert isinstance(arguments, dict)
    arguments = {key: tensor.to(scores.predictor.device) for key, tensor in arguments.items()}
    x, encode = _differentiable(scores.encoder(name), source, arguments)
    baseline = torch.zeros_like(x) if x.dim() == 3 else x.mean((-2, -1), keepdim=True).expand_as(x)

    def log_odds(rows: Tensor) -> Tensor:
        return scores.log_odds(scores.fuse_with(name, encode(rows)), index).to(rows)

    return DifferentiableInput(x, baseline, log_odds, positions)


def _differentiable(
    encoder: nn.Module, source: str | nn.Module, arguments: dict[str, Tensor]
) -> tuple[Tensor, Callable[[Tensor], Encoded]]:
    """Return the tensor at which gradients are taken, and a function from rows of it to the encoder's output."""

    def run(replacement: dict[str, Tensor], rows: int) -> Encoded:
        repeated = {key: tensor.expand(rows, *tensor.shape[1:]) for key, tensor in arguments.items()}
        encoded: Encoded = encoder(**repeated | replacement)
        return encoded

    if isinstance(source, str):
        return arguments[source].float(), lambda rows: run({source: rows}, len(rows))
    outputs: list[Tensor] = []
    handle = source.register_forward_hook(lambda *hooked: outputs.append(hooked[2]))
    with torch.no_grad(), handle:
        run({}, 1)

    def encode(rows: Tensor) -> Encoded:
        with source.register_forward_hook(lambda *_: rows):
            return run({}, len(rows))

    return outputs[0].clone(), encode


def integrate(
    log_odds: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor
) -> tuple[Float[Tensor, "*K"], float, float]:
    """Integrate gradients on the straight path from a baseline to a value.

    The integral over an interval of the path sums to the change of the log-odds between its ends, so that the error of
    its quadrature is known. Only intervals with a large error are divided, until all errors add up to the tolerance:
    near the mean colour of an image, whose features are normalised, gradients change much faster than elsewhere.

    Returns:
        The attributions, the change of the log-odds, and the error of the sum of the attributions.
    """
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(log_odds)
    with torch.no_grad():
        difference = (log_odds(x) - log_odds(baseline)).item()
    tolerance = TOLERANCE * max(1.0, abs(difference))
    starts, width, points = torch.arange(INTERVALS, device=x.device) / INTERVALS, 1 / INTERVALS, 0
    total = torch.zeros_like(x)
    while True:
        rest, divided = torch.zeros_like(x), []
        for some in torch.split(starts, MAX_ROWS // POINTS):
            low, high = (
                baseline + edge.view(-1, *[1] * (x.dim() - 1)) * (x - baseline) for edge in (some, some + width)
            )
            attributions, errors = method.attribute(
                high, low, n_steps=POINTS, method="gausslegendre", return_convergence_delta=True
            )
            large = errors.abs() > SMALL * tolerance
            total, rest = total + attributions[~large].sum(0), rest + attributions[large].sum(0)
            divided.append(some[large])
        points += POINTS * len(starts)
        error = abs((total + rest).detach().cpu().double().sum().item() - difference)
        if error <= tolerance or points >= MAX_POINTS or not any(map(len, divided)):
            return (total + rest).detach()[0], difference, error
        width /= DIVISIONS
        starts = (torch.cat(divided).unsqueeze(1) + width * torch.arange(DIVISIONS, device=x.device)).flatten()


def effects_of_spans(
    attributions: Float[Tensor, "*K"], positions: Sequence[NDArray[np.float64]], spans: Sequence[Span]
) -> dict[Span, float]:
    """Sum attributions over the channels and over each span.

    Args:
        attributions: (T, D) for embeddings of tokens, (K, S, S) for pixels.
        positions: part of the value of each position; one that lies in several spans counts in each by its common part.
        spans: parts of the value.
    """
    sums = attributions.sum(-1 if attributions.dim() == 2 else 0).cpu().double().numpy()
    effects = {}
    for span in spans:
        total = sums
        for axis, (low, high) in zip(positions, span, strict=True):
            common = np.minimum(axis[:, 1], high) - np.maximum(axis[:, 0], low)
            lengths = np.maximum(axis[:, 1] - axis[:, 0], 1e-9)
            total = np.tensordot(np.clip(common, 0, None) / lengths, total, axes=1)
        effects[span] = float(total)
    return effects
