"""Results that a command stores one after another, so that it continues after it was killed."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_pl.files import atomic_path

Arrays = Mapping[str, NDArray[Any]]
KEY_LENGTH = 16  # hexadecimal digits


class Parts:
    """Arrays by name, each in a file of a folder; a file is used only for the key with which it was written.

    Args:
        folder: folder of the files; ``remove`` removes it.
        key: everything that the arrays depend on, as a text.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]

    def path(self, name: str) -> Path:
        """Return the file of a part."""
        return self.folder / f"{name}-{self.key}.npz"

    def load(self, name: str) -> Arrays | None:
        """Return a part; None if it is not stored, or its file is damaged."""
        try:
            with self.path(name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def store(self, name: str, arrays: Arrays) -> None:
        """Write a part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path(name)) as path, path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # a key may have the name of an argument

    def compute(self, name: str, function: Callable[[], Arrays]) -> Arrays:
        """Return a stored part; if there is none, call a function and store its result."""
        arrays = self.load(name)
        if arrays is None:
            arrays = function()
            self.store(name, arrays)
        return arrays

    def remove(self) -> None:
        """Remove all parts, when the command has finished: later, the files of the samples may have changed."""
        for path in self.folder.glob(f"*-{'[0-9a-f]' * KEY_LENGTH}.npz"):
            path.unlink()
        with contextlib.suppress(OSError):  # there is no folder, or it has other files
            self.folder.rmdir()
