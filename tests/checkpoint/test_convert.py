"""Checkpoints of format 1, with other names of modules and arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fusion_pl import fusion
from fusion_pl.checkpoint.convert import RENAMED_MODULES, convert_checkpoint
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.fusion import CrossAttention, Evidential
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.training import Loss

from .conftest import write

BEFORE = {new: old for old, new in RENAMED_MODULES.items()}
# Class -> names of its parameters, written by the last version with format 1; heads have the inputs of SAMPLE.
FORMAT_1 = json.loads(Path(__file__).with_name("format_1.json").read_text())
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


def convert_names(names, inputs):
    content = {"format": 1, "encoders": {name: {} for name in inputs}, "fusion": {}}
    checkpoint = {"fusion_pl": content, "state_dict": dict.fromkeys(names)}
    convert_checkpoint(checkpoint)
    return set(checkpoint["state_dict"])


@pytest.mark.parametrize("name", sorted(FORMAT_1.keys() - {"FusionClassifier"}))
def test_the_parameters_of_a_head_of_format_1_get_their_new_names(name):
    head = getattr(fusion, name)(dict.fromkeys(SAMPLE, 8), 3)
    names = convert_names([f"fusion.{old}" for old in FORMAT_1[name]], SAMPLE)
    assert names == {f"fusion.{new}" for new in head.state_dict()}


def test_the_other_parameters_of_a_model_of_format_1_get_their_new_names():
    encoders = {
        "depth": TinyText(dim=8, combine="attention"),
        "image": TinyImage(dim=16, combine="attention"),
        "sound": TinyAudio(dim=8, combine="attention"),
        "photo": TinyImage(dim=16, combine="pyramid"),
    }
    model = FusionClassifier(encoders, fusion.Sum, ["a", "b"], loss=Loss(auxiliary_weight=0.5), missing="token")
    expected = {name for name in model.state_dict() if not name.startswith("fusion.")}
    assert convert_names(FORMAT_1["FusionClassifier"], encoders) == expected
