"""Fixtures: a checkpoint of three pretrained encoders, and a small one."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer

from fusion_pl.encoders import AudioEncoder, ImageEncoder, TextEncoder, TinyText
from fusion_pl.fusion import CrossAttention, Mean
from fusion_pl.module import FusionClassifier

from ..encoders.models import save_audio, save_image, save_text


def write(model, path):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A checkpoint of three pretrained encoders, and a small one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for save, name, where in ((save_text, "bert", "t"), (save_image, "vit", "i"), (save_audio, "whisper", "a")):
        save(name, folder / where)
    torch.manual_seed(0)
    encoders = {
        "text": TextEncoder(str(folder / "t"), max_tokens=16),
        "image": ImageEncoder(str(folder / "i")),
        "audio": AudioEncoder(str(folder / "a")),
    }
    write(FusionClassifier(encoders, lambda dims, count: CrossAttention(dims, count, dim=16), ["a", "b"]), folder / "m")
    write(FusionClassifier({"text": TinyText(dim=8)}, lambda d, c: Mean(d, c, dim=8), ["a", "b"]), folder / "small")
    return folder


@pytest.fixture(scope="session")
def full(originals):
    return torch.load(originals / "m", weights_only=True)


@pytest.fixture(scope="session")
def small(originals):
    return torch.load(originals / "small", weights_only=True)
