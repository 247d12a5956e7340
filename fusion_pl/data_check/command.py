"""``fusion-pl data check``, which opens every row and file of a table and writes a report."""

from __future__ import annotations

import functools
import itertools
import os
import shlex
import sys
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from rich import get_console

from fusion_pl.cli.data_cli import DataCLI
from fusion_pl.cli.parsing import refuse_repeated_options
from fusion_pl.cli.run import ParserOnly, build_cli, build_parser
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.shard_data import ShardData
from fusion_pl.data_check.check import CheckedTable, check_table
from fusion_pl.data_check.cleaned import FORMATS, check_columns, write_cleaned
from fusion_pl.data_check.report import write_report
from fusion_pl.files import check_output_folder
from fusion_pl.messages import escape_unprintable
from fusion_pl.training.console import configure_logging
from fusion_pl.training.interrupt import StopSignals
from fusion_pl.types import UserError

MAX_SHOWN = 10  # findings per kind on the console


class CheckCLI(DataCLI):
    """Command line of ``fusion-pl data check``."""

    def add_options(self, parser: LightningArgumentParser) -> None:
        """Add the options of the check."""
        parser.add_argument("--output", type=str, required=True, help="Folder of report.html and report.json.")
        parser.add_argument(
            "--cleaned",
            type=str | None,
            help="File for a copy of the table without its errors. Cells with an error are emptied, other rows with an "
            "error left out; the suffix selects the format, such as .csv or .parquet.",
        )

    def check_options(self) -> None:
        """Raise an error for files that cannot be written."""
        _check_paths(Path(self.options.output), self.options.cleaned and Path(self.options.cleaned))

    def run_command(self, data: ManifestData) -> None:
        """Check the data."""
        if (path := self.options.cleaned) and isinstance(data, ShardData):
            raise UserError(f"--cleaned {path}: shards cannot be cleaned; clean the table and write them again")
        if path:
            check_columns(data.table, Path(path))
        self.checked = check_table(data)


class _CheckParser(ParserOnly, CheckCLI):
    pass


@functools.cache
def check_parser() -> LightningArgumentParser:
    """Return the parser of ``fusion-pl data check``."""
    return build_parser(_CheckParser)


@StopSignals().handle_signals()
def check_command(arguments: list[str]) -> int:
    """Run ``fusion-pl data check`` with the arguments that follow it; return 1 if there are errors, else 0."""
    refuse_repeated_options(arguments)
    configure_logging()
    sys.argv[1:] = ["fit", *arguments]
    cli = build_cli(CheckCLI)
    checked, output, cleaned = cli.checked, Path(cli.config.fit.output), cli.config.fit.cleaned
    write_report(checked, output)
    lines = _summary(checked)
    lines.append(f"Report: {output / 'report.html'}, {output / 'report.json'}")
    if cleaned:
        lines += _write_cleaned(checked, cleaned)
    for line in lines:
        get_console().print(escape_unprintable(line), highlight=False, markup=False, soft_wrap=True)
    return 1 if checked.errors else 0


def _write_cleaned(checked: CheckedTable, path: str) -> list[str]:
    """Write the table without its errors; return the lines that say so."""
    rows, cells = write_cleaned(checked, Path(path))
    if not rows:
        return [f"Cleaned: no row is left, so {path} is not written"]
    options, root = ["--data.manifest", path], checked.data.root
    if type(checked.data) is not ManifestData:  # the other classes have no manifest
        options = ["--data", "fusion_pl.data.ManifestData", *options]
    if os.path.realpath(root) != os.path.dirname(os.path.realpath(path)):
        options += ["--data.root", root]
    cleaned = f"Cleaned: {rows:,} of {len(checked.data.table):,} rows are left, {_count(cells, 'cell')} emptied"
    return [cleaned, f"Train with it: {shlex.join(options)}"]


def _summary(checked: CheckedTable) -> list[str]:
    """Return the number of findings per kind, with the first ten of each."""
    errors, total = len(checked.errors), len(checked.findings)
    values = sum(len(check.rows) for check in checked.inputs)
    found = f"{_count(errors, 'error')}, {_count(total - errors, 'warning')}"
    lines = [f"{_count(len(checked.data.table), 'row')}, {_count(values, 'value')} opened: {found}"]
    for kind, group in itertools.groupby(checked.findings, key=lambda finding: finding.kind):
        findings = list(group)
        severity = "error" if findings[0].is_error else "warning"
        texts = [checked.describe(finding) for finding in findings[:MAX_SHOWN]]
        if len(findings) > MAX_SHOWN:
            texts.append(f"… and {len(findings) - MAX_SHOWN} more")
        lines.append(f"  {severity}: {kind} ({len(findings)}): {texts[0]}")
        lines += [f"    {text}" for text in texts[1:]]
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _check_paths(output: Path, cleaned: Path | None) -> None:
    """Raise an error, before anything is opened, for files that cannot be written."""
    check_output_folder(output)
    if cleaned is None:
        return
    if cleaned.suffix.lower() not in FORMATS:
        raise UserError(f"--cleaned {cleaned} ends in {cleaned.suffix!r}, expected one of {', '.join(FORMATS)}")
    if not cleaned.absolute().parent.is_dir():
        raise UserError(f"--cleaned {cleaned}: the folder {cleaned.parent} does not exist: create it")
    if cleaned.exists():
        raise UserError(f"--cleaned {cleaned} exists: remove it, or give another name")
