"""A folder of pictures and sounds with one fault of each kind, and its table."""

from __future__ import annotations

import csv

import numpy as np
import soundfile
import yaml
from PIL import Image

SPLITS = ("train", "train", "val", "test")
SIZE = 40


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_sound(path, samples):
    soundfile.write(path, samples, 8000, format=path.suffix[1:])


def write_intact(folder):
    """Forty rows in four tens: two of train, one of val, one of test; all of them differ."""
    rng, rows = np.random.default_rng(0), []
    for row in range(SIZE):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{row}.jpg", quality=90)
        write_sound(folder / f"{row}.wav", 0.3 * np.sin(2 * np.pi * (200 + 10 * row) * np.arange(1600) / 8000))
        record = {"id": f"s{row}", "text": f"this is text number {row}", "image": f"{row}.jpg", "audio": f"{row}.wav"}
        rows.append(record | {"label": "ab"[row % 2], "split": SPLITS[row // 10]})
    return rows


def damage(folder, rows):
    """Write one fault into each of the first twenty rows."""
    for number, change in enumerate((lambda raw: raw[:-900], lambda raw: b"", lambda raw: b"no image")):
        path = folder / f"{number}.jpg"
        path.write_bytes(change(path.read_bytes()))
    Image.new("RGB", (50, 50)).save(folder / "3.jpg")
    Image.open(folder / "4.jpg").save(folder / "4.jpg", format="PNG")
    Image.open(folder / "25.jpg").resize((90, 60)).save(folder / "5.jpg", quality=60)
    raw = (folder / "6.jpg").read_bytes()
    (folder / "6.jpg").write_bytes(raw[: len(raw) * 2 // 3] + b"\xff\xd9")  # the marker of the end
    write_sound(folder / "7.wav", np.zeros(3000))
    (folder / "8.wav").write_bytes((folder / "8.wav").read_bytes()[:-800])
    samples = soundfile.read(folder / "9.wav")[0]
    soundfile.write(folder / "9.wav", samples, 8000, format="FLAC")
    rows[10]["text"], rows[11]["text"], rows[12]["text"] = "   ", "caf\ufffd", "long " * 60
    rows[13]["audio"], rows[14]["image"], rows[15]["label"] = "none.wav", "../outside.png", ""
    for target, source in ((16, 36), (17, 19), (18, 28)):  # in test, in train with the same label, in val
        rows[target] |= {name: rows[source][name] for name in ("text", "image", "audio")}
    rows[16]["text"] = "  THIS is text\tnumber 36 "
    rows[18] |= {"label": "b"}
    rows[31]["image"] = rows[21]["image"]


CONFIG = {
    "model": {
        "encoders": {
            name: {"class_path": f"fusion_pl.encoders.Tiny{name.title()}", "init_args": {"dim": 8}}
            for name in ("text", "image", "audio")
        },
        "fusion": {"class_path": "fusion_pl.fusion.Concat", "init_args": {"dim": 8}},
    },
    "data": {
        "class_path": "fusion_pl.data.ManifestData",
        "init_args": {"manifest": "table.csv", "classes": ["a", "b"], "num_workers": 0},
    },
}


def write_folder(folder, is_damaged):
    rows = write_intact(folder)
    if is_damaged:
        damage(folder, rows)
    write_table(folder / "table.csv", rows)
    content = CONFIG["data"] | {"init_args": CONFIG["data"]["init_args"] | {"manifest": str(folder / "table.csv")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"data": content}))
