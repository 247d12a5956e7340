"""What makes a finished run another one: configuration, table, source of its parts, libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pytest

from fusion_pl.analysis.content import difference, key_of, table_of
from fusion_pl.analysis.plan import plan, trial_of
from fusion_pl.training import cache_keys

HEAD = "from fusion_pl.fusion import Mean\n\nclass Mine(Mean):\n    scale = {}\n"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_head", raising=False)
    (tmp_path / "own_head.py").write_text(HEAD.format(1))
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    return {
        "model": {"encoders": {"text": "fusion_pl.encoders.TinyText"}, "fusion": {"class_path": "own_head.Mine"}},
        "data": {"class_path": "fusion_pl.data.ManifestData", "init_args": {"manifest": "a.csv"}},
    }


def key(config, *extra):
    return plan(config, "own_head.Mine", "all", 1, extra, table_of(config["data"], extra))[0].key


def test_the_same_is_the_same(config):
    assert key(config) == key(config)
    trial = trial_of(config, "own_head.Mine", ("text",), 0, (), table_of(config["data"], ()))
    assert trial.key == key(config)  # a run of an earlier selection is known by it


def test_a_table_goes_by_its_content(config, tmp_path):
    before = key(config)
    (tmp_path / "a.csv").write_text("text,label\nx,2\n")
    assert difference(before, key(config)) == "another table"
    (tmp_path / "b.csv").write_text("text,label\nx,1\n")
    for extra in (["--data.manifest", "b.csv"], ["--data.manifest=b.csv"]):  # of the same content, elsewhere
        assert difference(before, key(config, "--trainer.max_epochs", "2", *extra)) == "another configuration"


def test_other_libraries_make_another_run(config, monkeypatch):
    before, real = key(config), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: real(name) + "1" * (name == "torchvision"))
    assert difference(before, key(config)) == "other library versions"


SOURCES = {
    "helper": "SCALE = 1",
    "own_encoder": "import helper\nfrom fusion_pl.encoders import TinyText\nclass Short(TinyText): pass",
    "own_data": "import helper\nfrom fusion_pl.data import ManifestData\nclass Rows(ManifestData): pass",
    "own_steps": """
import torch
import helper
class Noise(torch.nn.Module): pass
class Descent(torch.optim.SGD): pass
class Decay(torch.optim.lr_scheduler.ExponentialLR): pass
""",
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write own modules, and have them imported as another process would."""

    def _written(**sources):
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        for name, content in sources.items():
            (tmp_path / f"{name}.py").write_text(content)
        for name in (*SOURCES, "own_head"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        cache_keys._read.cache_clear()

    _written(**SOURCES)
    return _written


def test_an_edited_head_is_another_one(config, written):
    before = key(config)
    written(own_head=HEAD.format(2))
    assert difference(before, key(config)) == "another configuration"


@pytest.mark.parametrize(
    "place",
    [
        {"model": {"fusion": {"class_path": "own_head.Mine"}}},
        {"model": {"encoders": {"text": "own_encoder.Short"}}},
        {"model": {"encoders": {"text": {"class_path": "Short"}}}},
        {"model": {"optimizer": {"class_path": "own_steps.Descent"}}},
        {"model": {"lr_scheduler": "own_steps.Decay"}},
        {"data": {"class_path": "own_data.Rows"}},
        {"data": {"init_args": {"augment": {"text": "own_steps.Noise"}}}},
        {"data": {"init_args": {"augment": {"text": {"init_args": {"args": [{"class_path": "own_steps.Noise"}]}}}}}},
        ["--model.optimizer", "own_steps.Descent"],
        ["--data.augment={text: {class_path: own_steps.Noise}}"],
    ],
)
def test_an_edited_module_that_an_own_class_imports_makes_another_run(config, written, place):
    """Whichever part of the run the class is, and however it is named."""
    head = HEAD.format(1)
    if place == {"model": {"fusion": {"class_path": "own_head.Mine"}}}:
        head = "import helper\n" + head
    extra, changes = (place, {}) if isinstance(place, list) else ([], place)
    for section, content in changes.items():
        for name, value in content.items():
            config[section][name] = value if isinstance(value, str) else {**config[section].get(name, {}), **value}

    def fresh(helper):
        written(helper=helper, own_head=head)
        if "Short" in str(place):
            importlib.import_module("own_encoder")  # a short name is one that is known
        return trial_of(config, "own_head.Mine", ("text",), 0, extra).key

    before = fresh("SCALE = 1")
    assert fresh("SCALE = 1") == before
    assert difference(before, fresh("SCALE = 2")) == "another configuration"


def test_a_compiled_class_has_no_source_to_follow(config):
    config["model"]["encoders"]["text"] = "io.BytesIO"
    config["model"]["optimizer"] = "array.array"
    assert trial_of(config, "own_head.Mine", ("text",), 0).key


def test_what_cannot_be_imported_is_told_by_the_run(config):
    config["model"]["encoders"]["image"] = {"class_path": "nowhere.Encoder"}
    assert key(config)
    assert table_of({"class_path": "nowhere.Data"}, ()) == ""


def test_keys_of_another_version_have_no_difference():
    assert difference("abcdef123456", key_of({"model": {"fusion": {}, "encoders": {}}}, (), "")) is None
