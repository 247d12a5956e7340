"""Read and write Arrow files (Feather is another name of them); uncompressed files are memory-mapped."""

from __future__ import annotations

import atexit
import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from tempfile import gettempdir, mkstemp
from typing import Any, NamedTuple

from fusion_pl.messages import error_reason
from fusion_pl.types import UserError

MAX_MEMORY_BYTES = 2**24  # a larger table in another format is memory-mapped from a temporary file


class MappedFile(NamedTuple):
    """Arrow file that this process has read, and that other processes memory-map."""

    path: str
    num_bytes: int
    modified: int  # nanoseconds since 1970

    @classmethod
    def at(cls, path: str) -> MappedFile:
        """Return the file as it is now; call it before the file is read."""
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)


def check_unchanged(files: Iterable[MappedFile]) -> None:
    """Check that files are those that were read.

    Raises:
        UserError: if one of them was changed, replaced or removed.
    """
    for file in files:
        with suppress(OSError):
            if MappedFile.at(file.path) == file:
                continue
        raise UserError(f"{file.path} was changed since it was read: start again")


def open_arrow(source: str | bytes) -> tuple[Any, bool]:
    """Open an Arrow file or stream, given by its path or content.

    Returns:
        A ``pyarrow.Table``, and whether all columns lie in a memory map, as those of an uncompressed file do.

    Raises:
        pyarrow.ArrowException: if the content is damaged.
    """
    import pyarrow as pa

    file = pa.BufferReader(source) if isinstance(source, bytes) else pa.memory_map(source)
    whole = file.read_buffer(file.size())
    file.seek(0)
    open_content = pa.ipc.open_file if bytes(whole[:6]) == b"ARROW1" else pa.ipc.open_stream
    data = open_content(file).read_all()
    chunks = (chunk for column in data.columns for chunk in column.chunks)
    buffers = (buffer for chunk in chunks for buffer in chunk.buffers() if buffer)
    return data, all(whole.address <= buffer.address < whole.address + whole.size for buffer in buffers)


def open_columns(sources: Sequence[str | bytes], columns: Sequence[str]) -> Any:
    """Return columns of Arrow files, one after the other, with plain types; those that a file lacks are null there.

    Raises:
        pyarrow.ArrowException: if a file is damaged, or if a column has different types that cannot be unified.
    """
    import pyarrow as pa

    tables = [open_arrow(source)[0] for source in sources]
    tables = [simplify(table, [name for name in columns if name in table.column_names]) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive").select(list(columns))


def write_arrow(target: str | io.BytesIO, schema: Any, tables: Iterable[Any]) -> None:
    """Write tables with the given schema to an uncompressed Arrow file."""
    import pyarrow as pa

    with pa.ipc.new_file(target, schema) as writer:
        for table in tables:
            writer.write_table(table)


def write_temporary(schema: Any, tables: Iterable[Any]) -> MappedFile:
    """Write tables to a temporary Arrow file, which is removed when this process exits.

    Raises:
        UserError: if the file cannot be written.
    """
    import pyarrow as pa

    try:
        descriptor, path = mkstemp(prefix="fusion-pl-", suffix=".arrow")
        os.close(descriptor)
        atexit.register(_remove_if_owner, path, os.getpid())
        write_arrow(path, schema, tables)
        pa.default_memory_pool().release_unused()
        return MappedFile.at(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error_reason(error)
        raise UserError(
            f"a temporary copy of the table cannot be written to {gettempdir()} ({reason}): free space there, or set "
            "TMPDIR to another folder"
        ) from error


def _remove_if_owner(path: str, owner: int) -> None:
    """Remove a file, except in a forked child of its owner."""
    if os.getpid() == owner:
        with suppress(OSError):
            os.remove(path)


def simplify(data: Any, columns: Sequence[str]) -> Any:
    """Return the given columns of a table, with plain types in place of those that encode another type.

    These are dictionary, extension, run-end encoded and view types, also in the fields of a struct.
    """
    import pyarrow as pa

    return pa.table([_simplify_column(data[name]) for name in columns], names=list(columns))


def _simplify_column(column: Any) -> Any:
    import pyarrow as pa

    return pa.chunked_array([_simplify_array(chunk) for chunk in column.chunks or [pa.nulls(0, column.type)]])


def _simplify_array(array: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _simplify_array(array.storage)
    if types.is_dictionary(kind):
        return _simplify_array(array.dictionary).take(array.indices)
    if types.is_run_end_encoded(kind):
        return _simplify_array(pc.run_end_decode(array))
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return array.cast(pa.large_string() if types.is_string_view(kind) else pa.large_binary())
    if types.is_struct(kind):
        parts = [_simplify_array(array.field(at)) for at in range(kind.num_fields)]
        fields = [field.with_type(part.type) for field, part in zip(kind, parts, strict=True)]
        if fields != list(kind):
            return pa.StructArray.from_arrays(parts, fields=fields, mask=array.is_null())
    return array
