"""Files that are there whole, or not at all; and what is no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fusion_pl.types import MissingFileError, UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[TextIO]:
    """Open a text file that appears under its name only when it is complete: no reader and no full disk leaves half.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "table.csv"
        >>> with atomic_write(target) as file:
        ...     _ = file.write("a,b")
        >>> target.read_text()
        'a,b'
    """
    partial = Path(f"{path}.partial")
    try:
        # A name may hold half of a surrogate pair, which UTF-8 cannot: it is written as \\ud800.
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what cannot be read as a file: a folder, or a pipe, which would be waited for without end.

    Raises:
        MissingFileError: where there is nothing.
        UserError: where it is something else than a file.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MissingFileError(f"{path} does not exist") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'not a file'}: give the path of a file")
