"""Formats of the output. Chunks of rows become bytes that are appended to a file, and files are joined at the end."""

from __future__ import annotations

import csv
import io
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fusion_pl.files import sync
from fusion_pl.prediction.columns import OutputColumns
from fusion_pl.types import Prediction

ROW_GROUP_ROWS = 2**14  # of a Parquet file; with embeddings of 1,024 numbers they take 64 MiB


class Format(ABC):
    """How predictions are written; a subclass per suffix.

    Args:
        columns: columns of the output.
    """

    def __init__(self, columns: OutputColumns) -> None:
        self.columns = columns

    def header(self) -> bytes:
        """Return the bytes before the first row."""
        return b""

    @abstractmethod
    def encode(self, start: int, predictions: Sequence[Prediction]) -> bytes:
        """Return the bytes of consecutive rows.

        Args:
            start: index of the first row in the table.
            predictions: predictions of the rows.
        """

    def join(self, parts: Sequence[Path], output: Path) -> None:
        """Write the output from files with consecutive rows, of which the first has the header; they are consumed."""
        with parts[0].open("ab") as file:
            for part in parts[1:]:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, 2**20)
            sync(file)
        parts[0].replace(output)


class Csv(Format):
    """One row per sample; a set is one cell with ``|`` between the classes, an embedding is a JSON list."""

    def header(self) -> bytes:
        """Return the names of the columns."""
        first, *others = self.columns.kinds
        return self._encode([[first, *self.columns.copied_names.values(), *others]])

    def encode(self, start: int, predictions: Sequence[Prediction]) -> bytes:
        """Return the rows."""
        rows, copied_rows = [], self.columns.copied_rows(start, len(predictions))
        for prediction, copied in zip(predictions, copied_rows, strict=True):
            first, *others = map(self._format, self.columns.kinds, self.columns.values(prediction))
            rows.append([first, *copied, *others])
        return self._encode(rows)

    def _format(self, name: str, value: Any) -> Any:
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, bool):
            return str(value).lower()
        if name == "embedding":
            return None if value is None else json.dumps([float(f"{number:.6g}") for number in value])
        if name in self.columns.decision:
            return self.columns.predictor.task.format_decision(value)
        return "|".join(value) if isinstance(value, list) else value

    @staticmethod
    def _encode(rows: Sequence[Sequence[Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        return _to_utf8(text.getvalue())


class JsonLines(Format):
    """One JSON object per sample; the copied columns are under ``columns``."""

    def encode(self, start: int, predictions: Sequence[Prediction]) -> bytes:
        """Return the lines."""
        lines, copied_rows = [], self.columns.copied_rows(start, len(predictions))
        for prediction, copied in zip(predictions, copied_rows, strict=True):
            values = prediction_values(self.columns, prediction)
            if copied:
                values["columns"] = dict(zip(self.columns.copied, copied, strict=True))
            lines.append(json.dumps(values, ensure_ascii=False) + "\n")
        return _to_utf8("".join(lines))


class Parquet(Format):
    """One row per sample, with lists for sets and embeddings; copied columns keep their types.

    A Parquet file cannot be continued, so the rows are first written as an Arrow stream, without compression.
    """

    def __init__(self, columns: OutputColumns) -> None:
        super().__init__(columns)
        import pyarrow as pa

        types = {
            "text": pa.string(),
            "number": pa.float64(),
            "flag": pa.bool_(),
            "texts": pa.list_(pa.string()),
            "numbers": pa.list_(pa.float32()),
        }
        (first, kind), *others = columns.kinds.items()
        fields = [pa.field(first, types[kind])]
        for name, renamed in columns.copied_names.items():
            assert columns.table is not None
            fields.append(pa.field(renamed, columns.table.data[name].type))
        self.schema = pa.schema([*fields, *(pa.field(name, types[kind]) for name, kind in others)])

    def header(self) -> bytes:
        """Return the schema."""
        content: bytes = self.schema.serialize().to_pybytes()
        return content

    def encode(self, start: int, predictions: Sequence[Prediction]) -> bytes:
        """Return the rows as Arrow record batches."""
        import pyarrow as pa

        first, *others = zip(*map(self.columns.values, predictions), strict=True)
        copied = []
        for name in self.columns.copied:
            assert self.columns.table is not None
            copied.append(self.columns.table.data[name].slice(start, len(predictions)))
        cells = [[_printable(cell) for cell in first], *copied, *others[:-1], [_printable(cell) for cell in others[-1]]]
        arrays = [
            column if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
            for column, field in zip(cells, self.schema, strict=True)
        ]
        batches = pa.table(arrays, self.schema).combine_chunks().to_batches()
        return b"".join(batch.serialize().to_pybytes() for batch in batches)

    def join(self, parts: Sequence[Path], output: Path) -> None:
        """Convert the Arrow streams."""
        from pyarrow.parquet import ParquetWriter

        joined = parts[0].with_name("joined")
        with joined.open("wb") as file:
            with ParquetWriter(file, self.schema) as writer:
                for table in self._read_groups(parts):
                    writer.write_table(table)
            sync(file)
        joined.replace(output)

    def _read_groups(self, parts: Sequence[Path]) -> Iterator[Any]:
        """Yield the rows of the Arrow streams in tables of ``ROW_GROUP_ROWS`` rows, each in one piece of memory.

        The bytes of the output therefore depend on the rows alone: the sizes of the record batches of the streams
        depend on the time that the model took.
        """
        import pyarrow as pa

        rows = self.schema.empty_table()
        for batch in self._read_batches(parts):
            rows = pa.concat_tables([rows, pa.Table.from_batches([batch])])
            while len(rows) >= ROW_GROUP_ROWS:
                yield rows.slice(0, ROW_GROUP_ROWS).combine_chunks()
                rows = rows.slice(ROW_GROUP_ROWS)
        if len(rows):
            yield rows.combine_chunks()

    def _read_batches(self, parts: Sequence[Path]) -> Iterator[Any]:
        """Yield the record batches of the Arrow streams, of which only the first one has the schema."""
        import pyarrow as pa

        for part in parts:
            with pa.OSFile(str(part)) as source, suppress(EOFError):
                while True:
                    message = pa.ipc.read_message(source)
                    if message.type == "record batch":
                        yield pa.ipc.read_record_batch(message, self.schema)


FORMATS: dict[str, type[Format]] = {".csv": Csv, ".jsonl": JsonLines, ".parquet": Parquet}


def prediction_values(columns: OutputColumns, prediction: Prediction) -> dict[str, Any]:
    """Return the fields of a prediction that the task and the options of the command fill."""
    optional = {"label", "probability", "labels", "set", "abstained", "outlier_p_values", "embedding"}
    unused = optional.difference(columns.decision, columns.fields)
    return {name: value for name, value in vars(prediction).items() if name not in unused}


def _printable(text: str | None) -> str | None:
    return None if text is None else _to_utf8(text).decode()


def _to_utf8(text: str) -> bytes:
    r"""Encode a text; a lone surrogate, which a file name may contain, is written as \\ud800."""
    return text.encode("utf-8", "backslashreplace")
