"""The same rows in every format, and what only some formats can hold."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import pickle
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

from fusion_pl.data import ManifestData
from fusion_pl.tables import text_table
from fusion_pl.tables.checks import find_outside_paths
from fusion_pl.tables.hashes import row_hashes, table_hash
from fusion_pl.tables.read_table import read_table
from fusion_pl.tables.splits import SPLITS
from fusion_pl.types import UserError
from tests.commands import forkserver_context, run_command
from tests.data.conftest import write_manifest
from tests.disk import small_disk
from tests.tables import slow_splits

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
    monkeypatch.setattr("fusion_pl.tables.hashes.CHUNK_ROWS", 3)
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


@pytest.mark.parametrize("record", [{"text": "a", "tags": ["dr\ud800"]}, {"te\ud800": "a"}])
def test_half_surrogate_pairs_in_lists_and_names_are_refused(tmp_path, record):
    with pytest.raises(UserError, match=r"m.jsonl has half a surrogate pair \('\\ud800'\) in a list"):
        read_table(write(tmp_path, "m.jsonl", [record]))


def test_few_rows_of_large_cells_are_read_from_parquet_at_once(tmp_path, monkeypatch):
    """Arrow cannot read more than 2 GiB of a column of media at once."""
    contents = [{"bytes": os.urandom(1000), "path": None} for _ in range(50)]
    pq.write_table(pa.table({"image": contents}), tmp_path / "m.parquet")
    monkeypatch.setattr("fusion_pl.tables.read_table.BATCH_BYTES", 10_000)
    iter_batches, sizes = pq.ParquetFile.iter_batches, []

    def note_sizes(*arguments):
        for batch in iter_batches(*arguments):
            sizes.append(batch.nbytes)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", note_sizes)
    assert read_table(str(tmp_path / "m.parquet")).cells("image") == [content["bytes"] for content in contents]
    assert max(sizes) < 12_000


# --------------------------------------------------------------------------------------------------------- chunks
@pytest.mark.parametrize("max_memory", [0, 2**24])
def test_a_file_of_many_chunks_is_read_as_a_whole(tmp_path, monkeypatch, max_memory):
    monkeypatch.setattr(text_table, "CHUNK_ROWS", 3)
    monkeypatch.setattr(text_table, "MAX_MEMORY_BYTES", max_memory)
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
    assert len(table.files) == (max_memory == 0)


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_large_table_needs_space_for_a_temporary_file(tmp_path, monkeypatch, name):
    path = write(tmp_path, name, [{"a": "x" * 1000, "b": str(at)} for at in range(200)])
    for module in ("text_table", "read_table"):
        monkeypatch.setattr(f"fusion_pl.tables.{module}.MAX_MEMORY_BYTES", 1000)
    with small_disk(tmp_path / "small", "64k") as small:
        monkeypatch.setattr("tempfile.tempdir", str(small))
        message = (
            rf"^a temporary copy of the table .* to {small} \(No space left on device\): free space .* set TMPDIR to"
        )
        with pytest.raises(UserError, match=message):
            read_table(path)


def test_a_key_of_json_lines_may_appear_late(tmp_path, monkeypatch):
    monkeypatch.setattr(text_table, "CHUNK_ROWS", 2)
    records = [{}, {}, {}, {"a": 1}, {"b": True, "a": None}, {"a": math.nan}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert cells(read_table(str(tmp_path / "m.jsonl"))) == {
        "a": [None, None, None, "1", None, None],
        "b": [None, None, None, None, "true", None],
    }


@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
@pytest.mark.parametrize(
    "cells",
    [
        [[], [[1, 2]], None, [], [[3, 4], [5, 6]]],
        [[[1, 2]], [], None, [[]]],
        [[], [1, 2], None],
        [None, [], []],
    ],
)
def test_an_empty_list_of_json_lines_has_any_depth(tmp_path, monkeypatch, cells, chunk_rows):
    monkeypatch.setattr(text_table, "CHUNK_ROWS", chunk_rows)
    table = read_table(write(tmp_path, "m.jsonl", [{"x": cell} for cell in cells]))
    assert table.problems == []
    assert table.cells("x") == cells


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[], "a"], "row 2, column 'x': the cell is a str, expected a list"),
        ([[], [[1]], [1]], "row 3, column 'x': the cell is a list, expected a list of lists of numbers"),
        ([[], [1], [[1]]], "row 3, column 'x': the cell is a list, expected a list of numbers"),
        (["a", []], "row 2, column 'x': the cell is a list, expected text or a number"),
    ],
)
def test_lists_of_json_lines_with_another_depth_are_refused(tmp_path, cells, message):
    table = read_table(write(tmp_path, "m.jsonl", [{"x": cell} for cell in cells]))
    assert list(map(str, table.problems)) == [message]


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


@pytest.mark.parametrize(("suffix", "mapped_bytes"), [("arrow", 0), ("parquet", 0), ("parquet", 10**9)])
@pytest.mark.parametrize("name", TYPED)
def test_cells_of_an_arrow_column(tmp_path, monkeypatch, name, suffix, mapped_bytes):
    monkeypatch.setattr("fusion_pl.tables.read_table.MAX_MEMORY_BYTES", mapped_bytes)
    if name == "views" and suffix == "parquet":
        pytest.skip("older versions of pyarrow do not write this type to Parquet")
    kind, values, expected = TYPED[name]
    data = pa.table({"x": pa.array(values, kind)})
    path = tmp_path / f"m.{suffix}"
    pq.write_table(data, path) if suffix == "parquet" else write_arrow(path, data)
    table = read_table(str(path))
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


# -------------------------------------------------------------------------------------------------------- large tables
def read_in_worker(table, rows):
    return table.files, [table.cell("text", row) for row in rows]


@pytest.mark.parametrize("name", ["m.csv", "m.arrow", "m.parquet", "m.feather"])
def test_a_large_table_is_memory_mapped_by_other_processes(tmp_path, monkeypatch, name):
    monkeypatch.setattr("fusion_pl.tables.table.MAX_PIPED_BYTES", 1000)
    monkeypatch.setattr("fusion_pl.tables.read_table.MAX_MEMORY_BYTES", 1000)
    records = [{"text": f"text {at}", "other": None} for at in range(2000)]
    table = read_table(write(tmp_path, name, records)).select(["text"])
    assert len(pickle.dumps(table)) < 20_000 + table.row_numbers.nbytes
    files, found = read_in_worker(pickle.loads(pickle.dumps(table)), [0, 1999, 700])
    if name == "m.csv":
        with forkserver_context().Pool(1) as pool:
            assert pool.apply(read_in_worker, (table, [0, 1999, 700])) == (files, found)
    assert found == ["text 0", "text 1999", "text 700"]
    paths = [file.path for file in files]
    assert (paths == [str(tmp_path / name)]) == (name == "m.arrow")  # an uncompressed Arrow file needs no copy


@pytest.mark.parametrize("is_pickled", [False, True])
@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_changes_before_other_processes_read_it_is_refused(tmp_path, monkeypatch, change, is_pickled):
    """Other rows of the same size must not stand in for those that were read."""
    monkeypatch.setattr("fusion_pl.tables.table.MAX_PIPED_BYTES", 0)
    path = tmp_path / "m.arrow"
    table = read_table(write(tmp_path, "m.arrow", [{"text": f"text {at}"} for at in range(9)]))
    pickled = pickle.dumps(table) if is_pickled else b""
    path.unlink()
    if change == "replaced":
        write(tmp_path, "m.arrow", [{"text": f"wrong{at}"} for at in range(9)])
    with pytest.raises(UserError, match=r"m\.arrow was changed since it was read: start again$"):
        pickle.loads(pickled) if is_pickled else pickle.dumps(table)
    assert table.cell("text", 3) == "text 3"  # of the memory map


def test_computed_columns_are_written_without_the_columns_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("fusion_pl.tables.table.MAX_PIPED_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = [bytes([at]) * 10_000 for at in range(20)]
    write_arrow(tmp_path / "m.arrow", pa.table({"image": content, "old": list(range(20))}))
    table = read_table(str(tmp_path / "m.arrow")).select(["image"]).append({"new": pa.array(range(20))})
    table = table.select(["new", "image"])
    copy = pickle.loads(pickle.dumps(table))
    again = pickle.loads(pickle.dumps(copy))
    temporary = list(tmp_path.glob("fusion-pl-*.arrow"))
    assert sum(file.stat().st_size for file in temporary) < 10_000
    assert len(temporary) == 1
    assert pickle.loads(pickle.dumps(copy.select(["new"]))).cells("new") == [str(at) for at in range(20)]
    for one in (copy, again, pickle.loads(pickle.dumps(copy.select(["image", "new"])))):
        assert one.cells("image") == content
        assert one.cells("new") == [str(at) for at in range(20)]
    assert copy.columns == ["new", "image"]


def test_a_temporary_file_is_removed_at_exit_of_its_process_only(tmp_path):
    code = (
        "import multiprocessing, os, pickle, sys\n"
        "from fusion_pl.tables import table\n"
        "from fusion_pl.tables.read_table import read_table\n"
        "table.MAX_PIPED_BYTES = 0\n"
        "found = read_table(sys.argv[1])\n"
        "(file,) = pickle.loads(pickle.dumps(found)).files\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "print(file.path, os.path.exists(file.path))\n"
    )
    (tmp_path / "m.csv").write_text("a,b\n1,2\n")
    done = run_command(tmp_path / "m.csv", code=code)
    file, exists = done.stdout.split()
    assert exists == "True"
    assert not os.path.exists(file)


# -------------------------------------------------------------------------------------------------------- bytes, paths
def test_media_may_be_bytes_in_the_table(toy, processors):
    """A column of bytes, and one of structs as in a Hugging Face data set, with bytes or a path or neither."""
    expected = ManifestData(toy.write(), num_workers=0)
    expected.processors = processors
    expected.setup("fit")
    columns = {name: [record[name] for record in toy.records] for name in toy.records[0]}
    columns["image"] = [(toy.folder / name).read_bytes() for name in columns["image"]]
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns["audio"] = [
        {"bytes": (toy.folder / name).read_bytes(), "path": "nowhere.wav"} if at % 2 else {"bytes": None, "path": name}
        for at, name in enumerate(columns["audio"])
    ]
    columns["audio"][3] = {"bytes": None, "path": None}
    columns["audio"] = pa.array(columns["audio"], media)
    pq.write_table(pa.table(columns), toy.folder / "m.parquet")
    data = ManifestData(str(toy.folder / "m.parquet"), num_workers=0)
    data.processors = processors
    data.setup("fit")
    for row in range(8):
        sample, other = data.samples("train")[row], expected.samples("train")[row]
        assert sample.id == other.id
        assert np.array_equal(np.asarray(sample.inputs["image"]), np.asarray(other.inputs["image"]))
        if row == 3:
            assert "audio" not in sample.inputs
        else:
            assert torch.equal(sample.inputs["audio"].samples, other.inputs["audio"].samples)


def test_a_path_of_a_struct_must_lie_inside_the_root_and_exist(toy, processors):
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {name: [record[name] for record in toy.records] for name in toy.records[0]}
    paths = [{"bytes": None, "path": name} for name in columns["image"]]
    paths[0]["path"], paths[1]["path"] = "../x.png", "none.png"
    pq.write_table(pa.table(columns | {"image": pa.array(paths, media)}), toy.folder / "m.parquet")
    data = ManifestData(str(toy.folder / "m.parquet"), num_workers=0)
    data.processors = processors
    with pytest.raises(UserError, match=r"has 2 problems:\n  row 1, column 'image': .*outside.*\n  row 2.* 'none.png'"):
        data.setup("fit")


def test_files_need_not_be_checked(toy, processors):
    toy.records[0]["image"] = "none.png"
    data = ManifestData(toy.write(), num_workers=0, check_files=False)
    data.processors = processors
    data.setup("fit")
    with pytest.raises(UserError, match=r"row 2, column 'image': .*none.png does not exist"):
        data.samples("train")[0]
    toy.records[0]["image"] = "../none.png"
    data = ManifestData(toy.write(), num_workers=0, check_files=False)
    data.processors = processors
    with pytest.raises(UserError, match="outside the root"):
        data.setup("fit")


def test_the_missing_ones_of_many_files_are_found(tmp_path, processors):
    for at in range(1200):
        (tmp_path / f"{at}.png").touch()
    records = [{"image": f"{at % 1250}.png", "label": "ab"[at % 2], "split": SPLITS[at // 2 % 3]} for at in range(2500)]
    data = ManifestData(str(write_manifest(tmp_path / "m.csv", records)), num_workers=0)
    data.processors = {"image": processors["image"]}
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    lines = str(caught.value).split("\n  ")
    assert lines[0].endswith("has 100 problems:")
    assert [line.split(":")[0] for line in lines[1:11]] == [f"row {at + 2}, column 'image'" for at in range(1200, 1210)]


def test_the_paths_outside_a_root_are_those_of_a_slow_direct_version(tmp_path):
    rng = random.Random(0)
    root = str(tmp_path / "root")
    parts = ["a", "..", ".", "", "/", "b.png", root, "..c", "root", "/etc"]
    paths = ["/".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(3000)]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"x": path}) for path in paths))
    outside = find_outside_paths(read_table(str(tmp_path / "m.jsonl")), "x", root)
    expected = {
        row
        for row, path in enumerate(paths)
        if not os.path.normpath(os.path.join(root, path)).startswith(os.path.join(root, ""))
    }
    assert set(outside) == expected


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("name", ["m.xlsx", "m", "m.csv.gz"])
def test_an_unknown_ending_lists_the_formats(tmp_path, name):
    (tmp_path / name).write_text("a")
    formats = r"a \.csv, \.tsv, \.jsonl, \.ndjson, \.parquet, \.arrow or \.feather file, or a folder of \.parquet files"
    with pytest.raises(UserError, match=rf"ends in '.*': a manifest is {formats}"):
        read_table(str(tmp_path / name))


def test_a_folder_without_parquet_files_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"the folder .* contains no \.parquet file: a manifest is a \.csv"):
        read_table(str(tmp_path))


@pytest.mark.parametrize("name", ["m.parquet", "m.feather", "m.arrow"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
def test_a_damaged_file_is_one_sentence(tmp_path, name, damage):
    path = tmp_path / name
    write(tmp_path, name, [{"text": f"text {at}", "label": "a"} for at in range(100)])
    content = path.read_bytes()
    changed = {"empty": b"", "cut": content[: len(content) // 2], "text": b"text,label\na,b\n"}
    if damage != "flipped":
        path.write_bytes(changed[damage])
        kind = "a Parquet" if name == "m.parquet" else "an Arrow"
        with pytest.raises(UserError, match=rf"{name} cannot be read as {kind} file \(.*\): write it again$"):
            read_table(str(path))
        return
    rng = random.Random(0)
    for _ in range(60):
        flipped = bytearray(content)
        for _ in range(4):
            flipped[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(flipped)
        with contextlib.suppress(UserError):
            table = read_table(str(path))
            for column in table.columns:
                table.cells(column)


def test_a_folder_with_the_name_of_a_parquet_file_is_looked_through(tmp_path):
    """Spark writes a table as a folder ``x.parquet`` with one file per part."""
    (tmp_path / "tables" / "x.parquet").mkdir(parents=True)
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "tables" / "x.parquet" / "part-0.parquet")
    assert cells(read_table(str(tmp_path / "tables"))) == {"a": ["x"]}
    assert cells(read_table(str(tmp_path / "tables" / "x.parquet"))) == {"a": ["x"]}


def test_an_empty_parquet_file_has_no_rows(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match="has no rows"):
        read_table(str(tmp_path / "m.parquet"))


def test_parts_of_different_types_are_refused_and_missing_columns_are_missing(tmp_path):
    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["y"]}), tmp_path / "2.parquet")
    assert cells(read_table(str(tmp_path))) == {"a": ["x", "y"], "b": ["1", None]}
    pq.write_table(pa.table({"a": [[1]]}), tmp_path / "3.parquet")
    with pytest.raises(UserError, match=r"the files in .* have columns of different types \(.*a.*\): unify them"):
        read_table(str(tmp_path))


def test_a_nested_column_is_an_error_only_if_it_is_used(toy, processors):
    columns = {name: [record[name] for record in toy.records] for name in toy.records[0]}
    nested = [[{"a": [1]}]] * len(toy.records)
    path = toy.folder / "m.parquet"
    pq.write_table(pa.table(columns | {"nested": nested}), path)
    for options, match in [
        ({}, None),
        ({"label": "nested"}, "column 'nested': it holds list<.*expected text or numbers for the label"),
        ({"split": "nested"}, "column 'nested': it holds list<.*expected text or numbers for the split"),
    ]:
        data = ManifestData(str(path), num_workers=0, **options)
        data.processors = processors
        if match is None:
            data.setup("fit")
            continue
        with pytest.raises(UserError, match=match):
            data.setup("fit")
    pq.write_table(pa.table(columns | {"id": nested}), path)
    data = ManifestData(str(path), num_workers=0)
    data.processors = processors
    with pytest.raises(UserError, match=r"column 'id': it holds list<.*expected text or numbers for the id"):
        data.setup("fit")


def test_duplicate_columns_are_refused(tmp_path):
    write_arrow(tmp_path / "m.arrow", pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]))
    with pytest.raises(UserError, match="the column 'a' appears more than once: rename one of them"):
        read_table(str(tmp_path / "m.arrow"))


def test_ids_that_are_empty_are_row_numbers_and_must_differ_from_the_others(toy, processors):
    for at, name in ((0, ""), (1, "2"), (5, "x"), (7, "x"), (9, "x")):
        toy.records[at]["id"] = name
    data = ManifestData(toy.write(), num_workers=0)
    data.processors = processors
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    assert str(caught.value).split("\n  ")[1:] == [
        "row 3, column 'id': the id '2' was already used in row 2",
        "row 9, column 'id': the id 'x' was already used in row 7",
        "row 11, column 'id': the id 'x' was already used in row 7",
    ]


def test_many_problems_are_counted_without_describing_each(toy, processors, monkeypatch):
    described = []
    monkeypatch.setattr("fusion_pl.tasks.multi_class.did_you_mean", lambda *names: described.append(names) or "")
    for record in toy.records:
        record["label"] = record["id"]
    data = ManifestData(toy.write(), num_workers=0, classes=["a", "b"])
    data.processors = processors
    with pytest.raises(UserError, match="has 16 problems"):  # 12 labels, two classes, two splits
        data.setup("fit")
    assert 0 < len(described) <= 10
