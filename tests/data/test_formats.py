"""The same rows in every format, and what only some formats can hold."""

from __future__ import annotations

import datetime
import json
import math
import pickle
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from fusion_pl.data import ManifestData, text_table
from fusion_pl.data.hashes import row_hashes, table_hash
from fusion_pl.data.read_table import read_table
from fusion_pl.data.splits import SPLITS
from tests.data import slow_splits
from tests.data.conftest import write_manifest

FORMATS = ["m.csv", "m.tsv", "m.jsonl", "m.parquet", "m.feather", "m.arrow", "parts"]


def write_arrow(path, data, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(path), data.schema, options=options) as writer:
        writer.write_table(data, max_chunksize=5)


def write(folder, name, records):
    """Write the records in one of the formats; cells of Arrow files have their own types."""
    path = folder / name
    if path.suffix in {".csv", ".tsv", ".jsonl"}:
        return str(write_manifest(path, records))
    names = list(dict.fromkeys(name for record in records for name in record))
    data = pa.table({name: [record.get(name) for record in records] for name in names})
    if path.suffix == ".parquet":
        pq.write_table(data, path, row_group_size=5)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(data, str(path), compression="lz4")
    elif path.suffix == ".arrow":
        write_arrow(path, data)
    else:
        path.mkdir(exist_ok=True)
        (path / "second").mkdir(exist_ok=True)
        pq.write_table(data.slice(0, 5), path / "a.parquet")
        pq.write_table(data.slice(5), path / "second" / "b.parquet")
    return str(path)


def cells(table):
    return {name: table.cells(name) for name in table.columns}


# ----------------------------------------------------------------------------------------------------------- same rows
@pytest.mark.parametrize("split", [True, False])
def test_every_format_gives_the_same_samples_ids_splits_and_hashes(toy, processors, split):
    if not split:
        toy.without("split")
    for at, record in enumerate(toy.records):
        record["number"] = at if at % 3 else None
        record["half"] = at + 0.5
    toy.records[3]["text"] = None
    found = {}
    for name in FORMATS:
        data = ManifestData(write(toy.folder, name, toy.records), num_workers=0, root=str(toy.folder))
        data.processors = processors
        data.setup("fit")
        samples = {split: [data.samples(split)[at] for at in range(len(data.samples(split)))] for split in SPLITS}
        found[name] = {
            split: [
                (
                    sample.id,
                    sample.target,
                    sample.inputs.get("text"),
                    np.asarray(sample.inputs["image"]).mean(),
                    sample.inputs["audio"].samples.mean().item(),
                )
                for sample in some
            ]
            for split, some in samples.items()
        }
        found[name] |= {key: np.asarray(value).tolist() for key, value in data.state_dict().items()}
    assert all(other == found["m.csv"] for other in found.values())
    assert sum(len(found["m.csv"][split]) for split in SPLITS) == 12


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("with_id", [True, False])
def test_hashes_are_those_of_a_slow_direct_version(tmp_path, monkeypatch, name, with_id):
    monkeypatch.setattr("fusion_pl.data.hashes.CHUNK_ROWS", 3)
    rng = random.Random(0)
    records = [
        {"text": rng.choice([None, 'ü"\\\n x', "\N{PILE OF POO}", "plain"]), "b": rng.choice([None, 3, -7])}
        | ({"id": rng.choice([f"s{at}", f"s{at}", None])} if with_id else {})
        | {"label": "a", "split": "train"}
        for at in range(20)
    ]
    table = read_table(write(tmp_path, name, records))
    columns = {key: [None if row[key] is None else str(row[key]) for row in records] for key in records[0]}
    expected = slow_splits.row_hashes(columns, 20, {"label", "split"})
    assert row_hashes(table, {"label", "split"}).tolist() == expected
    assert table_hash(table) == slow_splits.table_hash(columns, 20)


def test_half_surrogate_pairs_of_json_are_kept(tmp_path):
    records = [{"id": "half \ud800", "text": "a"}, {"id": "b", "text": "\udfff pair"}]
    table = read_table(write(tmp_path, "m.jsonl", records))
    table = pickle.loads(pickle.dumps(table))
    columns = {"id": ["half \ud800", "b"], "text": ["a", "\udfff pair"]}
    assert cells(table) == columns
    assert [table.cell("text", row) for row in range(2)] == columns["text"]
    assert table.factorize("id")[1] == columns["id"]
    assert row_hashes(table, ()).tolist() == slow_splits.row_hashes(columns, 2, ())


