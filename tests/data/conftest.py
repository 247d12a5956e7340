from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fusion_pl.processors import AudioProcessor, ImageProcessor, TextProcessor

RATE = 8000


class Length(TextProcessor):
    """Text -> its length and its first letter."""

    def __call__(self, values, training=False):
        return {"length": torch.tensor([len(value) for value in values])}


class Grey(ImageProcessor):
    """Image -> its mean grey value."""

    def __call__(self, values, training=False):
        return {"grey": torch.tensor([np.asarray(value.convert("L")).mean() for value in values])}


class Level(AudioProcessor):
    """Sound -> its mean and the training flag."""

    def __call__(self, values, training=False):
        return {
            "level": torch.stack([value.samples.mean() for value in values]),
            "training": torch.full((len(values),), training),
        }


@pytest.fixture
def processors():
    return {"text": Length(), "image": Grey(), "audio": Level()}


def write_manifest(path, records):
    names = list(dict.fromkeys(name for record in records for name in record))
    with open(path, "w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(record) + "\n" for record in records)
        else:
            writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


class Toy:
    """Twelve rows whose inputs encode the row: the length of the text, the grey value and the amplitude."""

    size = 12

    def __init__(self, folder):
        self.folder = folder
        self.records = []
        for at in range(self.size):
            Image.new("L", (8, 6), 10 * at).save(folder / f"{at} ü.png")
            soundfile.write(folder / f"{at} ü.wav", np.full(400, at / 16, dtype=np.float32), RATE, subtype="FLOAT")
            split = "test" if at >= 10 else "val" if at >= 8 else "train"
            self.records.append(
                {"id": f"s{at}", "text": "x" * (at + 1), "image": f"{at} ü.png", "audio": f"{at} ü.wav"}
                | {"label": "cat" if at % 2 else "dog", "split": split}
            )

    def write(self, name="manifest.csv"):
        return str(write_manifest(self.folder / name, self.records))

    def without(self, *columns):
        for record in self.records:
            for column in columns:
                del record[column]
        return self


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "a folder of ünïcode"
    folder.mkdir()
    return Toy(folder)
