"""A section of the page, with its numbers for ``results.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from fusion_pl.analysis.page import Picture, Section
from fusion_pl.analysis.plots import to_svg

ALPHA = 0.05  # probability of at least one false warning in a family of tests
EMPTY_CELL = "–"


@dataclass(frozen=True)
class EvaluationSection(Section):
    """A section of the page about a checkpoint.

    Attributes:
        key: key of the section in ``results.json``.
        results: numbers of the section, as plain data.
    """

    key: str = ""
    results: dict[str, Any] = field(default_factory=dict)


def make_pictures(*figures: tuple[str, str, Figure | None]) -> list[Picture]:
    """Return pictures from name, caption and figure; without those whose figure is None."""
    return [Picture(name, caption, to_svg(figure)) for name, caption, figure in figures if figure is not None]


def percent(value: float, digits: int = 1) -> str:
    """Return a share in percent, without the sign.

    Example:
        >>> percent(0.125)
        '12.5'
    """
    return EMPTY_CELL if math.isnan(value) else f"{100 * value:.{digits}f}"


def interval_text(interval: tuple[float, float] | None, scale: float = 100.0, digits: int = 1) -> str:
    """Return the ends of an interval.

    Example:
        >>> interval_text((0.25, 0.5))
        '25.0 to 50.0'
    """
    return EMPTY_CELL if interval is None else " to ".join(f"{scale * end:.{digits}f}" for end in interval)


def p_value_text(value: float | None) -> str:
    """Return a p-value with three digits.

    Example:
        >>> p_value_text(0.0002), p_value_text(0.25)
        ('< 0.001', '0.250')
    """
    return EMPTY_CELL if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
