"""Files beside the output in which predictions are collected, so that the command continues after it was killed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from fusion_pl.files import PARTIAL, atomic_path, sync
from fusion_pl.messages import join_names
from fusion_pl.prediction.counts import Counts
from fusion_pl.types import UserError

KEY = "key.json"


class PartialOutput:
    """Folder of what is written until the output is complete: one file of consecutive rows per process.

    Args:
        output: the output; the folder lies beside it.
        key: dictionary from a description to what the content of the files depends on.
    """

    def __init__(self, output: Path, key: Mapping[str, str]) -> None:
        self.output, self.key = output, dict(key)
        self.folder = output.with_name(f"{output.name}{PARTIAL}")

    @contextmanager
    def lock(self, overwrite: bool) -> Iterator[None]:
        """Use the folder in this process alone.

        Args:
            overwrite: whether files that were begun with another key are removed.

        Raises:
            UserError: if another process uses the folder, or its files were begun with another key.
        """
        self.folder.mkdir(exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is writing {self.output}: wait until it has finished, or give another --output"
            ) from None
        except NotImplementedError:  # a file system without locks
            pass
        try:
            self._check_key(overwrite)
            yield
        finally:
            lock.release()

    def check_unchanged(self, key: Mapping[str, str]) -> None:
        """Raise an error if another process of the command has found another key.

        Raises:
            UserError: if the checkpoint or the table was replaced after the command had begun.
        """
        if key != self.key:
            raise UserError(
                f"the {_differences(key, self.key)} changed after predictions to {self.output} had begun: restore it, "
                "and the same command continues, or pass --overwrite to begin anew"
            )

    def part(self, number: int) -> PartialFile:
        """Return the file of a process."""
        return PartialFile(self.folder / f"rows-{number}")

    def num_rows(self, num_parts: int) -> int:
        """Return the number of complete rows in the files of all processes."""
        return sum(self.part(number).rows for number in range(num_parts))

    def remove(self) -> None:
        """Remove the folder, when the output is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_key(self, overwrite: bool) -> None:
        path = self.folder / KEY
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if found != self.key:
            if isinstance(found, dict) and not overwrite and any(self.folder.glob("rows-*.json")):
                raise UserError(
                    f"{self.folder} contains predictions that were begun with another "
                    f"{_differences(found, self.key)}: repeat that command to continue, or pass "
                    "--overwrite to begin anew"
                )
            for file in self.folder.glob("rows-*"):
                file.unlink()
            with atomic_path(path) as partial:
                partial.write_text(json.dumps(self.key), encoding="utf-8")


class PartialFile:
    """File to which rows are appended; what follows its last complete rows is removed after a kill.

    Args:
        path: the file; the number of its complete rows, and of their bytes, are in a second file beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, path.with_name(f"{path.name}.json")
        self.rows, self.num_bytes, self.counts = self._read_state()

    def _read_state(self) -> tuple[int, int, Counts]:
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            if self.path.stat().st_size >= state["bytes"]:
                return state["rows"], state["bytes"], Counts(**state["counts"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # it is not begun yet, or damaged
        return 0, 0, Counts()

    @contextmanager
    def append(self, header: bytes) -> Iterator[IO[bytes]]:
        """Open the file after its last complete row, or after the header."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.truncate(self.num_bytes)
            file.seek(self.num_bytes)
            if not self.num_bytes:
                file.write(header)
            yield file

    def remove_rest(self) -> None:
        """Remove what follows the last complete row: rows of another file, after a kill while the files were joined."""
        os.truncate(self.path, self.num_bytes)

    def save(self, file: IO[bytes], rows: int, counts: Counts) -> None:
        """Store that all rows that were written are complete.

        Args:
            file: the opened file.
            rows: their number since the beginning of the file.
            counts: counts of these rows.
        """
        sync(file)
        self.rows, self.num_bytes, self.counts = rows, file.tell(), counts
        with atomic_path(self.state) as path, path.open("w", encoding="utf-8") as state:
            json.dump({"rows": rows, "bytes": self.num_bytes, "counts": asdict(counts)}, state)
            sync(state)


class StandardOutput(PartialFile):
    """The standard output, which cannot be continued."""

    def __init__(self) -> None:
        self.rows, self.counts = 0, Counts()

    @contextmanager
    def append(self, header: bytes) -> Iterator[IO[bytes]]:
        """Write the header."""
        sys.stdout.buffer.write(header)
        yield sys.stdout.buffer

    def save(self, file: IO[bytes], rows: int, counts: Counts) -> None:
        """Pass on the rows that were written."""
        file.flush()
        self.rows, self.counts = rows, counts


def _differences(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Return the descriptions of what differs between two keys, for messages."""
    return join_names(name for name in {**one, **other} if one.get(name) != other.get(name))
