"""Load damaged files through the check of a table (fusion-pl data check); the cases are those of benchmarks/fuzz.py."""

from __future__ import annotations

import random
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fusion_pl.data import ManifestData
from fusion_pl.data.rows import InputColumn
from fusion_pl.data_check.check import check_table
from fusion_pl.data_check.cleaned import write_cleaned
from fusion_pl.data_check.report import plain_findings
from fusion_pl.data_check.values import content_bytes, inspect_cell
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.types import UserError


def cut(content: bytes, rng: random.Random) -> bytes:
    """Cut off the last 10 to 90 % of a file, as an interrupted copy does."""
    return content[: int(len(content) * rng.uniform(0.1, 0.9))]


def check_file(path: Path, is_image: bool) -> int:
    """Return the hash of the content that the check keeps.

    Raises:
        UserError: if the check finds an error, or an image that was cut off.
        AssertionError: if the check finds no error, but training cannot open the file, or opens another content.
    """
    processor = TinyImage().processor if is_image else TinyAudio().processor
    inspection = inspect_cell(InputColumn("input", "column", processor, []), str(path))
    for flaw in (inspection.error, *(flaw for flaw in inspection.warnings if "cut off" in flaw.kind)):
        if flaw is not None:
            raise UserError(flaw.text)
    value = processor.open(str(path))  # the originals are shorter than what the encoder reads
    opened = int.from_bytes(blake2b(content_bytes(value), digest_size=8).digest(), "little")
    assert opened == inspection.content, "training opens another content than the check"
    return inspection.content


def check_damaged_table(path: Path) -> Any:
    """Return the findings in a table.

    Raises:
        UserError: if the table cannot be read.
        AssertionError: if the check finds no error, but training refuses the table, or if the cleaned table has errors.
    """
    checked = check_table(_data(path))
    if not checked.errors:
        data = _data(path)
        data.setup("fit")
        assert all(samples[index].inputs for samples in [data.samples("train")] for index in range(len(samples)))
    cleaned = path.with_name(f"{path.stem}-cleaned{path.suffix}")
    if write_cleaned(checked, cleaned)[0] > 0:
        rows = [finding for finding in check_table(_data(cleaned)).errors if finding.row is not None]
        assert not rows, f"the cleaned table has the error {rows[0]}"
    return list(plain_findings(checked))


def _data(path: Path) -> ManifestData:
    arguments: Any = {"inputs": {"text": "text"}, "num_workers": 0, "val_fraction": 0.2, "test_fraction": 0.2}
    data = ManifestData(str(path), classes=["a", "b"], **arguments)
    data.processors = {"text": TinyText(dim=8).processor}
    return data
