"""Write ``report.html``, ``report.md`` with its pictures, and ``results.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_pl.analysis.page import write_pages
from fusion_pl.evaluate.section import EvaluationSection


def write_report(folder: Path, title: str, sections: Sequence[EvaluationSection]) -> None:
    """Write the files of the report into a folder, which is made if it does not exist."""
    results = json.dumps({section.key: plain(section.results) for section in sections}, indent=1) + "\n"
    write_pages(folder, title, sections, {"results.json": results})


def plain(value: Any) -> Any:
    """Return plain data with None in place of NaN and infinite numbers, which JSON lacks."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
