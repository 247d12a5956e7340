"""No file outside the root is read, whatever the type of the column that contains its path."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fusion_pl.cli.run import run
from fusion_pl.data import ManifestData
from fusion_pl.data.rows import InputColumn
from fusion_pl.tables.table import Cells, Table
from fusion_pl.types import UserError

URL = "http://127.0.0.1:9/secret.png"  # no request is sent


def media(paths, kind, as_bytes=None):
    bytes_array = pa.nulls(len(paths), pa.binary()) if as_bytes is None else as_bytes
    return pa.StructArray.from_arrays([bytes_array, kind(paths)], ["bytes", "path"])


def run_end_encoded(paths):
    return pa.RunEndEncodedArray.from_arrays(pa.array(range(1, len(paths) + 1), pa.int32()), pa.array(paths))


def union(paths):
    types, numbers = pa.array([0] * len(paths), pa.int8()), pa.array(range(len(paths)))
    return pa.UnionArray.from_sparse(types, [pa.array(paths), numbers])


def strings(paths):
    return pa.array(paths)


def views(paths):
    return pa.array(paths, pa.string_view())


def categories(paths):
    return pa.array(paths).dictionary_encode()


COLUMNS = {
    "string": strings,
    "large string": lambda paths: pa.array(paths, pa.large_string()),
    "string view": views,
    "dictionary": categories,
    "dictionary of views": lambda paths: pa.DictionaryArray.from_arrays(pa.array(range(len(paths))), views(paths)),
    "run-end encoded": run_end_encoded,
    "union": union,
    "media": lambda paths: media(paths, strings),
    "media of a view": lambda paths: media(paths, views),
    "media of a dictionary": lambda paths: media(paths, categories),
    "media of a run-end encoded path": lambda paths: media(paths, run_end_encoded),
    "dictionary of media": lambda paths: pa.DictionaryArray.from_arrays(
        pa.array(range(len(paths))), media(paths, strings)
    ),
}


def write(toy, kind, paths, suffix):
    columns = {name: [record[name] for record in toy.records] for name in ("id", "label", "split")}
    data = pa.table(columns | {"image": pa.chunked_array([kind(paths[:5]), kind(paths[5:])])})
    path = toy.folder / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(data, path)
    else:
        with pa.ipc.new_stream(str(path), data.schema) as writer:
            writer.write_table(data)
    return str(path)


def build(path, processors, **options):
    data = ManifestData(path, num_workers=0, **options)
    data.processors = {"image": processors["image"]}
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, "arrow") for name in COLUMNS), ("string", "parquet"), ("media of a dictionary", "parquet")],
)
def test_paths_of_every_type_are_checked_and_opened(toy, processors, name, suffix):
    paths = [record["image"] for record in toy.records]
    data = build(write(toy, COLUMNS[name], paths, suffix), processors)
    for table in (data.table, pickle.loads(pickle.dumps(data.table))):
        assert table.cells("image") == paths
    assert [np.asarray(sample.inputs["image"]).max() for sample in data.samples("val")] == [80, 90]
    paths[0], paths[1], paths[2] = "../secret.png", URL, "none.png"
    (toy.folder / "../secret.png").write_bytes((toy.folder / paths[3]).read_bytes())
    with pytest.raises(UserError) as error:
        build(write(toy, COLUMNS[name], paths, suffix), processors)
    header, first, second, third = str(error.value).split("\n  ")
    assert header.endswith("has 3 problems:")
    assert first.startswith("row 1, column 'image': ")
    assert "secret.png lies outside the root" in first
    assert f"{URL} lies outside the root" in second
    assert "the file 'none.png' does not exist" in third


@pytest.mark.parametrize("kind", ["text in place of bytes", "a path that is a union"])
def test_a_struct_that_only_looks_like_media_is_not_a_path(toy, processors, kind):
    def build_column(paths):
        if kind == "text in place of bytes":
            return media(paths, strings, as_bytes=pa.array(paths))
        return media(paths, union)

    (toy.folder / "../secret.png").write_bytes((toy.folder / toy.records[3]["image"]).read_bytes())
    path = write(toy, build_column, ["../secret.png"] * 12, "arrow")
    with pytest.raises(UserError, match="row 1, column 'image'"):
        build(path, processors).samples("train")[0]


@pytest.mark.parametrize("path", ["../secret.png", URL])
def test_a_path_that_no_check_has_seen_is_not_opened(toy, processors, path):
    """The place at which files are opened refuses it as well."""
    (toy.folder / "../secret.png").write_bytes((toy.folder / toy.records[3]["image"]).read_bytes())
    table = Table("m.csv", pa.table({"image": [path]}), np.array([2]))
    cells = Cells(table, "image", np.array([0]), str(toy.folder))
    column = InputColumn("image", "image", processors["image"], cells)
    for open_cell in (column.open, lambda cell: column.open_local(cell, lambda _: "opened")):
        with pytest.raises(UserError, match=r"secret.png lies outside the root .*: .*data.allow_outside: true$"):
            open_cell(cells[0])
    allowed = replace(column, cells=replace(cells, allow_outside=True))
    assert allowed.open_local(cells[0], lambda _: "opened") == "opened"


def test_the_command_refuses_a_stranger_s_parquet_file(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fusion-pl"])
    monkeypatch.chdir(tmp_path)
    paths = ["../secret.png", *(record["image"] for record in toy.records[1:])]
    path = write(toy, COLUMNS["media of a dictionary"], paths, "parquet")
    config = {
        "model": {
            "encoders": {"image": {"class_path": "fusion_pl.encoders.TinyImage"}},
            "fusion": {"class_path": "fusion_pl.fusion.Mean"},
        },
        "data": {"class_path": "fusion_pl.data.ManifestData", "init_args": {"manifest": path, "num_workers": 0}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert run("fit", ["--config", "config.yaml"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "row 1, column 'image': " in message
    assert "lies outside the root" in message
    assert "Traceback" not in message
