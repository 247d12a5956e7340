"""What the check of a table finds, and how it is named in messages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Kind of a finding; the value is its title in the report. An error stops a run, or makes its metrics wrong."""

    TABLE = "problem in the table"
    EMPTY_FILE = "empty file"
    TRUNCATED = "truncated file"
    UNREADABLE = "file or value that cannot be read"
    ABSURD = "absurd size or rate"
    LEAK = "same sample in two splits"
    JOINED = "labels that look like several names"
    CONFLICT = "same sample with two labels"
    DUPLICATE = "same sample twice"
    SHARED = "same value in two splits"
    NEAR_DUPLICATE = "nearly the same image"
    CONSTANT = "image of one colour"
    PARTLY_GREY = "image that was probably cut off"
    SILENT = "silent sound"
    BLANK = "text without words"
    PATHS = "texts that are paths"
    LOST_CHARACTERS = "text with lost characters"
    WRONG_ENDING = "file name with the ending of another format"
    UNUSUAL = "unusual size, length or rate"
    CUT_OFF = "longer than the encoder reads"
    MISSING = "missing inputs"
    MISSPELT = "class that may be a typing error"
    IMBALANCE = "imbalanced classes"


ERRORS = {Kind.TABLE, Kind.EMPTY_FILE, Kind.TRUNCATED, Kind.UNREADABLE, Kind.ABSURD, Kind.LEAK}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or may be wrong.

    Attributes:
        kind: kind of the finding.
        text: what is wrong, and what to do.
        row: index of the row in the table; None if the finding concerns the whole table.
        column: column of the cell; None if the finding concerns the whole row.
        other: index of the row with the same content, for duplicates.
    """

    kind: Kind
    text: str
    row: int | None = None
    column: str | None = None
    other: int | None = None

    @property
    def is_error(self) -> bool:
        """Whether the finding stops a run or makes its metrics wrong."""
        return self.kind in ERRORS
