"""Write the intact files that benchmarks/fuzz.py damages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.feather
import pyarrow.parquet
import soundfile
import torch
from PIL import Image

from fusion_pl.encoders import TextEncoder, TinyText
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from tests.encoders.models import save_text

IMAGE_SUFFIXES, AUDIO_SUFFIXES = ("png", "jpg", "gif", "webp", "tiff"), ("wav", "flac", "mp3", "ogg")
IMAGES = [f"picture.{suffix}" for suffix in IMAGE_SUFFIXES]
SOUNDS = [f"sound.{suffix}" for suffix in AUDIO_SUFFIXES]
TABLES = [f"table.{suffix}" for suffix in ("csv", "jsonl", "parquet", "arrow")]


def write_originals(folder: Path) -> None:
    """Write one intact file of each kind."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (16, 24, 3), dtype=np.uint8)
    tone = (np.sin(np.arange(4000) / 5) / 2).astype(np.float32)
    for suffix in IMAGE_SUFFIXES:
        Image.fromarray(pixels).save(folder / f"picture.{suffix}")
    for suffix in AUDIO_SUFFIXES:
        soundfile.write(folder / f"sound.{suffix}", tone, 8000)
    rows = [{"id": f"r{n}", "text": f"word {n}", "label": "ab"[n % 2], "split": "train"} for n in range(20)]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "table.parquet")
    pyarrow.feather.write_feather(table, folder / "table.arrow", compression="uncompressed")
    torch.manual_seed(0)
    _save(TinyText(dim=8), folder / "small.ckpt")
    save_text("bert", folder / "bert")
    _save(TextEncoder(str(folder / "bert"), max_tokens=16), folder / "bert.ckpt")


def _save(encoder: Any, path: Path) -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(FusionClassifier({"text": encoder}, lambda d, c: Mean(d, c, dim=8), ["a", "b"]))
    trainer.save_checkpoint(path)
