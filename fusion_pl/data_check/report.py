"""Write the findings as JSON, complete, and as one self-contained HTML file with pictures and sounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from fusion_pl import __version__
from fusion_pl.data_check.check import CheckedTable
from fusion_pl.data_check.findings import Finding
from fusion_pl.files import atomic_write
from fusion_pl.html import Preview, preview, render_page
from fusion_pl.processors.base import OPEN_ERRORS
from fusion_pl.tables.splits import NO_SPLIT, SPLITS

MAX_SHOWN = 24  # findings per kind in the HTML file


@dataclass(frozen=True)
class Group:
    """Findings of one kind; only the first ones have a text and previews."""

    title: str
    is_error: bool
    count: int
    shown: list[tuple[str, list[Preview]]]


def write_report(checked: CheckedTable, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into a folder, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "report.json") as file:
        _write_json(checked, file)
    page = render_page(
        Path(__file__).with_name("report.html.jinja"),
        manifest=checked.data.manifest,
        errors=len(checked.errors),
        warnings=len(checked.findings) - len(checked.errors),
        groups=_groups(checked),
        statistics=checked.statistics,
        splits=SPLITS,
        max_shown=MAX_SHOWN,
    )
    with atomic_write(folder / "report.html") as file:
        file.write(page)


def _write_json(checked: CheckedTable, file: TextIO) -> None:
    """Write all findings and numbers; the findings, of which there may be very many, one by one."""
    errors = len(checked.errors)
    summary = {
        "fusion_pl": __version__,
        "manifest": checked.data.manifest,
        "errors": errors,
        "warnings": len(checked.findings) - errors,
        "columns": {check.column.input: check.column.column for check in checked.inputs},
        **asdict(checked.statistics),
    }
    file.write(json.dumps(summary, indent=1).removesuffix("\n}"))
    file.write(',\n "findings": [')
    for index, line in enumerate(plain_findings(checked)):
        file.write(f"{',' * (index > 0)}\n  {json.dumps(line)}")
    file.write("\n ]\n}\n")


def plain_findings(checked: CheckedTable) -> Iterator[dict[str, Any]]:
    """Yield the findings as plain data."""
    table = checked.data.table
    for finding in checked.findings:
        yield {
            "severity": "error" if finding.is_error else "warning",
            "kind": finding.kind.name.lower(),
            "row": None if finding.row is None else int(table.row_numbers[finding.row]),
            "id": None if finding.row is None else table.sample_id(finding.row),
            "split": _split(checked, finding.row),
            "column": finding.column,
            "other_row": None if finding.other is None else int(table.row_numbers[finding.other]),
            "text": finding.text,
        }


def _split(checked: CheckedTable, row: int | None) -> str | None:
    return None if row is None or checked.splits[row] == NO_SPLIT else SPLITS[checked.splits[row]]


def _groups(checked: CheckedTable) -> list[Group]:
    groups = []
    for kind, members in groupby(checked.findings, lambda finding: finding.kind):
        findings = list(members)
        shown = [(checked.describe(finding), _previews(checked, finding)) for finding in findings[:MAX_SHOWN]]
        groups.append(Group(str(kind), findings[0].is_error, len(findings), shown))
    return groups


def _previews(checked: CheckedTable, finding: Finding) -> list[Preview]:
    """Return the previews of the cells that a finding concerns: of a row without a column, those of all inputs."""
    rows = [row for row in (finding.row, finding.other) if row is not None]
    checks = [check for check in checked.inputs if finding.column in (None, check.column.column)]
    previews = []
    for row in rows:
        number = checked.data.table.row_numbers[row]
        for check in checks:
            if check.codes[row] < 0 or not check.content[check.codes[row]]:
                continue
            try:
                value = check.column.open(check.column.cells[row])
            except OPEN_ERRORS:  # the file was changed in the meantime
                continue
            caption = ", ".join(part for part in (f"row {number}", _split(checked, row), check.column.input) if part)
            previews.append(preview(value, caption))
    return previews
