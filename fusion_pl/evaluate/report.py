"""Write ``report.html``, ``report.md`` with its pictures, and ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fusion_pl.analysis.page import write_pages
from fusion_pl.evaluate.section import EvaluationSection
from fusion_pl.plain_data import replace_non_finite


def write_report(folder: Path, title: str, sections: Sequence[EvaluationSection]) -> None:
    """Write the files of the report into a folder, which is made if it does not exist."""
    results = json.dumps({section.key: replace_non_finite(section.results) for section in sections}, indent=1) + "\n"
    write_pages(folder, title, sections, {"results.json": results})
