"""What makes a finished run another one: configuration, table, source of its parts, libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pytest

from fusion_pl.analysis.content import difference, key_of, table_of
from fusion_pl.analysis.plan import plan, trial_of

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


def test_an_edited_head_is_another_one(config, tmp_path, monkeypatch):
    before = key(config)
    (tmp_path / "own_head.py").write_text(HEAD.format(2))
    assert difference(before, key(config)) == "another configuration"


def test_what_cannot_be_imported_is_told_by_the_run(config):
    config["model"]["encoders"]["image"] = {"class_path": "nowhere.Encoder"}
    assert key(config)
    assert table_of({"class_path": "nowhere.Data"}, ()) == ""


def test_keys_of_another_version_have_no_difference():
    assert difference("abcdef123456", key_of({"model": {"fusion": {}, "encoders": {}}}, (), "")) is None
