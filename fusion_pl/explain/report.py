"""Write explanations as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion_pl.explain.explanation import Explanation
from fusion_pl.explain.views import View, make_view
from fusion_pl.files import atomic_write
from fusion_pl.html import render_page
from fusion_pl.types import Sample


@dataclass(frozen=True)
class Section:
    """What the page shows of one sample.

    Attributes:
        explanation: explanation of the sample.
        scale: largest absolute Shapley value, for the lengths of the bars.
        views: name of the input -> its value with the effects of its parts.
    """

    explanation: Explanation
    scale: float
    views: dict[str, View]


def make_section(explanation: Explanation, sample: Sample) -> Section:
    """Return what the page shows of a sample, with pictures and sounds as data URLs."""
    values = [abs(effect.shapley) for effect in explanation.inputs.values()]
    effects = [abs(value) for effect in explanation.inputs.values() for value in effect.parts.spans.values()]
    strongest = max(effects, default=0.0) or 1.0
    views = {
        name: make_view(sample.inputs[name], effect.parts, strongest) for name, effect in explanation.inputs.items()
    }
    return Section(explanation, max(values, default=0.0) or 1.0, views)


def write_page(path: Path, manifest: str, sections: Sequence[Section], total: int, method: str) -> None:
    """Write the page.

    Args:
        path: HTML file.
        manifest: path of the table.
        sections: one per explained sample.
        total: number of rows of the table.
        method: name of the method of the parts' effects.
    """
    template = Path(__file__).with_name("explanation.html.jinja")
    page = render_page(template, manifest=manifest, sections=sections, total=total, method=method)
    with atomic_write(path) as file:
        file.write(page)
