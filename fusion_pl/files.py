"""Atomic writes of files, and what messages and caches need to know about files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, TextIO

from fusion_pl.types import MissingFileError, UserError

PARTIAL = ".partial"


def cache_folder() -> Path:
    """Return the folder of all caches: $FUSION_PL_CACHE, or fusion-pl in $XDG_CACHE_HOME or ~/.cache."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("FUSION_PL_CACHE") or os.path.join(parent, "fusion-pl")).expanduser()


@contextmanager
def atomic_path(path: str | Path, concurrent: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file in the folder of ``path``; rename the file to ``path`` if the block succeeds.

    Args:
        path: destination file.
        concurrent: whether several threads, processes or machines may write the same file at once.
    """
    partial = Path(f"{path}.{token_hex(8)}{PARTIAL}" if concurrent else f"{path}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[TextIO]:
    """Open a text file that replaces ``path`` only if the block succeeds.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> with atomic_write(path) as file:
        ...     _ = file.write("a,b")
        >>> path.read_text()
        'a,b'
    """
    # UTF-8 cannot encode a lone surrogate, which a file name may contain; it is written as \\ud800.
    with (
        atomic_path(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the content of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(file: IO[Any]) -> None:
    """Write what a file contains to the disk, so that it survives a crash of the machine."""
    file.flush()
    os.fsync(file.fileno())


def looked_for(path: str | os.PathLike[str]) -> str:
    """Return `` (looked for …)`` with the absolute path of a relative one, for messages; empty if it is absolute."""
    return "" if os.path.isabs(path) else f" (looked for {os.path.abspath(path)})"


def check_regular_file(path: str | os.PathLike[str]) -> None:
    """Raise an error if a path is not a regular file; reading a pipe would block.

    Raises:
        MissingFileError: if the path does not exist.
        UserError: if the path is a folder, a pipe or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a null byte in the name
        raise MissingFileError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a file'}: give the path of a file")


def check_output_folder(output: Path) -> None:
    """Raise a ``UserError`` if the folder of ``--output`` cannot be made, because it is, or lies below, a file."""
    if any(path.is_file() for path in (output, *output.parents)):
        raise UserError(f"--output {output} is, or lies below, a file: give a folder")
