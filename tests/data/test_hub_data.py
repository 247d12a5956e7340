"""Data sets of the ``datasets`` library: the same rows, checks and metrics as a table."""

from __future__ import annotations

import csv
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from fusion_pl.cli.run import run
from fusion_pl.data import HubData, ManifestData
from fusion_pl.tasks import MultiLabel
from fusion_pl.types import UserError
from tests.texts import results

SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


@pytest.fixture(autouse=True)
def _no_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def to_dataset(folder, records, as_bytes=True):
    """Images and audio as bytes or as absolute paths, labels as ``ClassLabel`` in another order than the alphabet."""
    names = sorted({record["label"] for record in records}, reverse=True)

    def media(name):
        if not name:
            return None
        return {"bytes": (folder / name).read_bytes() if as_bytes else None, "path": str(folder / name)}

    columns = {name: [record[name] for record in records] for name in ("id", "text")}
    columns |= {name: [media(record[name]) for record in records] for name in ("image", "audio")}
    types = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {name: pa.array(cells, types if name in ("image", "audio") else None) for name, cells in columns.items()}
    )
    table = table.append_column("label", pa.array([names.index(record["label"]) for record in records]))
    features = {"id": Value("string"), "text": Value("string"), "image": Image(), "audio": Audio(sampling_rate=16_000)}
    return Dataset(table).cast(Features(features | {"label": ClassLabel(names=names)}))


def save(folder, records, as_bytes=True, name="hub"):
    parts = {
        SPLIT_NAMES[split]: to_dataset(folder, [record for record in records if record["split"] == split], as_bytes)
        for split in SPLIT_NAMES
        if any(record["split"] == split for record in records)
    }
    DatasetDict(parts).save_to_disk(str(folder / name))
    if not as_bytes:  # save_to_disk reads the files
        for split, part in parts.items():
            with pa.ipc.new_stream(str(next((folder / name / split).glob("*.arrow"))), part.data.schema) as writer:
                writer.write_table(part.data.table)
    return str(folder / name)


def build(processors, dataset, stage="fit", **options):
    data = HubData(dataset, num_workers=0, **options)
    data.processors = processors
    data.setup(stage)
    return data


@pytest.fixture
def from_table(toy, processors):
    data = ManifestData(toy.write(), num_workers=0)
    data.processors = processors
    data.setup("fit")
    return data


def assert_same_samples(data, other):
    for split in SPLIT_NAMES:
        assert len(data.samples(split)) == len(other.samples(split)) > 0
        for sample, expected in zip(data.samples(split), other.samples(split), strict=True):
            assert (sample.id, sample.target) == (expected.id, expected.target)
            assert sample.inputs["text"] == expected.inputs["text"]
            assert np.array_equal(np.asarray(sample.inputs["image"]), np.asarray(expected.inputs["image"]))
            assert torch.equal(sample.inputs["audio"].samples, expected.inputs["audio"].samples)
            assert sample.inputs["audio"].rate == expected.inputs["audio"].rate


# ---------------------------------------------------------------------------------------------------------- the samples
@pytest.mark.parametrize("as_bytes", [True, False])
def test_samples_are_those_of_the_table(toy, processors, from_table, as_bytes):
    data = build(processors, save(toy.folder, toy.records, as_bytes), root=str(toy.folder))
    assert data.classes == from_table.classes == ["cat", "dog"]
    assert data.class_counts == from_table.class_counts
    assert_same_samples(data, from_table)


def test_workers_memory_map_the_files_of_the_data_set(toy, processors, from_table, monkeypatch):
    monkeypatch.setattr("fusion_pl.tables.table.MAX_PIPED_BYTES", 0)
    monkeypatch.setattr("fusion_pl.tables.table.write_temporary", None)  # nothing is copied
    data = build(processors, save(toy.folder, toy.records))
    samples = pickle.loads(pickle.dumps(data.samples("val")))
    assert [file.path for file in samples.table.files] == list(map(str, data.files))
    assert samples[1].id == from_table.samples("val")[1].id
    assert np.array_equal(
        np.asarray(samples[1].inputs["image"]), np.asarray(from_table.samples("val")[1].inputs["image"])
    )
    assert len(pickle.dumps(data.samples("val"))) < 10_000


