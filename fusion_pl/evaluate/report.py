"""Write ``report.html``, ``report.md`` with its pictures, and ``results.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusion_pl.analysis.page import PICTURES, render
from fusion_pl.evaluate.section import EvaluationSection
from fusion_pl.files import atomic_write


def write_report(folder: Path, title: str, sections: Sequence[EvaluationSection]) -> None:
    """Write the files of the report into a folder, which is made if it does not exist."""
    pictures = [picture for section in sections for picture in section.pictures]
    files = {f"{PICTURES}/{picture.name}.svg": picture.image.decode() for picture in pictures}
    files["results.json"] = json.dumps({section.key: plain(section.results) for section in sections}, indent=1) + "\n"
    files["report.md"] = render("md", title, sections)
    files["report.html"] = render("html", title, sections)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)


def plain(value: Any) -> Any:
    """Return plain data with None in place of NaN and infinite numbers, which JSON lacks."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
