"""The effect of each part of a value, by integrated gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion_pl.data.collate import process_values
from fusion_pl.explain.explanation import PartEffects
from fusion_pl.explain.scores import MAX_ROWS, SampleScores
from fusion_pl.processors.base import Span
from fusion_pl.types import Encoded, UserError

STEPS = (64, 512, 4096)  # numbers of points on the path, until the effects add up
TOLERANCE = 1e-3  # of the sum of the effects: in log-odds, and relative to a difference above 1


def check_captum() -> None:
    """Raise a ``UserError`` if captum is not installed."""
    try:
        import captum.attr  # noqa: F401
    except ImportError as error:
        raise UserError("integrated gradients need captum: pip install 'fusion-pl[explain]'") from error


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
    processor, value = scores.predictor.processors[name], scores.sample.inputs[name]
    source, positions = scores.encoder(name).differentiable_input(), processor.positions(value)
    if source is None or not positions:
        parts = f"{type(scores.encoder(name)).__name__} with {type(processor).__name__}"
        return PartEffects(note=f"Integrated gradients are not available for {parts}: use --method occlusion.")
    arguments = process_values(processor, name, [value], [scores.sample.id])
    assert isinstance(arguments, dict)
    arguments = {key: tensor.to(scores.predictor.device) for key, tensor in arguments.items()}
    x, encode = _differentiable(scores.encoder(name), source, arguments)
    baseline = torch.zeros_like(x) if x.dim() == 3 else x.mean((-2, -1), keepdim=True).expand_as(x)

    def log_odds(rows: Tensor) -> Tensor:
        return scores.log_odds(scores.fuse_with(name, encode(rows)), index)

    attributions, difference, error = _integrate(log_odds, x, baseline)
    if not error <= TOLERANCE * max(1.0, abs(difference)):
        return PartEffects(
            note=f"Integrated gradients did not converge: with {STEPS[-1]} steps, their sum differs by {error:.3g} "
            f"from the change of the log-odds, {difference:+.3g}; use --method occlusion."
        )
    sums = attributions.sum(-1) if x.dim() == 3 else attributions.sum(0)
    effects = _sum_over_spans(sums.double().cpu().numpy(), positions, processor.spans(value))
    remainder = float(attributions.double().sum()) - sum(effects.values())
    return PartEffects(effects, remainder=remainder, error=error)


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


def _integrate(
    log_odds: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor
) -> tuple[Float[Tensor, "*K"], float, float]:
    """Return the attributions, the change of the log-odds, and the error of the sum of the attributions."""
    from captum.attr import IntegratedGradients

    with torch.no_grad():
        difference = (log_odds(x) - log_odds(baseline)).item()
    attributions, error = torch.zeros_like(x), float("inf")
    for steps in STEPS:
        attributions = IntegratedGradients(log_odds).attribute(
            x, baseline, n_steps=steps, method="riemann_middle", internal_batch_size=MAX_ROWS
        )
        error = abs(attributions.detach().double().sum().item() - difference)
        if error <= TOLERANCE * max(1.0, abs(difference)):
            break
    return attributions.detach()[0], difference, error


def _sum_over_spans(
    attributions: NDArray[np.float64], positions: Sequence[NDArray[np.float64]], spans: Sequence[Span]
) -> dict[Span, float]:
    """Sum attributions over each span; a position that lies in several spans counts in each by its common part."""
    effects = {}
    for span in spans:
        total = attributions
        for axis, (low, high) in zip(positions, span, strict=True):
            common = np.minimum(axis[:, 1], high) - np.maximum(axis[:, 0], low)
            lengths = np.maximum(axis[:, 1] - axis[:, 0], 1e-9)
            total = np.tensordot(np.clip(common, 0, None) / lengths, total, axes=1)
        effects[span] = float(total)
    return effects
