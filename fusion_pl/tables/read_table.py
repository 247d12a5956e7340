"""Read a manifest of any supported format."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_pl.files import looked_for
from fusion_pl.messages import error_reason
from fusion_pl.tables.arrow_file import MAX_MEMORY_BYTES, MappedFile, open_arrow, simplify, write_temporary
from fusion_pl.tables.table import Table, check_column_names, raise_problems
from fusion_pl.tables.text_table import DELIMITERS, JSON_LINES, read_text_table
from fusion_pl.types import MissingFileError, UserError

ARROW = (".arrow", ".feather")
PARQUET = ".parquet"
BATCH_BYTES, MAX_BATCH_ROWS = 2**26, 2**16  # of a Parquet file, which are read at once
SHARD_MANIFEST, SHARD_INDEX = "manifest.json", "index.arrow"  # of a folder that ``fusion-pl data shard`` wrote
FORMATS = "a .csv, .tsv, .jsonl, .ndjson, .parquet, .arrow or .feather file, or a folder of .parquet files"
INDEX_COLUMN = re.compile(r"(__index_level_\d+__)?")  # index of a saved data frame, which has no name


def read_table(path: str) -> Table:
    """Read a manifest: a CSV, TSV, JSON Lines, Parquet, Arrow or Feather file, or a folder of Parquet files.

    In CSV and TSV every empty cell is missing. In the other formats ``""`` is an empty text; null and NaN are missing.

    Raises:
        UserError: if the file is missing, has another suffix, is damaged, or has no header or no rows.
    """
    suffix = os.path.splitext(path)[1].lower()
    if all(os.path.isfile(os.path.join(path, name)) for name in (SHARD_MANIFEST, SHARD_INDEX)):
        raise UserError(f"{path} contains shards: read them with --data fusion_pl.data.ShardData --data.shards {path}")
    if os.path.isdir(path):
        table = _read_parquet(path, table_files(path))
    elif suffix not in (*DELIMITERS, *JSON_LINES, *ARROW, PARQUET):
        raise UserError(f"{path} ends in {suffix!r}: a manifest is {FORMATS}")
    elif not os.path.isfile(path):
        raise MissingFileError(f"the manifest {path} does not exist{looked_for(path)}: give the path of a table")
    elif suffix == PARQUET:
        table = _read_parquet(path, [Path(path)])
    else:
        table = _read_arrow(path) if suffix in ARROW else read_text_table(path)
    if not len(table):
        raise_problems(path, table.problems)
        raise UserError(f"{path} has no rows: a manifest needs one row per sample")
    return table


def table_files(path: str) -> list[Path]:
    """Return the files of a manifest; an empty list if the manifest does not exist."""
    if path and os.path.isdir(path):
        return sorted(file for file in Path(path).rglob(f"*{PARQUET}") if file.is_file())  # Spark writes folders, too
    return [Path(path)] if os.path.isfile(path) else []


def _read_arrow(path: str) -> Table:
    import pyarrow as pa

    try:
        file = MappedFile.at(path)
        data, is_mapped = open_arrow(path)
        data.validate(full=True)  # damaged offsets would end the process
        return _build_table(path, data, (file,) if is_mapped else ())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, "an Arrow file", error) from error


def _read_parquet(path: str, files: Sequence[Path]) -> Table:
    """Read files one after the other; a column that some files lack is missing in their rows."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    if not files:
        raise UserError(f"the folder {path} contains no {PARQUET} file: a manifest is {FORMATS}")
    schemas, size = [], 0
    for file in files:
        try:
            with ParquetFile(file) as content:
                schema = content.schema_arrow.remove_metadata()
                check_column_names(str(file), schema.names)
                schemas.append(simplify(schema.empty_table(), schema.names).schema)
                size += sum(content.metadata.row_group(at).total_byte_size for at in range(content.num_row_groups))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(str(file), "a Parquet file", error) from error
    try:
        empty = pa.unify_schemas(schemas, promote_options="permissive").empty_table()
    except pa.ArrowException as error:
        raise UserError(
            f"the files in {path} have columns of different types ({error_reason(error)}): unify them"
        ) from error
    tables = _parquet_batches(files, empty)
    if size < MAX_MEMORY_BYTES:
        return _build_table(path, pa.concat_tables([*tables, empty]))
    temporary = write_temporary(empty.schema, tables)
    return _build_table(path, open_arrow(temporary.path)[0], (temporary,))


def _parquet_batches(files: Sequence[Path], empty: Any) -> Iterator[Any]:
    """Yield tables with the columns of ``empty``."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    for file in files:
        try:
            with ParquetFile(file, memory_map=True) as content:
                for batch in content.iter_batches(_batch_rows(content.metadata)):
                    part = simplify(pa.Table.from_batches([batch]), batch.schema.names)
                    yield pa.concat_tables([empty, part], promote_options="permissive").cast(empty.schema)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(str(file), "a Parquet file", error) from error


def _batch_rows(metadata: Any) -> int:
    """Return a number of rows of about 64 MiB; Arrow cannot read more than 2 GiB of a column of media at once."""
    num_bytes = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return int(min(MAX_BATCH_ROWS, max(1, metadata.num_rows * BATCH_BYTES // max(1, num_bytes))))


def _build_table(path: str, data: Any, files: tuple[MappedFile, ...] = ()) -> Table:
    check_column_names(path, data.column_names)
    names = [name for name in data.column_names if not INDEX_COLUMN.fullmatch(name)]
    return Table(path, simplify(data, names), np.arange(1, len(data) + 1), files=files)


def _damaged(path: str, kind: str, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as {kind} ({error_reason(error)}): write it again")
