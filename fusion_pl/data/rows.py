"""The samples of one split: opened when the loader's worker asks for them, and not before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.utils.data import Dataset

from fusion_pl.data.audio import Crop
from fusion_pl.data.media import load_input
from fusion_pl.types import Kind, Sample, UserError

OnBadFile = Literal["raise", "missing"]


class LoadError(UserError):
    """A user's mistake that came to light in a loader's worker.

    The loader raises it again in the main process with the worker's traceback as its text; this takes the sentence back
    out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


@dataclass(frozen=True)
class Column:
    """One input of all rows.

    Attributes:
        input: its name.
        name: of the manifest's column.
        kind: how a cell is opened.
        cells: text or resolved path of each row; None where it is missing.
        augment: applied to the opened value.
        crop: which part of a sound is read; None = all of it.
    """

    input: str
    name: str
    kind: Kind
    cells: Sequence[str | None]
    augment: nn.Module | None = None
    crop: Crop | None = None


@dataclass(frozen=True)
class Rows(Dataset[Sample]):
    """Rows of a manifest as samples. A row is never replaced by another one, nor a file by made-up content.

    Attributes:
        source: path of the manifest, for messages.
        columns: the inputs.
        ids: one a row.
        targets: index of the class of each row, or None.
        numbers: of the rows, for messages.
        on_bad_file: ``raise``, or treat an input that cannot be read as ``missing``.
        keep_bad_rows: give back a row that cannot be used as a sample without inputs, whose one sentence in
            ``bad_files`` says why, instead of raising; for prediction.
        faults: row -> why it cannot be used, known before its files are opened; only with ``keep_bad_rows``.
    """

    source: str
    columns: Sequence[Column]
    ids: Sequence[str]
    targets: Sequence[int | None]
    numbers: Sequence[int]
    on_bad_file: OnBadFile = "raise"
    keep_bad_rows: bool = False
    faults: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Open one row.

        Raises:
            LoadError: where a file cannot be read or no input is left, unless ``on_bad_file`` or ``keep_bad_rows``
                allow it.
        """
        try:
            return self._open(index)
        except LoadError as error:
            if not self.keep_bad_rows:
                raise
            return Sample(self.ids[index], {}, self.targets[index], (str(error),))

    def _augmented(self, column: Column, value: Any, index: int) -> Any:
        assert column.augment is not None
        try:
            return column.augment(value)
        except (ValueError, TypeError, RuntimeError) as error:  # somebody else's transform, with the user's arguments
            name = type(column.augment).__name__
            raise LoadError(
                f"data.augment: {name} failed on input {column.input!r} of {self.source}, row {self.numbers[index]} "
                f"({error}): check its arguments"
            ) from error

    def _open(self, index: int) -> Sample:
        if index in self.faults:
            raise LoadError(f"{self.source}, row {self.numbers[index]}: {self.faults[index]}")
        inputs: dict[str, Any] = {}
        bad: tuple[str, ...] = ()
        for column in self.columns:
            cell = column.cells[index]
            if cell is None:
                continue
            try:
                value = load_input(column.kind, cell, column.crop)
            except UserError as error:
                sentence = f"{self.source}, row {self.numbers[index]}, column {column.name!r}: {error}"
                if self.on_bad_file == "raise":
                    raise LoadError(sentence) from error
                bad += (sentence,)
                continue
            inputs[column.input] = value if column.augment is None else self._augmented(column, value, index)
        if not inputs:
            why = "; ".join(bad) or f"{self.source}, row {self.numbers[index]}: all its inputs are empty"
            raise LoadError(f"{why}: no input of the sample {self.ids[index]!r} is left, so remove the row")
        return Sample(self.ids[index], inputs, self.targets[index], bad)
