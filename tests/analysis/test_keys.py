"""Run keys: they change with the configuration, the table, the source code of the parts, and the libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion_pl.analysis.keys import describe_key_difference, run_key, table_hash
from fusion_pl.analysis.plan import make_run, plan_runs
from fusion_pl.cli.errors import user_message
from fusion_pl.training import cache_keys
from fusion_pl.types import UserError

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
    return plan_runs(config, "own_head.Mine", "all", 1, extra, table_hash(config["data"], extra))[0].key


def test_equal_runs_have_equal_keys(config):
    assert key(config) == key(config)
    run = make_run(config, "own_head.Mine", ("text",), 0, (), table_hash(config["data"], ()))
    assert run.key == key(config)  # also for a result of an earlier selection of heads


def test_the_content_of_the_table_is_part_of_the_key(config, tmp_path):
    before = key(config)
    (tmp_path / "a.csv").write_text("text,label\nx,2\n")
    assert describe_key_difference(before, key(config)) == "another table"
    (tmp_path / "b.csv").write_text("text,label\nx,1\n")
    for extra in (["--data.manifest", "b.csv"], ["--data.manifest=b.csv"]):  # of the same content, elsewhere
        after = key(config, "--trainer.max_epochs", "2", *extra)
        assert describe_key_difference(before, after) == "another configuration"


def test_fold_group_and_the_content_of_a_file_of_splits_are_part_of_the_key(config, tmp_path):
    (tmp_path / "s.csv").write_text("id,split\n2,train\n")
    keys = [key(config, *extra.split()) for extra in ("", "--data.fold 1/3", "--data.fold 2/3", "--data.group text")]
    assert len(set(keys)) == 4
    before = key(config, "--data.splits", "s.csv")
    (tmp_path / "s.csv").write_text("id,split\n2,test\n")
    assert describe_key_difference(before, key(config, "--data.splits", "s.csv")) == "another table"


def test_the_files_of_a_folder_of_tables_are_part_of_the_key(config, tmp_path):
    (tmp_path / "parts").mkdir()
    for name in ("1", "2"):
        pq.write_table(pa.table({"text": [name], "label": ["a"]}), tmp_path / "parts" / f"{name}.parquet")
    before = key(config, "--data.manifest", "parts")
    assert before == key(config, "--data.manifest", "parts")
    pq.write_table(pa.table({"text": ["2"], "label": ["b"]}), tmp_path / "parts" / "2.parquet")
    assert describe_key_difference(before, key(config, "--data.manifest", "parts")) == "another table"


def test_library_versions_are_part_of_the_key(config, monkeypatch):
    before, real = key(config), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: real(name) + "1" * (name == "torchvision"))
    assert describe_key_difference(before, key(config)) == "other library versions"


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
def write_modules(tmp_path, monkeypatch):
    """Return a function that writes user modules, which are then imported as in a new process."""

    def _write_modules(**sources):
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        for name, content in sources.items():
            (tmp_path / f"{name}.py").write_text(content)
        for name in (*SOURCES, "own_head"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        cache_keys._hash_module.cache_clear()

    _write_modules(**SOURCES)
    return _write_modules


def test_the_source_of_the_head_is_part_of_the_key(config, write_modules):
    before = key(config)
    write_modules(own_head=HEAD.format(2))
    assert describe_key_difference(before, key(config)) == "another configuration"


@pytest.mark.parametrize(
    "naming",
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
def test_modules_imported_by_a_user_class_are_part_of_the_key(config, write_modules, naming):
    """For every part of the configuration, and every way to name a class."""
    head = HEAD.format(1)
    if naming == {"model": {"fusion": {"class_path": "own_head.Mine"}}}:
        head = "import helper\n" + head
    extra, changes = (naming, {}) if isinstance(naming, list) else ([], naming)
    for section, content in changes.items():
        for name, value in content.items():
            config[section][name] = value if isinstance(value, str) else {**config[section].get(name, {}), **value}

    def key_with(helper):
        write_modules(helper=helper, own_head=head)
        if "Short" in str(naming):
            importlib.import_module("own_encoder")  # short names are resolved among imported classes
        return make_run(config, "own_head.Mine", ("text",), 0, extra).key

    before = key_with("SCALE = 1")
    assert key_with("SCALE = 1") == before
    assert describe_key_difference(before, key_with("SCALE = 2")) == "another configuration"


def test_classes_without_python_source_are_accepted(config):
    config["model"]["encoders"]["text"] = "io.BytesIO"
    config["model"]["optimizer"] = "array.array"
    assert make_run(config, "own_head.Mine", ("text",), 0).key


def test_classes_that_cannot_be_imported_are_left_to_the_run(config):
    config["model"]["encoders"]["image"] = {"class_path": "nowhere.Encoder"}
    assert key(config)


def test_a_table_that_cannot_be_read_is_an_error_instead_of_an_empty_hash(config, write_modules):
    with pytest.raises(UserError, match=r"data: there is no module 'nowhere' for nowhere\.Data"):
        table_hash({"class_path": "nowhere.Data"}, ())
    with pytest.raises(UserError, match=r"data\.batch_size is two, expected a whole number"):
        table_hash(config["data"], ["--data.batch_size", "two"])
    source = (
        "from fusion_pl.data import ManifestData\nclass Rows(ManifestData):\n    def {}(self): raise {}('no answer')"
    )
    write_modules(own_data=source.format("__init__", "ValueError"))
    with pytest.raises(ValueError, match="no answer") as caught:
        table_hash({"class_path": "own_data.Rows"}, ())
    assert user_message(caught.value) == "Rows: no answer"
    write_modules(own_data=source.format("prepare_data", "KeyError"))
    with pytest.raises(KeyError, match="no answer"):
        table_hash({"class_path": "own_data.Rows"}, ["--data.manifest", "a.csv"])


def test_keys_of_another_format_have_no_difference():
    assert describe_key_difference("abcdef123456", run_key({"model": {"fusion": {}, "encoders": {}}}, (), "")) is None
