"""Every configuration that is shipped is understood; nothing is built or downloaded for it."""

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

LEVELS = sorted((ROOT / "configs/hidden_layers").glob("*.yaml"))

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_there_are_configurations():
    assert {"keypad", "own"} <= {path.stem for path in CONFIGS}


@every_config
def test_a_shipped_configuration_is_understood(path):
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = parse("fit", "--config", str(path))
    assert {name: encoder.class_path for name, encoder in config.model.encoders.items()} == {
        name: encoder["class_path"] for name, encoder in written["model"]["encoders"].items()
    }
    assert config.model.fusion.class_path == written["model"]["fusion"]["class_path"]
    assert config.data.class_path == written["data"]["class_path"]


@every_config
def test_the_runs_of_two_configurations_never_mix(path):
    """``best`` and ``last`` mean the newest run of the logger's folder, so each configuration has its own."""
    logger = parse("test", "--config", str(path)).trainer.logger
    assert (logger.init_args.save_dir, logger.init_args.name) == ("lightning_logs", path.stem)


@every_config
def test_a_shipped_configuration_says_how_it_is_used(path):
    """The command stands in the comment at the top, and names the file itself."""
    comment = path.read_text(encoding="utf-8").partition("seed_everything")[0]
    assert f"fusion-pl fit --config configs/{path.name}" in comment


def built(node):
    """Build what a parsed configuration names."""
    if isinstance(node, list):
        return [built(one) for one in node]
    if hasattr(node, "class_path"):
        module, _, name = node.class_path.rpartition(".")
        init_args = vars(node.get("init_args", Namespace()))
        return getattr(importlib.import_module(module), name)(**{key: built(value) for key, value in init_args.items()})
    return node


@every_config
def test_the_augmentations_of_a_shipped_configuration_run(path):
    """A library may understand an argument where it is parsed, and refuse it where it is used."""
    values = {"text": "a text", "image": Image.new("L", (28, 28)), "audio": Waveform(torch.rand(8000), 8000)}
    config = parse("fit", "--config", str(path))
    for name, augment in (config.data.init_args.get("augment") or {}).items():
        assert type(built(augment)(values[name])) is type(values[name])


@pytest.mark.parametrize("path", LEVELS, ids=lambda path: path.stem)
def test_a_way_to_combine_depths_is_laid_over_keypad(path):
    """The rest stays as it was, every encoder can be built, and it differs from the baseline by its way alone."""
    assert f"--config configs/keypad.yaml --config configs/hidden_layers/{path.name}" in path.read_text(
        encoding="utf-8"
    )
    plain = parse("fit", "--config", str(ROOT / "configs/keypad.yaml"))
    config = parse("fit", "--config", str(ROOT / "configs/keypad.yaml"), "--config", str(path))
    assert config.data == plain.data
    assert config.model.fusion == plain.model.fusion
    encoders = {name: built(encoder) for name, encoder in config.model.encoders.items()}
    ways = {
        name: encoder.layer_mixing.combine if encoder.layer_mixing else "last" for name, encoder in encoders.items()
    }
    assert ways["image"] == path.stem
    assert set(ways.values()) <= {path.stem, "last"}
    for name, encoder in config.model.encoders.items():
        args = {key: value for key, value in vars(encoder.init_args).items() if key != "combine"}
        assert args == {k: v for k, v in vars(plain.model.encoders[name].init_args).items() if k != "combine"}


def test_there_is_a_configuration_for_each_way_to_combine_depths():
    assert {path.stem for path in LEVELS} == {"last", *get_args(Combine)}