# --------------------------------------------------------------------------------------------------------- chunks
def test_a_file_of_many_chunks_is_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_table, "CHUNK_ROWS", 3)
    lines = ["a,b", *(f"{at},{at * at}" for at in range(10)), "", "1,2,3", "11,", ""]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    table = read_table(str(tmp_path / "m.csv"))
    assert table.row_numbers.tolist() == [*range(2, 12), 14]
    assert cells(table) == {
        "a": [*map(str, range(10)), "11"],
        "b": [*(str(at * at) for at in range(10)), None],
    }
    assert list(map(str, table.problems)) == ["row 13: the row has 3 cells, the header has 2"]
    assert [table.cell("b", row) for row in range(11)] == table.cells("b")
    assert table.cells("a", 2, 7) == ["2", "3", "4", "5", "6"]


def test_a_key_of_json_lines_may_appear_late(tmp_path, monkeypatch):
    monkeypatch.setattr(text_table, "CHUNK_ROWS", 2)
    records = [{}, {}, {}, {"a": 1}, {"b": True, "a": None}, {"a": math.nan}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert cells(read_table(str(tmp_path / "m.jsonl"))) == {
        "a": [None, None, None, "1", None, None],
        "b": [None, None, None, None, "true", None],
    }


# ---------------------------------------------------------------------------------------------------------- own types
TYPED = {
    "ints": (pa.int32(), [3, None, -1], ["3", None, "-1"]),
    "floats": (pa.float64(), [0.1, math.nan, 3.0], ["0.1", None, "3.0"]),
    "singles": (pa.float32(), [0.1, None, 1e20], ["0.1", None, "1e+20"]),
    "bools": (pa.bool_(), [True, None, False], ["true", None, "false"]),
    "dates": (pa.date32(), [datetime.date(2024, 1, 2), None, None], ["2024-01-02", None, None]),
    "times": (
        pa.timestamp("ns"),
        [None, 1, 10**18],
        [None, "1970-01-01 00:00:00.000000001", "2001-09-09 01:46:40.000000000"],
    ),
    "decimals": (pa.decimal128(5, 2), [Decimal("1.50"), None, None], ["1.50", None, None]),
    "large": (pa.large_string(), ["a", "", None], ["a", "", None]),
    "views": (pa.string_view(), ["a", "", None], ["a", "", None]),
    "categories": (pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"], ["a", None, "a"]),
    "bytes": (pa.binary(), [b"\x00\xff", None, b""], [b"\x00\xff", None, b""]),
    "lists": (pa.list_(pa.float64()), [[1.0, 2.5], None, []], [[1.0, 2.5], None, []]),
    "nothing": (pa.null(), [None] * 3, [None] * 3),
    "media": (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        [{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "b.png"}, None],
        [b"x", "b.png", None],
    ),
}
NOT_TEXT = {"bytes", "lists", "media"}


@pytest.mark.parametrize("name", TYPED)
def test_cells_of_an_arrow_column(tmp_path, name):
    kind, values, expected = TYPED[name]
    write_arrow(tmp_path / "m.arrow", pa.table({"x": pa.array(values, kind)}))
    table = read_table(str(tmp_path / "m.arrow"))
    for one in (table, pickle.loads(pickle.dumps(table))):
        assert one.cells("x") == expected
        assert [one.cell("x", row) for row in range(3)] == expected
        assert one.is_missing("x").tolist() == [cell is None for cell in expected]
        assert one.is_text("x") == (name not in NOT_TEXT)
        codes, texts = one.factorize("x")
        assert [None if code < 0 else texts[code] for code in codes] == [
            cell if isinstance(cell, str) else None for cell in expected
        ]
    table_hash(table)


def test_the_index_of_a_data_frame_is_ignored(tmp_path):
    pq.write_table(pa.table({"a": ["x"], "__index_level_0__": [7]}), tmp_path / "m.parquet")
    assert read_table(str(tmp_path / "m.parquet")).columns == ["a"]
