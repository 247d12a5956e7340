"""Shards: the rows, checks and metrics of the table from which they were written, and no damage is overlooked."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from filelock import FileLock

from fusion_pl.__main__ import main
from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData, ShardData
from fusion_pl.data.order import EpochSampler
from fusion_pl.data.rows import InputColumn, LoadError
from fusion_pl.data.sampling import Sampling
from fusion_pl.data.shard_writer import ShardWriter
from fusion_pl.processors import Processor
from fusion_pl.tables import remote
from fusion_pl.tables.read_table import read_table
from fusion_pl.tasks import MultiLabel
from fusion_pl.types import UserError
from tests.commands import Command
from tests.data_check.test_command import data_check
from tests.disk import small_disk
from tests.encoders.models import save_image
from tests.file_server import FileServer
from tests.texts import results

SPLITS = ("train", "val", "test")
TINY = "0.004"  # MiB per shard: about 4 rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory, manifest):
    """A table without ids and splits, and a configuration."""
    folder = tmp_path_factory.mktemp("shards")
    with manifest.open() as file:
        records = list(csv.DictReader(file))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "image", "audio", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    parts = {"text": "TinyText", "image": "TinyImage", "audio": "TinyAudio"}
    content = {
        "seed_everything": 1,
        "model": {
            "encoders": {
                name: {"class_path": f"fusion_pl.encoders.{part}", "init_args": {"dim": 8}}
                for name, part in parts.items()
            },
            "fusion": {"class_path": "fusion_pl.fusion.Concat", "init_args": {"dim": 8}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {
                "manifest": str(folder / "rows.csv"),
                "root": str(manifest.parent),
                "batch_size": 7,
                "num_workers": 1,
            },
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def data_shard(folder, output, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        words = ["--config", str(folder / "config.yaml"), "--output", str(output), *map(str, arguments)]
        patch.setattr(sys, "argv", ["fusion-pl", "data", "shard", *words])
        return main()


@pytest.fixture(scope="module")
def shards(folder):
    """Shards of a few rows each, in the order of the table."""
    assert data_shard(folder, folder / "shards", "--shard_size", TINY, "--shuffle", "false") == 0
    return folder / "shards"


@pytest.fixture
def copied(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copied")


@pytest.fixture
def table(folder, manifest, processors):
    return build(ManifestData(str(folder / "rows.csv"), root=str(manifest.parent), num_workers=0), processors)


def build(data, processors, stage="fit"):
    data.processors = processors
    data.setup(stage)
    return data


def assert_same_sample(sample, expected):
    assert (sample.id, sample.target, sample.inputs.keys()) == (expected.id, expected.target, expected.inputs.keys())
    for name, value in sample.inputs.items():
        if name == "audio":
            assert torch.equal(value.samples, expected.inputs[name].samples)
        else:
            assert np.array_equal(np.asarray(value), np.asarray(expected.inputs[name]))


# -------------------------------------------------------------------------------------------------------- the same rows
def test_rows_are_those_of_the_table(shards, table, processors):
    data = build(ShardData(str(shards), num_workers=0), processors)
    assert len(data.shards.names) > 8
    for split in SPLITS:
        for sample, expected in zip(data.samples(split), table.samples(split), strict=True):
            assert_same_sample(sample, expected)


def test_shuffled_rows_are_those_of_the_table(folder, table, processors, tmp_path):
    assert data_shard(folder, tmp_path / "shuffled", "--shard_size", TINY) == 0
    data = build(ShardData(str(tmp_path / "shuffled"), num_workers=0), processors)
    for split in SPLITS:
        found, expected = ({one.id: one for one in source.samples(split)} for source in (data, table))
        assert found.keys() == expected.keys()
        assert [*found] != [*expected] or len(found) < 9
        for name, sample in found.items():
            assert_same_sample(sample, expected[name])
    splits = data.row_splits
    assert np.array_equal(splits, np.sort(splits))  # the shards of one split after those of another


def test_another_process_reads_the_same_rows(shards, processors):
    samples = build(ShardData(str(shards), num_workers=0), processors).samples("train")
    samples[0]  # opens a shard
    assert_same_sample(pickle.loads(pickle.dumps(samples))[3], samples[3])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A folder with a run on the table, whose logger is named "table"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        patch.setattr(sys, "argv", sys.argv)
        assert run("fit", ["--config", str(folder / "config.yaml"), "--trainer.logger.name", "table"]) == 0
        return Path.cwd()


def test_metrics_are_those_of_the_table(folder, shards, trained, tmp_path, monkeypatch):
    """Also in validation and test, with workers."""
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "runs"))
    config = ["--config", str(folder / "config.yaml")]
    options = ["--data", "fusion_pl.data.ShardData", "--data.shards", str(shards), "--data.shuffle_window", "100"]
    assert run("fit", [*config, *options, "--trainer.logger.name", "shards"]) == 0
    for name, extra in (("table", []), ("shards", options)):
        assert run("test", [*config, *extra, "--trainer.logger.name", name]) == 0
    for version in ("version_0", "version_1"):
        expected, found = (results(Path("lightning_logs") / name / version) for name in ("table", "shards"))
        assert found["metrics"] == expected["metrics"]
        assert found["metrics"]


def test_the_images_of_shards_are_encoded_once(folder, shards, tmp_path, monkeypatch):
    """Without a cache in each epoch; with one in the first run, and never again."""
    monkeypatch.chdir(tmp_path)
    save_image("resnet", tmp_path / "resnet")
    content = yaml.safe_load((folder / "config.yaml").read_text())
    init = {"pretrained": str(tmp_path / "resnet"), "freeze": "all"}
    content["model"]["encoders"]["image"] = {"class_path": "fusion_pl.encoders.ImageEncoder", "init_args": init}
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(content))
    config = ["--config", str(tmp_path / "frozen.yaml")]
    config += ["--data", "fusion_pl.data.ShardData", "--data.shards", str(shards), "--data.num_workers", "0"]
    config += ["--trainer.num_sanity_val_steps", "0"]
    opened, original = [], InputColumn.open

    def count(column, cell):
        if not isinstance(cell, int):  # a row of the features
            opened.append(column.input)
        return original(column, cell)

    monkeypatch.setattr(InputColumn, "open", count)
    metrics, counts = [], []
    for cache in ("null", str(tmp_path / "cache"), str(tmp_path / "cache")):
        opened.clear()
        assert run("fit", [*config, "--trainer.logger.name", f"v{len(metrics)}", "--cache", cache]) == 0
        metrics.append(results(tmp_path / f"lightning_logs/v{len(metrics)}/version_0")["metrics"])
        counts.append(Counter(opened))
    assert counts[0]["text"] == counts[1]["text"] == counts[2]["text"] > 0
    assert [count["image"] for count in counts] == [2 * 39, 39 + 8, 0]  # in two epochs; all and 8 to measure the size
    assert metrics[1] == metrics[2]
    torch.testing.assert_close(metrics[1], metrics[0], rtol=1e-4, atol=1e-5)


def test_the_check_of_the_data_opens_shards(folder, shards, copied, tmp_path, capsys):
    options = ["--data", "fusion_pl.data.ShardData", "--data.shards"]
    assert data_check(folder, *options, shards, output=tmp_path / "intact") == 0
    damage(copied / "shard-00002.arrow")
    assert data_check(folder, *options, copied, output=tmp_path / "damaged") == 1
    assert "shard-00002.arrow is damaged" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------------- order
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("total", "processes"), [(1000, 1), (1002, 3)])
def test_an_epoch_draws_from_a_window_of_shards_at_a_time(total, processes, weighted):
    shards = np.repeat(np.arange(10), 100)
    weights = np.arange(1000.0) if weighted else None
    sampling = Sampling(weights, shards=shards, window=3)
    rows = sampling.draw(1000, total, 10 * processes, np.random.default_rng(0))
    assert len(rows) == total
    if not weighted:
        assert set(rows.tolist()) == set(range(1000))
    visited = shards[rows]
    last = {shard: at for at, shard in enumerate(visited[:1000].tolist())}
    open_shards = [len({shard for shard in visited[:at].tolist() if last[shard] >= at}) for at in range(0, 1000, 10)]
    assert max(open_shards) <= 3  # no shard outside the window is needed again


def test_the_order_is_a_function_of_seed_and_epoch_and_reaches_every_row_once(shards, processors):
    orders = {}
    for processes in (1, 2, 3):
        data = build(ShardData(str(shards), num_workers=0, shuffle_window=2), processors)
        samples, sampling = data.samples("train"), data.train_sampling
        for epoch in (0, 1):
            parts = []
            for rank in range(processes):
                sampler = EpochSampler(samples, 5, processes, rank, lambda: 0, sampling, 4)
                sampler.set_epoch(epoch)
                parts.append([index - epoch * len(samples) for index in sampler])
            rows = [row for step in zip(*parts, strict=True) for row in step]
            assert set(rows) == set(range(len(samples)))
            orders[processes, epoch] = rows[: len(samples)]
    assert orders[1, 0] == orders[2, 0][: len(orders[1, 0])] != orders[1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_fewer_processes_continue_the_epoch_without_losing_a_row(seed):
    """Two processes draw 162 of 161 rows; the repeated one comes last, so that a stop is a prefix of the same order."""
    sampling = Sampling(shards=np.repeat(np.arange(23), 7), window=3)
    two, one = (sampling.draw(161, total, 6, np.random.default_rng(seed)) for total in (162, 161))
    assert two[:161].tolist() == one.tolist()
    assert set(one.tolist()) == set(range(161))


def test_a_run_that_goes_on_within_an_epoch_has_the_weights_of_one_that_was_not_stopped(
    folder, shards, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = ["--config", str(folder / "config.yaml"), "--data", "fusion_pl.data.ShardData"]
    config += ["--data.shards", str(shards), "--data.shuffle_window", "2", "--data.num_workers", "0"]
    assert run("fit", [*config, "--trainer.logger.name", "whole"]) == 0
    stop = {"class_path": "tests.test_exact_resume.Stop", "init_args": {"batches": 2}}
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    assert run("fit", [*config, "--config", "stop.yaml", "--trainer.logger.name", "stopped"]) == 128 + signal.SIGTERM
    assert run("fit", [*config, "--trainer.logger.name", "stopped", "--ckpt_path", "last"]) == 0
    states = [
        torch.load(f"lightning_logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "stopped")
    ]
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------------------- damage
def damage(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def test_every_flipped_bit_of_a_file_is_found(copied, processors):
    """The bit is in the content of a file, or the shard cannot be opened, or nothing has changed for the rows."""
    path = copied / "shard-00001.arrow"
    intact = path.read_bytes()
    reference = build(ShardData(str(copied), num_workers=0), processors)
    rows = range(int(reference.shards.starts[1]), int(reference.shards.starts[2]))
    cells = {name: list(reference._inputs.cells(name, np.array(rows))) for name in ("image", "audio")}
    messages = []
    for at in np.linspace(0, 0.999, 60):
        path.write_bytes(intact)
        damage(path, at)
        data = build(ShardData(str(copied), num_workers=0), processors)
        try:
            assert cells == {name: list(data._inputs.cells(name, np.array(rows))) for name in cells}
        except LoadError as error:
            messages.append(str(error))
    assert len(messages) > 40
    assert all("shard-00001.arrow is damaged" in message for message in messages)


OTHER_CONTENT = r"shard-00001.arrow is damaged \(the file in column '\w+' of its row \d has another content\)"


@pytest.mark.parametrize(
    ("change", "message", "on_bad_file"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-300]),
            r"shard-00001.arrow is damaged \(.+\): copy it again",
            "missing",
        ),
        (os.remove, r"shard-00001.arrow does not exist: copy the complete folder", "missing"),
        (damage, OTHER_CONTENT, "missing"),
        (damage, OTHER_CONTENT, "raise"),
        (
            lambda path: shutil.copy(path.with_name("shard-00000.arrow"), path),
            r"shard-00001.arrow (does not belong to these shards|is damaged)",
            "missing",
        ),
    ],
)
def test_a_damaged_shard_stops_the_run(change, message, on_bad_file, folder, copied, tmp_path, monkeypatch, capfd):
    """Also if unreadable files count as missing: a shard has many files."""
    change(copied / "shard-00001.arrow")
    monkeypatch.chdir(tmp_path)
    options = ["--data", "fusion_pl.data.ShardData", "--data.shards", str(copied), "--data.on_bad_file", on_bad_file]
    assert run("fit", ["--config", str(folder / "config.yaml"), *options]) == 2
    error = capfd.readouterr().err
    assert re.search(message, error)
    assert "Traceback" not in error


def test_a_folder_that_is_not_one_of_shards(shards, copied, tmp_path, processors):
    with pytest.raises(UserError, match=r"contains no manifest.json: write shards with fusion-pl data shard"):
        ShardData(str(tmp_path))
    (copied / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json is no manifest of shards \('format'\): write them again"):
        ShardData(str(copied))
    (copied / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="was written by another version of fusion-pl"):
        ShardData(str(copied))
    shutil.copy(shards / "manifest.json", copied)
    damage(copied / "index.arrow")
    with pytest.raises(UserError, match=r"index.arrow is damaged: its hash is not that in manifest.json"):
        build(ShardData(str(copied)), processors)


def test_options_that_exclude_each_other(shards, processors):
    with pytest.raises(UserError, match=r"data.shuffle_window must be at least 1, not 0"):
        ShardData(str(shards), shuffle_window=0)
    with pytest.raises(UserError, match=r"bucket_by_length mixes the rows of all \d+ shards: set .*shuffle_window"):
        build(ShardData(str(shards), shuffle_window=2, bucket_by_length=True), processors)
    assert build(
        ShardData(str(shards), shuffle_window=99, bucket_by_length=True), processors
    ).train_sampling.lengths.any()
    with pytest.raises(UserError, match="column 'image': it holds files, but the input 'text' reads no files"):
        build(ShardData(str(shards), inputs={"text": "image"}), processors)
    with pytest.raises(UserError, match="column 'text': the shards lack its files for the input 'image'"):
        build(ShardData(str(shards), inputs={"image": "text"}), processors)


# --------------------------------------------------------------------------------------------------------------- writer
def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_killed_writer_goes_on(folder, tmp_path):
    options = ["--shard_size", TINY]
    assert data_shard(folder, tmp_path / "whole", *options) == 0
    words = ["--config", str(folder / "config.yaml"), "--output", str(tmp_path / "killed"), *options]
    process = Command(["data", "shard", *words], [tmp_path / "log"] * 2, tmp_path)
    while not (tmp_path / "killed/shard-00002.arrow").exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.arrow")}
    assert len(kept) >= 3
    (tmp_path / "killed/manifest.json").unlink(missing_ok=True)  # in case the process was faster
    assert data_shard(folder, tmp_path / "killed", *options) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items() if path.name.startswith("shard"))
    assert listing(tmp_path / "killed") == listing(tmp_path / "whole")


def test_a_second_writer_is_refused(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert data_shard(folder, tmp_path / "out") == 2
    assert "another process writes shards to" in capsys.readouterr().err


@pytest.mark.parametrize("change", [damage, lambda path: os.truncate(path, 900), lambda path: os.truncate(path, 0)])
def test_a_writer_that_goes_on_writes_damaged_shards_again(change, folder, shards, copied):
    (copied / "manifest.json").unlink()
    (copied / "index.arrow").unlink()
    change(copied / "shard-00002.arrow")
    assert data_shard(folder, copied, "--shard_size", TINY, "--shuffle", "false") == 0
    assert listing(copied) == listing(shards)


def test_a_folder_with_other_content_is_refused(folder, shards, copied, capsys):
    assert data_shard(folder, shards) == 2
    assert "contains shards already: give another folder, or remove it" in capsys.readouterr().err
    (copied / "manifest.json").unlink()
    assert data_shard(folder, copied, "--shard_size", "1") == 2
    assert "shard-00000.arrow was written for another table or with other options" in capsys.readouterr().err


def test_a_full_disk(folder, tmp_path, capsys):
    with small_disk(tmp_path / "small", "64k") as small:
        assert data_shard(folder, small / "shards", "--shard_size", TINY) == 2
        error = capsys.readouterr().err
        assert "is full: make room there, and repeat the command" in error
        assert not [path for path in (small / "shards").iterdir() if path.name.endswith(".partial")]
        assert len([*(small / "shards").iterdir()]) > 2


def bytes_table(manifest, path, **changes):
    """Twelve rows with an id and a picture as bytes."""
    with manifest.open() as file:
        records = [record for record in csv.DictReader(file) if record["image"]][:12]
    records = [record | {"image": (manifest.parent / record["image"]).read_bytes()} for record in records]
    columns = {name: [record[name] for record in records] for name in ("id", "image", "label")}
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    pq.write_table(pa.table(columns | {"split": splits} | changes), path)
    return path


def write_shards(data, processors, output, shard_bytes=2000):
    return ShardWriter(build(data, processors), output, shard_bytes, shuffle=False).write()


def test_files_that_the_table_contains(manifest, processors, tmp_path):
    """A column of bytes that is no input is left out; other bytes under the same ids are other shards."""
    images = {"image": processors["image"]}
    extra = [b"x" * 1000] * 12
    path = bytes_table(manifest, tmp_path / "rows.parquet", scan=extra)
    write_shards(ManifestData(str(path), num_workers=0), images, tmp_path / "out")
    assert "scan" not in read_table(str(tmp_path / "out/index.arrow")).columns
    data, table = (
        build(cls(str(place), num_workers=0), images)
        for cls, place in ((ShardData, tmp_path / "out"), (ManifestData, path))
    )
    for split in SPLITS:
        for sample, expected in zip(data.samples(split), table.samples(split), strict=True):
            assert_same_sample(sample, expected)
    (tmp_path / "out/manifest.json").unlink()
    other = bytes_table(manifest, tmp_path / "rows.parquet", image=extra)
    with pytest.raises(UserError, match="was written for another table"):
        write_shards(ManifestData(str(other), num_workers=0), images, tmp_path / "out")


def test_another_label(manifest, processors, tmp_path):
    images = {"image": processors["image"]}
    path = bytes_table(manifest, tmp_path / "rows.parquet", species=["cat", "dog"] * 6)
    write_shards(ManifestData(str(path), label="species", num_workers=0), images, tmp_path / "out")
    data = build(ShardData(str(tmp_path / "out"), num_workers=0), images)
    assert (data.classes, data.class_counts) == (["cat", "dog"], [3, 3])
    other = build(ShardData(str(tmp_path / "out"), label="label", num_workers=0), images)
    assert other.classes == ["high", "low"]
    with pytest.raises(UserError, match="classes contains 'cat' more than once"):
        ShardData(str(tmp_path / "out"), classes=["cat", "cat"])


def test_several_label_columns_need_their_task(manifest, processors, tmp_path):
    path = bytes_table(manifest, tmp_path / "rows.parquet", drama=[0, 1] * 6, crime=[1, 1, 0] * 4)
    data = ManifestData(str(path), label=["drama", "crime"], task=MultiLabel(), num_workers=0)
    write_shards(data, {"image": processors["image"]}, tmp_path / "out")
    with pytest.raises(UserError, match=r"data.label is \['drama', 'crime'\], but MultiClass reads one column"):
        ShardData(str(tmp_path / "out"))
    assert ShardData(str(tmp_path / "out"), task=MultiLabel()).classes == ["drama", "crime"]


def test_half_surrogate_pairs(manifest, processors, tmp_path):
    """Those of ids are written as in predictions, those of paths not at all; other texts with them are refused."""
    with manifest.open() as file:
        rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    path, options = tmp_path / "rows.jsonl", {"root": str(tmp_path), "num_workers": 0}
    shutil.copytree(manifest.parent, tmp_path, dirs_exist_ok=True)
    image = (tmp_path / rows[0]["image"]).rename(tmp_path / "caf\udce9.png")
    rows[0]["image"] = image.name
    path.write_text("\n".join(json.dumps(row | {"id": f"\ud800 {at}"}) for at, row in enumerate(rows)))
    write_shards(ManifestData(str(path), **options), processors, tmp_path / "out")
    ids = read_table(str(tmp_path / "out/index.arrow")).cells("id")
    assert sorted(ids) == sorted(f"\\ud800 {at}" for at in range(len(rows)))
    path.write_text("\n".join(json.dumps(row | {"text": f"\ud800 {at}"}) for at, row in enumerate(rows)))
    with pytest.raises(UserError, match=r"rows.jsonl, column 'text' has half a surrogate pair, which shards cannot"):
        write_shards(ManifestData(str(path), **options), processors, tmp_path / "other")
    assert not any((tmp_path / "other").iterdir())


def test_splits_are_drawn_as_for_the_table(table, folder, manifest, shards, processors):
    """By the hash of a row, which shards keep, although the table has no ids."""
    for options in ({"split": None, "seed": 3}, {"split": None, "fold": "2/3"}):
        expected = ManifestData(str(folder / "rows.csv"), root=str(manifest.parent), **options)
        found = build(ShardData(str(shards), **options), processors)
        rows = table.row_splits != -1
        assert np.array_equal(found.row_splits, build(expected, processors).row_splits[rows])


def test_shards_of_rows_that_were_trained_on_are_not_tested(folder, shards, trained, tmp_path, monkeypatch):
    """With the checkpoint of a run on the table, splits that are drawn with another seed are those of the run."""
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "runs"))
    config = ["--config", str(folder / "config.yaml"), "--trainer.logger.name", "table"]
    options = ["--data", "fusion_pl.data.ShardData", "--data.shards", str(shards), "--data.split", "null"]
    assert run("test", [*config, *options, "--data.seed", "5", "--ckpt_path", "best"]) == 0
    splits = [Path(f"lightning_logs/table/version_{run}/splits.csv").read_text().splitlines() for run in (0, 1)]
    assert [row.partition(",")[2] for row in splits[1]] == [row.partition(",")[2] for row in splits[0]]


class PathsOnly(Processor):
    """Opens paths, not the content of files."""

    reads_files = True

    def open(self, value, training=False):
        with open(value, "rb") as file:
            return file.read()

    def placeholder(self):
        return b""

    def __call__(self, values, training=False):
        return {"size": torch.tensor([len(value) for value in values])}


def test_a_processor_that_cannot_open_contents_is_refused_by_the_writer(folder, manifest, tmp_path):
    data = ManifestData(str(folder / "rows.csv"), root=str(manifest.parent), drop_empty=True)
    with pytest.raises(UserError, match=r"PathsOnly.open, of the input 'audio', opens paths but not the content"):
        write_shards(data, {"audio": PathsOnly()}, tmp_path / "out")


def test_a_table_without_files_is_refused(folder, processors, tmp_path):
    data = ManifestData(str(folder / "rows.csv"), num_workers=0)
    with pytest.raises(UserError, match=r"no input of .*rows.csv reads files: train with the table itself"):
        write_shards(data, {"text": processors["text"]}, tmp_path / "out")


def test_shards_in_the_place_of_a_table(shards):
    with pytest.raises(UserError, match=r"contains shards: read them with --data fusion_pl.data.ShardData"):
        ManifestData(str(shards)).classes  # noqa: B018


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard_size", "0"], "--shard_size must be a number of MiB above 0, not 0.0"),
        (["--data.root", "elsewhere"], "looked for"),
        (["--data", "fusion_pl.data.ShardData", "--data.shards", "SHARDS"], "contains shards already: give the table"),
    ],
)
def test_mistakes_of_the_writer(options, message, folder, shards, tmp_path, capsys):
    options = [str(shards) if word == "SHARDS" else word for word in options]
    assert data_shard(folder, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_the_writer_names_a_file_that_vanishes(folder, manifest, tmp_path, capsys, monkeypatch):
    """Between the check of the table and the reading of its files."""
    shutil.copytree(manifest.parent, tmp_path / "files")
    setup = ManifestData.setup

    def remove_after_check(data, stage):
        setup(data, stage)
        (tmp_path / "files/0.png").unlink()

    monkeypatch.setattr(ManifestData, "setup", remove_after_check)
    assert data_shard(folder, tmp_path / "out", "--data.root", tmp_path / "files") == 2
    assert re.search(r"rows.csv, row 2, column 'image': .*0.png.*: correct or empty the cell", capsys.readouterr().err)


def test_the_command_that_is_printed_trains(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_shard(folder, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert re.search(r"48 rows in 1 shards? of up to [\d.]+ MiB", out)
    options = re.search("Train with them: (.+)", out)[1].split()
    assert run("fit", ["--config", str(folder / "config.yaml"), *options, "--dry_run"]) == 0


# ------------------------------------------------------------------------------------------------------------- at a URL
@pytest.fixture
def server(shards, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "WAIT", 0.001)
    monkeypatch.setattr(remote, "TIMEOUT", 2.0)
    monkeypatch.setenv("FUSION_PL_CACHE", str(tmp_path / "caches"))
    remote._filesystem.cache_clear()
    with FileServer() as server:
        server.files |= {f"/shards/{path.name}": path.read_bytes() for path in shards.iterdir()}
        yield server
    remote._filesystem.cache_clear()


def test_an_epoch_downloads_each_shard_once(server, table, processors):
    """With a cache that holds a window of the shards only, and a server that fails at times."""
    names = [path for path in server.files if "shard-" in path]
    server.faults = {names[1]: [500, 503], names[2]: ["breaks off"], names[3]: ["stalls"]}
    limit = 3 * max(len(server.files[name]) for name in names) / remote.LOW + len(server.files["/shards/index.arrow"])
    data = ShardData(f"{server.url}/shards", num_workers=0, shuffle_window=2, remote_cache_limit=limit / 2**30)
    build(data, processors)
    assert not any(path in names for path, _ in server.requests)  # classes and splits are known without a shard
    expected = {sample.id: sample for sample in table.samples("train")}
    order = EpochSampler(data.samples("train"), 5, 1, 0, lambda: 0, data.train_sampling, 4)
    for row in order:
        sample = data.samples("train")[row]
        assert_same_sample(sample, expected.pop(sample.id))
    assert not expected
    loads = [path for path, range_ in server.requests if path in names and range_ is None]
    assert len(set(loads)) == len(set(data.train_sampling.shards.tolist())) > 8
    assert len(loads) <= len(names) + 4  # one for each fault
    files = [path.stat().st_size for path in data.remote.folder.iterdir()]
    assert sum(files) <= limit


def test_a_shard_that_the_server_lacks(server, processors):
    del server.files["/shards/shard-00001.arrow"]
    data = build(ShardData(f"{server.url}/shards", num_workers=0), processors)
    row = int(data.shards.starts[1])
    with pytest.raises(LoadError, match=r"http://.*/shards/shard-00001.arrow does not exist"):
        data.samples("predict")[row]


def test_shards_that_were_written_again_at_the_same_url(server, folder, tmp_path, processors):
    """Copies of the former shards in the cache are not mixed with the index of the new ones."""
    first = build(ShardData(f"{server.url}/shards", num_workers=0), processors)
    list(first.samples("predict"))
    assert data_shard(folder, tmp_path / "new", "--shard_size", TINY) == 0
    server.files = {f"/shards/{path.name}": path.read_bytes() for path in (tmp_path / "new").iterdir()}
    second = build(ShardData(f"{server.url}/shards", num_workers=0), processors)
    expected = build(ShardData(str(tmp_path / "new"), num_workers=0), processors)
    for sample, other in zip(second.samples("predict"), expected.samples("predict"), strict=True):
        assert_same_sample(sample, other)


def test_a_cache_without_room_for_a_window_is_refused(server, processors):
    data = ShardData(f"{server.url}/shards", shuffle_window=4, remote_cache_limit=2**-16)
    with pytest.raises(UserError, match=r"4 shards of http.* take up to .* GiB, more than 60% of the cache: raise"):
        build(data, processors)
