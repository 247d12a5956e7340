"""Every configuration in configs/ parses; nothing is built or downloaded."""

from __future__ import annotations

import importlib
from typing import get_args

import pytest
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image

from fusion_pl.encoders.layer_mixing import Combine
from fusion_pl.types import Waveform

from .parsing import ROOT, parse

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
HIDDEN_LAYERS = sorted((ROOT / "configs/hidden_layers").glob("*.yaml"))

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_there_are_configurations():
    assert {"keypad", "own"} <= {path.stem for path in CONFIGS}


@every_config
def test_a_configuration_parses(path):
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = parse("fit", "--config", str(path))
    assert {name: encoder.class_path for name, encoder in config.model.encoders.items()} == {
        name: encoder["class_path"] for name, encoder in written["model"]["encoders"].items()
    }
    assert config.model.fusion.class_path == written["model"]["fusion"]["class_path"]
    assert config.data.class_path == written["data"]["class_path"]


@every_config
def test_each_configuration_has_its_own_run_folder(path):
    """``best`` and ``last`` are those of the newest run in the logger's folder."""
    logger = parse("test", "--config", str(path)).trainer.logger
    assert (logger.init_args.save_dir, logger.init_args.name) == ("lightning_logs", path.stem)


@every_config
def test_a_configuration_has_its_command_in_a_comment(path):
    """At the top, with the name of the file."""
    comment = path.read_text(encoding="utf-8").partition("seed_everything")[0]
    assert f"fusion-pl fit --config configs/{path.name}" in comment


def build(node):
    """Construct the classes that a parsed configuration names."""
    if isinstance(node, list):
        return [build(one) for one in node]
    if hasattr(node, "class_path"):
        module, _, name = node.class_path.rpartition(".")
        init_args = vars(node.get("init_args", Namespace()))
        return getattr(importlib.import_module(module), name)(**{key: build(value) for key, value in init_args.items()})
    return node


@every_config
def test_the_augmentations_of_a_configuration_run(path):
    """An argument may parse and still be refused when it is used."""
    values = {"text": "a text", "image": Image.new("L", (28, 28)), "audio": Waveform(torch.rand(8000), 8000)}
    config = parse("fit", "--config", str(path))
    for name, augment in (config.data.init_args.get("augment") or {}).items():
        assert type(build(augment)(values[name])) is type(values[name])


@pytest.mark.parametrize("path", HIDDEN_LAYERS, ids=lambda path: path.stem)
def test_a_configuration_of_hidden_layers_overrides_keypad(path):
    """Only ``combine`` differs, and every encoder can be constructed."""
    assert f"--config configs/keypad.yaml --config configs/hidden_layers/{path.name}" in path.read_text(
        encoding="utf-8"
    )
    plain = parse("fit", "--config", str(ROOT / "configs/keypad.yaml"))
    config = parse("fit", "--config", str(ROOT / "configs/keypad.yaml"), "--config", str(path))
    assert config.data == plain.data
    assert config.model.fusion == plain.model.fusion
    encoders = {name: build(encoder) for name, encoder in config.model.encoders.items()}
    ways = {
        name: encoder.layer_mixing.combine if encoder.layer_mixing else "last" for name, encoder in encoders.items()
    }
    assert ways["image"] == path.stem
    assert set(ways.values()) <= {path.stem, "last"}
    for name, encoder in config.model.encoders.items():
        args = {key: value for key, value in vars(encoder.init_args).items() if key != "combine"}
        assert args == {k: v for k, v in vars(plain.model.encoders[name].init_args).items() if k != "combine"}


def test_there_is_a_configuration_for_each_way_to_combine_hidden_layers():
    assert {path.stem for path in HIDDEN_LAYERS} == {"last", *get_args(Combine)}