def test_class_names_that_are_an_input_reach_the_workers(toy, processors, monkeypatch):
    monkeypatch.setattr("fusion_pl.tables.table.MAX_PIPED_BYTES", 0)
    data = build({"text": processors["text"]}, save(toy.folder, toy.records), inputs={"text": "label"})
    samples = pickle.loads(pickle.dumps(data.samples("train")))
    assert [samples[row].inputs["text"] for row in range(3)] == ["dog", "cat", "dog"]


def test_images_are_not_copied_for_a_column_that_no_file_has(toy, processors, from_table, monkeypatch):
    """Class names are an input beside images: only the names are written to a temporary file."""
    monkeypatch.setattr("fusion_pl.tables.table.MAX_PIPED_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(toy.folder))
    parts = {"text": processors["text"], "image": processors["image"]}
    data = build(parts, save(toy.folder, toy.records), inputs={"text": "label"})
    samples = pickle.loads(pickle.dumps(data.samples("train")))
    (temporary,) = toy.folder.glob("fusion-pl-*.arrow")
    assert pa.ipc.open_file(str(temporary)).schema.names == ["label"]
    for row in range(3):
        expected = from_table.samples("train")[row]
        assert np.array_equal(np.asarray(samples[row].inputs["image"]), np.asarray(expected.inputs["image"]))
        assert samples[row].inputs["text"] == from_table.classes[expected.target]


# ----------------------------------------------------------------------------------------------------------- the splits
def test_a_single_split_is_drawn_like_a_table_without_split_column(toy, processors):
    for record in toy.records:
        record["split"] = "train"
    data = build(processors, save(toy.folder, toy.records))
    table = ManifestData(toy.without("split").write(), num_workers=0)
    table.processors = processors
    table.setup("fit")
    for split in SPLIT_NAMES:
        assert [sample.id for sample in data.samples(split)] == [sample.id for sample in table.samples(split)] != []


def test_without_validation_rows_some_train_rows_are_drawn(toy, processors, caplog):
    toy.records = [record for record in toy.records if record["split"] != "val"]
    with caplog.at_level(logging.INFO):
        data = build(processors, save(toy.folder, toy.records))
    assert "has no validation rows: drew 1 of the train rows" in caplog.text
    assert len(data.samples("test")) == 2


def test_splits_with_other_names_are_selected(toy, processors, caplog):
    whole = to_dataset(toy.folder, toy.records)
    parts = {"train": whole.select(range(6)), "matched": whole.select(range(6, 9)), "extra": whole.select(range(9, 12))}
    DatasetDict(parts).save_to_disk(str(toy.folder / "hub"))
    with caplog.at_level(logging.INFO):
        data = build(processors, str(toy.folder / "hub"))
    assert "left out the splits matched, extra; select them with data.split_names" in caplog.text
    assert len(data.table) == 6
    data = build(processors, str(toy.folder / "hub"), split_names={"val": "matched", "train": "train"})
    assert [sample.id for sample in data.samples("val")] == ["s6", "s7", "s8"]
    assert [sample.id for sample in data.samples("train")] == [f"s{row}" for row in range(6)]
    with pytest.raises(
        UserError, match=r"data.split_names has 'none', but the splits of .*hub are train, matched, extra"
    ):
        build(processors, str(toy.folder / "hub"), split_names={"val": "none"})
    with pytest.raises(UserError, match=r"data.split_names has the split 'dev', expected train, val, test"):
        HubData("x", split_names={"dev": "none"})
    DatasetDict(dev=parts["train"], validation=parts["matched"]).save_to_disk(str(toy.folder / "twice"))
    with pytest.raises(
        UserError, match=r"the splits of .*twice are dev, validation: select them with data.split_names"
    ):
        build(processors, str(toy.folder / "twice"))


# ----------------------------------------------------------------------------------------------------------- the checks
def test_problems_have_row_and_column(toy, processors):
    toy.records[9]["id"] = "s0"
    with pytest.raises(
        UserError, match=r"hub has 1 problem:\n  row 10, column 'id': the id 's0' was already used in row 1"
    ):
        build(processors, save(toy.folder, toy.records))
    with pytest.raises(UserError, match=r"there is no column 'species' for the label; the columns are 'id', 'text'"):
        build(processors, str(toy.folder / "hub"), label="species")


def test_paths_outside_the_folder_are_refused(toy, processors):
    path = save(toy.folder, toy.records, as_bytes=False)
    with pytest.raises(UserError, match=r"row 1, column 'image': .*0 ü.png lies outside the root .*hub"):
        build(processors, path)
    build(processors, path, allow_outside=True)


def test_a_row_without_a_class_has_an_empty_label(toy, processors):
    whole = to_dataset(toy.folder, toy.records)
    whole = Dataset(whole.data.table.set_column(4, "label", pa.array([-1] + [row % 2 for row in range(11)])))
    whole = whole.cast(Features({**to_dataset(toy.folder, toy.records).features}))
    whole.save_to_disk(str(toy.folder / "hub"))
    with pytest.raises(UserError, match=r"row 1, column 'label': the label is empty"):
        build(processors, str(toy.folder / "hub"))


def test_a_folder_of_images_per_class(toy, processors):
    for record in toy.records:
        folder = toy.folder / "pets" / record["split"] / record["label"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(toy.folder / record["image"], folder)
    data = build({"image": processors["image"]}, str(toy.folder / "pets"))
    assert data.classes == ["cat", "dog"]
    assert [len(data.samples(split)) for split in SPLIT_NAMES] == [8, 2, 2]


# ----------------------------------------------------------------------------------------------------------- the errors
def test_a_data_set_that_does_not_exist(tmp_path, processors, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the data set 'nobody/none' cannot be loaded \(.*\): check data.dataset"):
        build(processors, "nobody/none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the data set '.*empty' cannot be loaded \(.*\): check data.dataset"):
        build(processors, str(tmp_path / "empty"))


def test_a_damaged_data_set_is_one_sentence(toy, processors):
    path = save(toy.folder, toy.records)
    file = next(Path(path, "train").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"the data set .*hub'? (is damaged|cannot be loaded) \("):
        build(processors, path)


def test_the_missing_package_is_named(processors, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs datasets: pip install 'fusion-pl\[hub\]'"):
        build(processors, "nobody/none")


# ----------------------------------------------------------------------------------------------------------- a real run
def run_fit(folder, data, monkeypatch):
    folder.mkdir()
    monkeypatch.chdir(folder)
    parts = {"text": "fusion_pl.encoders.TinyText", "image": "fusion_pl.encoders.TinyImage"}
    encoders = {name: {"class_path": path, "init_args": {"dim": 8}} for name, path in parts.items()}
    encoders["audio"] = {"class_path": "fusion_pl.encoders.TinyAudio", "init_args": {"dim": 8}}
    config = {
        "seed_everything": 0,
        "model": {"encoders": encoders, "fusion": {"class_path": "fusion_pl.fusion.Concat", "init_args": {"dim": 8}}},
        "data": data,
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run("fit", ["--config", "config.yaml"])
    run("test", ["--config", "config.yaml"])
    fitted, tested = (results(Path(f"lightning_logs/version_{number}")) for number in (0, 1))
    assert tested["metrics"]["test/accuracy"] > 0
    return fitted["metrics"] | tested["metrics"], Path("lightning_logs/version_0/splits.csv").read_text().splitlines()


def test_metrics_are_those_of_the_same_rows_as_csv_and_parquet(manifest, tmp_path, monkeypatch):
    with manifest.open() as file:
        records = list(csv.DictReader(file))
    columns = {name: [record[name] or None for record in records] for name in records[0]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    dataset = to_dataset(manifest.parent, records)
    parts = {"train": range(24), "validation": range(24, 36), "test": range(36, 48)}
    DatasetDict({name: dataset.select(rows) for name, rows in parts.items()}).save_to_disk(str(tmp_path / "hub"))
    options = {"batch_size": 7, "num_workers": 1}
    table = {"class_path": "fusion_pl.data.ManifestData", "init_args": {"manifest": str(manifest)} | options}
    parquet = {"manifest": str(tmp_path / "rows.parquet"), "root": str(manifest.parent)}
    hub = {"class_path": "fusion_pl.data.HubData", "init_args": {"dataset": str(tmp_path / "hub")} | options}
    expected, rows = run_fit(tmp_path / "1", table, monkeypatch)
    found, _ = run_fit(tmp_path / "2", table | {"init_args": parquet | options}, monkeypatch)
    assert found == expected
    found, others = run_fit(tmp_path / "3", hub, monkeypatch)
    assert found == expected
    assert [row.partition(",")[2] for row in others] == [row.partition(",")[2] for row in rows]


def test_a_data_set_of_the_hub_is_used_from_the_cache_without_a_connection(toy, tmp_path):
    """The cache is that of a data set of local files, under the name that one of the hub has."""
    save(toy.folder, toy.records)
    script = (
        "import datasets, pathlib, shutil, sys\n"
        "datasets.disable_progress_bars()\n"
        "built = datasets.load_dataset(sys.argv[1])['train'].cache_files[0]['filename']\n"
        "name = pathlib.Path(datasets.config.HF_DATASETS_CACHE, 'someone___pets/default/0.0.0')\n"
        "shutil.copytree(pathlib.Path(built).parent, name / 'abc')\n"
        "for file in (name / 'abc').glob('*.arrow'):\n"
        "    file.rename(file.with_name('pets-' + file.name.rpartition('-')[2]))\n"
        "from fusion_pl.data import HubData\n"
        "data = HubData('someone/pets')\n"
        "print(len(data.table), data.classes, len(data.files), data.root)\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script, str(toy.folder / "hub")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split("\n")[0] == f"12 ['cat', 'dog'] 3 {tmp_path / 'cache'}", done.stderr


def test_lists_of_a_fixed_number_of_class_labels(tmp_path):
    features = Features({"text": Value("string"), "tags": List(ClassLabel(names=["war", "drama"]), length=2)})
    tags = [[0, 1], None, *([row % 2] * 2 for row in range(10))]
    part = Dataset.from_dict({"text": [f"text {row}" for row in range(12)], "tags": tags}, features=features)
    part.save_to_disk(tmp_path / "set")
    data = HubData(str(tmp_path / "set"), label="tags", task=MultiLabel(), num_workers=0)
    assert data.table.cells("tags")[:4] == [["war", "drama"], None, ["war", "war"], ["drama", "drama"]]


def test_lists_of_class_labels_are_several_labels(tmp_path):
    names = ["war", "drama", "crime"]
    features = Features({"text": Value("string"), "tags": List(ClassLabel(names=names))})
    tags = [[0, 2], [], *([row % 3] for row in range(10))]
    part = Dataset.from_dict({"text": [f"text {row}" for row in range(12)], "tags": tags}, features=features)
    part.save_to_disk(tmp_path / "set")
    data = HubData(str(tmp_path / "set"), label="tags", task=MultiLabel(), num_workers=0)
    assert data.classes == sorted(names)
    assert data.targets.tolist() == [[int(names.index(name) in row) for name in data.classes] for row in tags]
