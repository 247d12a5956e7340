"""Generated demo data sets on disk: written once, reproducible byte for byte."""

from __future__ import annotations

import csv
import json
import os
import re
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Int16
from numpy.random import Generator
from PIL import Image
from rich.console import Console
from rich.progress import track

from fusion_pl.files import atomic_write
from fusion_pl.types import UserError

COLUMNS = ("id", "text", "image", "audio", "label", "split")
MANIFEST = "manifest.csv"
SEED = 0


class SyntheticSample(NamedTuple):
    """One sample; a missing input is None.

    Attributes:
        label: the class.
        text: the text.
        image: the image.
        audio: 16-bit samples at the rate of the data set.
    """

    label: str
    text: str | None
    image: Image.Image | None
    audio: Int16[np.ndarray, " N"] | None


@dataclass(frozen=True)
class SyntheticDataset:
    """A generated data set.

    Attributes:
        name: part of the names of the hidden files that mark its folder.
        version: of the generator; increase it with every change that alters a byte, so that older folders are updated.
        classes: names of the classes.
        sizes: split -> number of samples.
        rate: of the sound, in Hz.
        generate: sample index and random generator -> sample.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    sizes: Mapping[str, int]
    rate: int
    generate: Callable[[int, Generator], SyntheticSample]

    @property
    def marker(self) -> str:
        """Name of the file that records how a folder was generated."""
        return f".{self.name}.json"

    @property
    def lock(self) -> str:
        """Name of the lock file; one process at a time writes."""
        return f".{self.name}.lock"

    @property
    def recipe(self) -> dict[str, Any]:
        """Content of the marker."""
        return {"version": self.version, "seed": SEED, "sizes": dict(self.sizes)}

    def write(self, folder: str | Path) -> Path:
        """Write the data set, unless the folder holds it already, and return the path of its manifest.

        An incomplete data set is completed. Several processes may call this at once: the first one writes.

        Args:
            folder: destination; created if it does not exist.

        Returns:
            Path of ``manifest.csv`` with the columns id, text, image, audio, label and split.

        Raises:
            UserError: if the folder holds other files or cannot be written.
        """
        folder = Path(folder)
        try:
            if not self._is_complete(folder):  # checked before anything is written: a copy may be read-only
                folder.mkdir(parents=True, exist_ok=True)
                self._check_folder(folder)
                with FileLock(folder / self.lock):
                    if not self._is_complete(folder):
                        self._write_files(folder)
        except OSError as error:
            raise UserError(
                f"the demo data cannot be written to {folder} ({error.strerror or error}): make room for about 100 MB "
                "there, or name another folder"
            ) from error
        return folder / MANIFEST

    def _read_marker(self, folder: Path) -> Any:
        """Return how the folder was generated; None if the marker is missing or damaged."""
        try:
            return json.loads((folder / self.marker).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def _is_complete(self, folder: Path) -> bool:
        """Return whether the manifest and all files that it names exist."""
        if self._read_marker(folder) != self.recipe or not (folder / MANIFEST).exists():
            return False
        with (folder / MANIFEST).open(newline="") as file:
            cells = {row[key] for row in csv.DictReader(file) for key in ("image", "audio") if row[key]}
        return cells <= {f"{kind}/{name}" for kind in ("images", "audio") for name in _file_names(folder / kind)}

    def _check_folder(self, folder: Path) -> None:
        """Refuse a folder with files of the user, or with the same data set in other sizes."""
        others = sorted(set(_file_names(folder)) - {self.lock})
        if others and not (folder / self.marker).exists():
            raise UserError(
                f"{folder} holds files that are not the demo data, such as {others[0]}: name another folder for "
                "it, or move them"
            )
        sizes = (self._read_marker(folder) or self.recipe).get("sizes")
        if sizes != self.recipe["sizes"] and (folder / MANIFEST).exists():
            raise UserError(
                f"{folder} holds the demo data with sizes {sizes}, expected {self.recipe['sizes']}: name another "
                "folder, or delete this one"
            )

    def _write_files(self, folder: Path) -> None:
        """Write marker, media and manifest, in this order: the manifest exists only when the data set is complete."""
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / self.marker).write_text(json.dumps(self.recipe))
        for kind, pattern in (("images", r"\d{5}\.png"), ("audio", r"\d{5}\.wav")):
            (folder / kind).mkdir(exist_ok=True)
            for name in filter(re.compile(pattern).fullmatch, _file_names(folder / kind)):
                (folder / kind / name).unlink()
        with atomic_write(folder / MANIFEST) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(self._rows(folder))

    def _rows(self, folder: Path) -> Iterator[tuple[str, ...]]:
        """Write each sample's files and yield its row."""
        console = Console(stderr=True)
        splits = [split for split, size in self.sizes.items() for _ in range(size)]
        bar = track(splits, "Writing the demo data", console=console, transient=True, disable=not console.is_terminal)
        for index, split in enumerate(bar):
            label, text, image, audio = self.generate(index, np.random.default_rng([SEED, index]))
            name = f"{index:05d}"
            if image is not None:
                image.save(folder / f"images/{name}.png", compress_level=1)  # noise does not compress any further
            if audio is not None:
                with wave.open(str(folder / f"audio/{name}.wav"), "wb") as file:
                    file.setparams((1, 2, self.rate, 0, "NONE", ""))
                    file.writeframes(audio.astype("<i2").tobytes())
            image_cell = "" if image is None else f"images/{name}.png"
            audio_cell = "" if audio is None else f"audio/{name}.wav"
            yield (name, text or "", image_cell, audio_cell, label, split)


def _file_names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
