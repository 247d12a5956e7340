"""Demo data on disk: drawn once, sample by sample, and left alone from then on."""

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

from fusion_pl.types import UserError

COLUMNS = ("id", "text", "image", "audio", "label", "split")
MANIFEST = "manifest.csv"


class Drawing(NamedTuple):
    """One sample; an input that is missing is None.

    Attributes:
        label: its class.
        text: as typed.
        image: as seen.
        audio: as heard, 16-bit samples at the set's rate.
    """

    label: str
    text: str | None
    image: Image.Image | None
    audio: Int16[np.ndarray, " N"] | None


@dataclass(frozen=True)
class DrawnSet:
    """A set of samples that can be drawn again, byte for byte.

    Attributes:
        name: of the hidden files that mark its folder.
        version: of the drawing; raised with every change that alters a byte, so that older folders are written anew.
        rate: of the sounds, in Hz.
        draw: the sample of an index; everything random comes from the generator.
    """

    name: str
    version: int
    rate: int
    draw: Callable[[int, Generator], Drawing]

    @property
    def marker(self) -> str:
        """Name of the file that says what a folder was written from."""
        return f".{self.name}.json"

    @property
    def lock(self) -> str:
        """Name of the file that keeps other processes out while one writes."""
        return f".{self.name}.lock"

    def write(self, folder: str | Path, seed: int, sizes: Mapping[str, int]) -> Path:
        """Write the set, unless it is there already, and return its manifest.

        The same seed gives the same bytes. A set that a killed run left unfinished is written again; several processes
        may call this at once, and the first one writes.

        Args:
            folder: where to; made where it does not exist.
            seed: 0 or more.
            sizes: split -> samples.

        Returns:
            Path of ``manifest.csv`` with the columns id, text, image, audio, label and split.

        Raises:
            UserError: where the folder holds something else or cannot be written, or the seed is negative.
        """
        folder = Path(folder)
        wanted = {"version": self.version, "seed": seed, "sizes": dict(sizes)}
        if seed < 0:
            raise UserError(f"the seed of the demo data must be 0 or more, got {seed}")
        try:
            if not self._finished(folder, wanted):  # asked before anything is written: a read-only copy can be used
                folder.mkdir(parents=True, exist_ok=True)
                self._refuse_other_files(folder, wanted)
                with FileLock(folder / self.lock):
                    if not self._finished(folder, wanted):
                        self._fill(folder, wanted)
        except OSError as error:
            raise UserError(
                f"the demo data cannot be written to {folder} ({error.strerror or error}): make room for about 100 MB "
                "there, or name another folder"
            ) from error
        return folder / MANIFEST

    def _marked(self, folder: Path) -> Any:
        """Return what the folder was written from; None where the marker is absent or was cut short."""
        try:
            return json.loads((folder / self.marker).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def _finished(self, folder: Path, wanted: Mapping[str, Any]) -> bool:
        """Tell whether all of it is there: the manifest comes last, and what it names may have been deleted."""
        if self._marked(folder) != wanted or not (folder / MANIFEST).exists():
            return False
        with (folder / MANIFEST).open(newline="") as file:
            named = {row[key] for row in csv.DictReader(file) for key in ("image", "audio") if row[key]}
        return named <= {f"{kind}/{name}" for kind in ("images", "audio") for name in _names(folder / kind)}

    def _refuse_other_files(self, folder: Path, wanted: Mapping[str, Any]) -> None:
        """Keep away from what the user may have put there.

        Raises:
            UserError: where the folder holds files that are not this set, or the same set with another seed or size.
        """
        others = sorted(set(_names(folder)) - {self.lock})
        if others and not (folder / self.marker).exists():
            raise UserError(
                f"{folder} holds files that are not the demo data, such as {others[0]}: name another folder for "
                "it, or move them"
            )
        found = self._marked(folder)
        same = found is None or all(found.get(key) == wanted[key] for key in ("seed", "sizes"))
        if not same and (folder / MANIFEST).exists():
            raise UserError(
                f"{folder} holds the demo data with seed {found['seed']} and sizes {found['sizes']}, but seed "
                f"{wanted['seed']} and sizes {wanted['sizes']} are asked for: name another folder, or delete this one"
            )

    def _fill(self, folder: Path, wanted: Mapping[str, Any]) -> None:
        """Write marker, media, manifest in this order: a folder with a marker is ours, with a manifest it is whole."""
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / self.marker).write_text(json.dumps(wanted))
        for kind, pattern in (("images", r"\d{5}\.png"), ("audio", r"\d{5}\.wav")):
            (folder / kind).mkdir(exist_ok=True)
            for name in filter(re.compile(pattern).fullmatch, _names(folder / kind)):
                (folder / kind / name).unlink()
        with (folder / f"{MANIFEST}.part").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            table.writerows(self._rows(folder, wanted["seed"], wanted["sizes"]))
        (folder / f"{MANIFEST}.part").replace(folder / MANIFEST)

    def _rows(self, folder: Path, seed: int, sizes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
        """Write each sample's files and yield its row."""
        console = Console(stderr=True)
        splits = [split for split, size in sizes.items() for _ in range(size)]
        bar = track(splits, "Writing the demo data", console=console, transient=True, disable=not console.is_terminal)
        for index, split in enumerate(bar):
            label, text, image, audio = self.draw(index, np.random.default_rng([seed, index]))
            name = f"{index:05d}"
            if image is not None:
                image.save(folder / f"images/{name}.png", compress_level=1)  # noise: more costs time and saves nothing
            if audio is not None:
                with wave.open(str(folder / f"audio/{name}.wav"), "wb") as file:
                    file.setparams((1, 2, self.rate, 0, "NONE", ""))
                    file.writeframes(audio.astype("<i2").tobytes())
            image_cell = "" if image is None else f"images/{name}.png"
            audio_cell = "" if audio is None else f"audio/{name}.wav"
            yield (name, text or "", image_cell, audio_cell, label, split)


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
