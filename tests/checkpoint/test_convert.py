"""Checkpoints of format 1, with other names of modules and arguments."""

from __future__ import annotations

import pytest
import torch

from fusion_pl.checkpoint.convert import RENAMED_MODULES
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import CrossAttention, Evidential
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.training import Loss

from .conftest import write

BEFORE = {new: old for old, new in RENAMED_MODULES.items()}
SAMPLE = {"depth": "a title", "body": "and what follows"}  # an input may be called what a module was called


def with_old_names(path):
    """Rewrite a checkpoint in format 1."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {
        ".".join(BEFORE.get(part, part) for part in key.split(".")): tensor
        for key, tensor in checkpoint["state_dict"].items()
    }
    args = checkpoint["fusion_pl"]["fusion"]["init_args"]
    if "kl_weight" in args:
        args["doubt"] = args.pop("kl_weight")
    checkpoint["fusion_pl"]["format"] = 1
    torch.save(checkpoint, path)
    return set(checkpoint["state_dict"])


@pytest.mark.parametrize(
    ("head", "old"),
    [
        (lambda dims, count: CrossAttention(dims, count, dim=16), "fusion.layers.0.attention.join_heads.weight"),
        (lambda dims, count: Evidential(dims, count, kl_weight=0.3), "fusion.decide.project.depth.norm.weight"),
    ],
)
def test_a_checkpoint_of_format_1_predicts_the_same(tmp_path, head, old):
    torch.manual_seed(0)
    encoders = {"depth": TinyText(dim=8, combine="attention"), "body": TinyText(dim=8)}
    model = FusionClassifier(encoders, head, ["a", "b"], loss=Loss(auxiliary_weight=0.5), missing="token")
    write(model, tmp_path / "m.ckpt")
    expected = [Predictor(model.eval(), device="cpu").predict(one) for one in (SAMPLE, {"body": "alone"})]
    names = with_old_names(tmp_path / "m.ckpt")
    assert {old, "stand_ins.depth", "encoders.depth.depth.weigh.offset", "deciders.body.1.bias"} <= names
    predictor = Predictor.from_checkpoint(tmp_path / "m.ckpt", device="cpu")
    assert [predictor.predict(one) for one in (SAMPLE, {"body": "alone"})] == expected
