"""Drawn splits of a table that changes: in the data module, in the command, and in a Trainer."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.tables.split_record import SplitRecord
from fusion_pl.tables.splits import SPLITS
from fusion_pl.types import UserError

MORE = ["--ckpt_path", "last", "--trainer.max_epochs", "2"]
WORDS = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine")


def record(at, with_ids=True):
    text = f"{WORDS[at % 10]} {WORDS[at // 10 % 10]} {at}"
    return ({"id": f"s{at}"} if with_ids else {}) | {"text": text, "label": ("high", "low")[at % 2]}


def table(with_ids=True, rows=200):
    return [record(at, with_ids) for at in range(rows)]


def write(path, records):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    return str(path)


def build(path, **kwargs):
    data = ManifestData(path, num_workers=0, **kwargs)
    data.processors = {"text": TinyText().processor}
    data.setup("fit")
    return data


def texts(data):
    """Split -> the texts of its rows, which are unique."""
    return {
        split: {
            sample.inputs["text"] for sample in map(data.samples(split).__getitem__, range(len(data.samples(split))))
        }
        for split in SPLITS
    }


def reversed_rows(records):
    return records[::-1]


def without_two(records):
    return records[:40] + records[42:]


def with_ten_more(records):
    return records[:5] + [record(at, "id" in records[0]) for at in range(200, 210)] + records[5:]


def with_another_label(records):
    return [records[0] | {"label": "low"}, *records[1:]]


CHANGES = [reversed_rows, without_two, with_ten_more, with_another_label]


# ------------------------------------------------------------------------------------------------------- the data set
@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_unchanged_rows_keep_their_split(tmp_path, with_ids, change):
    records = table(with_ids)
    before = texts(build(write(tmp_path / "m.csv", records)))
    after = texts(build(write(tmp_path / "m.csv", change(records))))
    stayed = set().union(*before.values()) & set().union(*after.values())
    assert len(stayed) >= 198
    assert {split: found & stayed for split, found in before.items()} == {
        split: found & stayed for split, found in after.items()
    }


def test_a_split_depends_on_the_id_or_else_on_all_cells_but_label_and_split(tmp_path):
    by_id = texts(build(write(tmp_path / "m.csv", table())))
    renamed = [one | {"text": one["text"] + " again"} for one in table()]
    found = texts(build(write(tmp_path / "m.csv", renamed)))
    assert {split: {text.removesuffix(" again") for text in some} for split, some in found.items()} == by_id
    by_text = texts(build(write(tmp_path / "m.csv", table(with_ids=False))))
    assert by_text != by_id
    empty = [dict(reversed(one.items())) | {"note": ""} for one in table(with_ids=False)]  # other columns, same content
    assert texts(build(write(tmp_path / "m.csv", empty))) == by_text
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(one) + "\n" for one in table(with_ids=False)))
    assert texts(build(str(tmp_path / "m.jsonl"))) == by_text


def test_rows_of_the_same_content_share_a_split(tmp_path):
    twice = [record(at % 40, with_ids=False) for at in range(80)]
    data = build(write(tmp_path / "m.csv", twice))
    found = texts(data)
    assert sum(map(len, found.values())) == 40
    assert sum(len(data.samples(split)) for split in SPLITS) == 80


# -------------------------------------------------------------------------------------------------------- the command
class Project:
    """A folder with a configuration, a table and a trained run."""

    def __init__(self, folder, records):
        self.folder, self.manifest = folder, folder / "m.csv"
        write(self.manifest, records)
        text = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}}
        content = {
            "model": {"encoders": {"text": text}, "fusion": {"class_path": "fusion_pl.fusion.Mean"}},
            "data": {
                "class_path": "fusion_pl.data.ManifestData",
                "init_args": {"manifest": "m.csv", "batch_size": 50, "num_workers": 0},
            },
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(content))

    def run(self, subcommand, *arguments):
        with contextlib.chdir(self.folder):
            return run(subcommand, ["--config", "config.yaml", *arguments])

    @property
    def checkpoint(self):
        return self.folder / "lightning_logs/version_0/checkpoints/last.ckpt"

    def splits(self, version):
        """Return id -> split from splits.csv."""
        with open(self.folder / f"lightning_logs/version_{version}/splits.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["row", "id", "hash", "split"]
        return {row["id"]: row["split"] for row in rows}

    def tested(self, version):
        return json.loads((self.folder / f"lightning_logs/version_{version}/metrics.json").read_text())["samples"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("trained"), table())
    assert project.run("fit") == 0
    return project


@pytest.fixture
def project(trained, tmp_path):
    """A copy of the trained run."""
    shutil.copytree(trained.folder, tmp_path / "project")
    found = Project.__new__(Project)
    found.folder, found.manifest = tmp_path / "project", tmp_path / "project/m.csv"
    return found


def test_fit_writes_its_splits_beside_its_configuration(trained):
    found = trained.splits(0)
    assert list(found) == [f"s{at}" for at in range(200)]
    ids = {text.split()[-1]: split for split, some in texts(build(str(trained.manifest))).items() for text in some}
    assert found == {f"s{at}": ids[str(at)] for at in range(200)}


def test_test_uses_the_splits_of_the_training_for_any_table_and_options(project, capsys, caplog):
    records = with_ten_more(without_two(table()))
    random.Random(0).shuffle(records)
    write(project.manifest, records)
    with caplog.at_level("INFO"):
        assert project.run("test", "--data.seed", "7", "--data.test_fraction", "0.4") == 0
    assert "m.csv has changed since the training: 10 of its 208 rows are new and 2 rows are gone" in caplog.text
    before, after = project.splits(0), project.splits(1)
    assert {name: split for name, split in after.items() if name in before} == {
        name: split for name, split in before.items() if name in after
    }
    assert project.tested(1) == {"test": list(after.values()).count("test")}


@pytest.mark.parametrize("subcommand", ["test", "validate"])
def test_a_training_row_that_the_table_assigns_to_another_split_is_refused(project, capsys, subcommand):
    split = {"test": "test", "validate": "val"}[subcommand]
    rows = list(project.splits(0).items())
    first = next(name for name, old in rows if old == "train")
    named = [one | {"split": split if one["id"] == first else project.splits(0)[one["id"]]} for one in table()]
    write(project.manifest, named)
    assert project.run(subcommand) == 2
    at = int(first[1:]) + 2
    count = [one["split"] for one in named].count(split)
    message = capsys.readouterr().err
    assert (
        f"column 'split': the checkpoint was trained on 1 of the {count} {split} rows (first row {at}, {first!r})"
        in message
    )
    assert "Traceback" not in message


def test_a_resumed_run_keeps_its_splits_and_its_record_of_training_rows(project, capsys):
    before = project.splits(0)
    write(project.manifest, with_ten_more(table()))
    assert project.run("fit", *MORE, "--data.seed", "7") == 0
    after = project.splits(0)
    assert len(after) == 210
    assert {name: after[name] for name in before} == before
    named = [one | {"split": "test" if before[one["id"]] == "train" else before[one["id"]]} for one in table()]
    write(project.manifest, named)
    assert project.run("fit", *MORE) == 2
    assert "trained on" in capsys.readouterr().err


@pytest.mark.parametrize(("subcommand", "options"), [("test", []), ("fit", MORE)])
def test_a_checkpoint_is_read_once(project, monkeypatch, subcommand, options):
    load, paths = torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **kwargs: paths.append(path) or load(path, **kwargs))
    assert project.run(subcommand, *options) == 0
    assert len(paths) == 1


def test_a_checkpoint_without_a_record_is_accepted_with_a_message(project, caplog):
    checkpoint = torch.load(project.checkpoint, weights_only=True)
    del checkpoint["ManifestData"]
    torch.save(checkpoint, project.checkpoint)
    with caplog.at_level("INFO"):
        assert project.run("test", "--ckpt_path", str(project.checkpoint)) == 0
    assert caplog.text.count("the checkpoint does not record which rows it was trained on") == 1


class Mine(ManifestData):
    """A data class with another name than in the training."""


def other_table(folder, splits):
    """Write a table in which every training row is a test row."""
    named = [one | {"split": "test" if splits[one["id"]] == "train" else "train"} for one in table()]
    write(folder / "m.csv", named)


def test_the_record_of_another_data_class_is_found(project, capsys):
    other_table(project.folder, project.splits(0))
    assert project.run("test", "--data", f"{__name__}.Mine", "--data.manifest", "m.csv") == 2
    assert "the checkpoint was trained on" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_trainer_finds_the_record_of_another_data_class(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    other_table(project.folder, project.splits(0))
    model = FusionClassifier({"text": TinyText(dim=8)}, Mean, ["high", "low"])
    data = Mine("m.csv", num_workers=0)
    data.processors = model.processors
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(UserError, match="the checkpoint was trained on"):
        trainer.test(model, datamodule=data, ckpt_path=str(project.checkpoint), weights_only=True, verbose=False)


@pytest.mark.parametrize(
    "keys",
    [
        torch.zeros(2),
        torch.zeros(2, 2).long(),
        torch.zeros(1).long().expand(10**12),
        torch.zeros(2).long().to_sparse(),
        torch.zeros(2, device="meta").long(),
        [1, 2],
        None,
    ],
)
def test_damaged_row_hashes_are_refused(keys):
    good = {"table": "", "train": torch.zeros(2).long(), "val": torch.zeros(0).long(), "test": torch.zeros(1).long()}
    assert SplitRecord.from_state(good).hashes["train"].tolist() == [0]
    with pytest.raises(UserError, match="the checkpoint's record of its splits is damaged"):
        SplitRecord.from_state(good | {"train": keys})


def test_a_damaged_record_is_refused_with_one_sentence(project, capsys):
    checkpoint = torch.load(project.checkpoint, weights_only=True)
    checkpoint["ManifestData"] = "no"
    torch.save(checkpoint, project.checkpoint)
    assert project.run("test", "--ckpt_path", str(project.checkpoint)) == 2
    message = capsys.readouterr().err
    assert "the checkpoint's record of its splits is damaged" in message
    assert "Traceback" not in message


# --------------------------------------------------------------------------------------------------------- in Python
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_trainer_uses_the_splits_of_the_checkpoint(project, monkeypatch, caplog):
    monkeypatch.chdir(project.folder)
    write(project.manifest, with_ten_more(table()))
    model = FusionClassifier({"text": TinyText(dim=8)}, Mean, ["high", "low"])
    data = ManifestData("m.csv", num_workers=0, seed=7)
    data.processors = model.processors
    seen = []
    step = model.test_step
    model.test_step = lambda batch, batch_idx: (seen.extend(batch.ids), step(batch, batch_idx))[1]
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.test(model, datamodule=data, ckpt_path=str(project.checkpoint), weights_only=True, verbose=False)
    before = project.splits(0)
    assert [name for name in seen if name in before] == [name for name in seen if before.get(name) == "test"]
    assert set(seen) >= {name for name, split in before.items() if split == "test"}
    assert not os.path.exists("splits.csv")
    assert Path("lightning_logs/version_0/splits.csv").exists()
