"""The effect of each part of a value, by leaving it out."""

from __future__ import annotations

from itertools import chain

import numpy as np

from fusion_pl.explain.explanation import PartEffects
from fusion_pl.explain.scores import SampleScores
from fusion_pl.processors import Processor
from fusion_pl.processors.base import Span


def occlusion(scores: SampleScores, name: str, index: int) -> PartEffects:
    r"""Return for each span s of an input how much the log-odds of a class fall without it, ``f(x) - f(x \ s)``.

    Words are deleted. Cells of an image get its mean colour, and windows of a sound become silent, together with their
    neighbours: what remains of an object that fills several cells is often enough for the decision.

    Source: "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901.

    Args:
        scores: scores of the sample.
        name: name of the input.
        index: index of the class.
    """
    processor, value = scores.predictor.processors[name], scores.sample.inputs[name]
    spans = processor.spans(value)
    if not spans:
        has_method = type(processor).spans is not Processor.spans
        missing = "the value is empty" if has_method else f"{type(processor).__name__} has no methods spans and occlude"
        return PartEffects(note=f"Effects of parts are not available: {missing}.")
    blocks = [[i] if processor.spans_are_units else _neighbours(spans, i) for i in range(len(spans))]
    values = chain([value], (processor.occlude(value, [spans[i] for i in block]) for block in blocks))
    log_odds = scores.log_odds(scores.of_values(name, values), index)
    effects = log_odds[0] - log_odds[1:]
    return PartEffects(dict(zip(spans, effects.tolist(), strict=True)))


def _neighbours(spans: list[Span], index: int) -> list[int]:
    """Return the indices of a span and of those next to it, also diagonally."""
    low, high = np.array(spans).transpose(2, 0, 1)  # [S, axes]
    tolerance = 1e-6 * (high - low)
    touches = (low <= high[index] + tolerance) & (high >= low[index] - tolerance)
    return [int(i) for i in np.flatnonzero(touches.all(1))]
