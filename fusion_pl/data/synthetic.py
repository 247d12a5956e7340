"""Write demo data sets to disk, with the same rows on every machine."""

from __future__ import annotations

import csv
import json
import os
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Int16
from lightning.pytorch.utilities import rank_zero_info
from numpy.random import Generator
from PIL import Image
from rich.console import Console
from rich.progress import track

from fusion_pl.files import atomic_write
from fusion_pl.types import UserError

COLUMNS = ("id", "text", "image", "audio", "label", "split")
MANIFEST, README = "manifest.csv", "README.md"
SEED = 0


class SyntheticSample(NamedTuple):
    """One generated sample; a missing input is None, and audio has the sample rate of the data set."""

    label: str
    text: str | None
    image: Image.Image | None
    audio: Int16[np.ndarray, " N"] | None


@dataclass(frozen=True)
class SyntheticDataset:
    """Definition of a generated data set."""

    name: str  # used in the names of the hidden files in the data folder
    version: int  # version of the files: if it increases, existing folders are written again
    classes: tuple[str, ...]
    sizes: Mapping[str, int]  # samples per split
    rate: int  # sample rate of the audio, in Hz
    generate: Callable[[int, Generator], SyntheticSample]  # sample index, random generator -> sample
    prepare: Callable[[], None] = lambda: None  # called before the first sample is generated
    readme: str = ""  # Markdown page beside the manifest, with licence and credit

    @property
    def _marker_name(self) -> str:
        return f".{self.name}.json"

    @property
    def _lock_name(self) -> str:
        return f".{self.name}.lock"

    @property
    def _completion_marker(self) -> dict[str, Any]:
        return {"version": self.version, "seed": SEED, "sizes": dict(self.sizes)}

    def write(self, folder: str | Path) -> Path:
        """Write the data set, unless the folder already contains it, and return the path of its manifest.

        A missing folder is created, and an incomplete data set is written again. Several processes may call this at the
        same time; one of them writes.

        Raises:
            UserError: if the folder contains other files or cannot be written.
        """
        folder = Path(folder)
        try:
            if not self._is_complete(folder):  # checked before anything is written: a copy may be read-only
                folder.mkdir(parents=True, exist_ok=True)
                self._check_folder(folder)
                with FileLock(folder / self._lock_name):
                    if not self._is_complete(folder):
                        self._write_files(folder)
        except OSError as error:
            raise UserError(
                f"the demo data cannot be written to {folder} ({error.strerror or error}): make room for about 100 MB "
                "there, or give another folder"
            ) from error
        return folder / MANIFEST

    def _read_marker(self, folder: Path) -> Any:
        """Return the content of the marker file, which describes the data; None if it is missing or damaged."""
        try:
            return json.loads((folder / self._marker_name).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def _is_complete(self, folder: Path) -> bool:
        """Return whether the manifest and all files in its cells exist."""
        if self._read_marker(folder) != self._completion_marker or not (folder / MANIFEST).exists():
            return False
        with (folder / MANIFEST).open(newline="") as file:
            cells = {row[key] for row in csv.DictReader(file) for key in ("image", "audio") if row[key]}
        return cells <= {f"{kind}/{name}" for kind in ("images", "audio") for name in _list_folder(folder / kind)}

    def _check_folder(self, folder: Path) -> None:
        """Refuse a folder that contains files of the user or the same data set with other sizes."""
        others = sorted(set(_list_folder(folder)) - {self._lock_name})
        if others and not (folder / self._marker_name).exists():
            raise UserError(
                f"{folder} contains files that are not the demo data, such as {others[0]}: give another folder for the "
                "demo data, or move these files"
            )
        expected = dict(self.sizes)
        sizes = (self._read_marker(folder) or self._completion_marker).get("sizes")
        if sizes != expected and (folder / MANIFEST).exists():
            raise UserError(
                f"{folder} contains the demo data with sizes {sizes}, expected {expected}: give another folder, or "
                "delete this one"
            )

    def _write_files(self, folder: Path) -> None:
        """Write marker, media and manifest, in this order: the manifest exists only when the data set is complete."""
        rank_zero_info(f"Writing the demo data ({sum(self.sizes.values()):,} samples) to {folder}")
        self.prepare()
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / self._marker_name).write_text(json.dumps(self._completion_marker))
        for kind, suffix in (("images", ".png"), ("audio", ".wav")):
            (folder / kind).mkdir(exist_ok=True)
            for path in list((folder / kind).glob("[0-9]" * 5 + suffix)):
                path.unlink()
        if self.readme:
            (folder / README).write_text(self.readme, encoding="utf-8")
        with atomic_write(folder / MANIFEST) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(self._write_samples(folder))

    def _write_samples(self, folder: Path) -> Iterator[tuple[str, ...]]:
        """Write each sample's files and yield its row."""
        console = Console(stderr=True)
        splits = [split for split, size in self.sizes.items() for _ in range(size)]
        bar = track(splits, "Writing the demo data", console=console, transient=True, disable=not console.is_terminal)
        for index, split in enumerate(bar):
            label, text, image, audio = self.generate(index, np.random.default_rng([SEED, index]))
            name, image_cell, audio_cell = f"{index:05d}", "", ""
            if image is not None:
                image_cell = f"images/{name}.png"
                image.save(folder / image_cell, compress_level=1)  # noise does not compress any further
            if audio is not None:
                audio_cell = f"audio/{name}.wav"
                with wave.open(str(folder / audio_cell), "wb") as file:
                    file.setparams((1, 2, self.rate, 0, "NONE", ""))
                    file.writeframes(audio.astype("<i2").tobytes())
            yield (name, text or "", image_cell, audio_cell, label, split)


def _list_folder(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
