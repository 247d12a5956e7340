"""Every configuration that is shipped is understood; nothing is built or downloaded for it."""

from __future__ import annotations

import pytest
import yaml

from .parsing import ROOT, parse

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

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
