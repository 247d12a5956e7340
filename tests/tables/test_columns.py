"""Inputs of several columns of numbers, of lists and of array files, from a table to opened values."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from fusion_pl.data import ManifestData
from fusion_pl.encoders import FeatureEncoder, TinyText
from fusion_pl.tables.read_table import read_table
from fusion_pl.types import UserError
from tests.data.conftest import write_manifest

NUMBERS = [["1", "10"], ["2", ""], ["", ""], [" 4.5 ", "-1e1"], ["5", "50"], ["6", "60"]]


def records():
    rows = [{"a": a, "b": b, "text": "x" * at} for at, (a, b) in enumerate(NUMBERS, start=1)]
    labels = zip(rows, "yzyzyz", ("train", "train", "train", "train", "val", "val"), strict=True)
    return [row | {"label": label, "split": split} for row, label, split in labels]


def read(path, missing_numbers="input", inputs=None, features=2, setup="fit", **options):
    columns = {"sensors": ["a", "b"]} if inputs is None else inputs
    data = ManifestData(str(path), columns, num_workers=0, **options)
    encoders = {"sensors": FeatureEncoder(features, missing_numbers=missing_numbers), "text": TinyText()}
    data.processors = {name: encoder.processor for name, encoder in encoders.items()}
    data.setup(setup)
    return data


def values(data, split="train"):
    return [sample.inputs["sensors"].tolist() if "sensors" in sample.inputs else None for sample in data.samples(split)]


def write(folder, suffix):
    """Write the same rows, in Parquet with columns of numbers."""
    path = folder / f"table.{suffix}"
    rows = [{key: value for key, value in row.items() if value != ""} for row in records()]
    numeric = [row | {key: float(row[key]) for key in "ab" if key in row} for row in rows]
    if suffix == "parquet":
        pyarrow.parquet.write_table(
            pa.Table.from_pylist(numeric, schema=pa.Table.from_pylist(numeric[:1]).schema), path
        )
    else:
        write_manifest(path, numeric if suffix == "jsonl" else records())
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_several_columns_are_one_input(tmp_path, suffix):
    path = write(tmp_path, suffix)
    assert values(read(path)) == [[1, 10], None, None, [4.5, -10]]
    with_flags = values(read(path, "flag"))
    assert with_flags[0] == [1, 10]
    assert with_flags[1][0] == 2
    assert np.isnan(with_flags[1][1])
    assert with_flags[2] is None


def test_the_order_of_the_columns_is_that_of_the_configuration(tmp_path):
    path = write(tmp_path, "csv")
    assert values(read(path, inputs={"sensors": ["b", "a"]}))[0] == [10, 1]
    assert values(read(path, inputs={"sensors": ["b"]}, features=1)) == [[10], None, None, [-10]]
    assert read(path).columns == {"sensors": ["a", "b"], "text": "text"}


def test_training_values_are_those_of_the_training_rows(tmp_path):
    data = read(write(tmp_path, "csv"))
    assert [value.tolist() for value in data.training_values("sensors")] == [[1, 10], [4.5, -10]]
    assert list(data.training_values("text")) == ["x", "xx", "xxx", "xxxx"]


@pytest.mark.parametrize("missing_numbers", ["input", "flag"])
def test_rows_without_any_input_are_found_before_training(tmp_path, missing_numbers):
    rows = records()
    rows[1]["text"] = rows[2]["text"] = ""
    path = write_manifest(tmp_path / "table.csv", rows)
    row = "2 problems" if missing_numbers == "input" else "1 problem"
    with pytest.raises(UserError, match=rf"{row}(?s:.*)row 4: all inputs of the sample '4' are empty \(a, b, text\)"):
        read(path, missing_numbers)
    assert len(values(read(path, missing_numbers, drop_empty=True))) == (2 if missing_numbers == "input" else 3)


@pytest.mark.parametrize("cell", ["abc", "1,5", "nan", "inf", "-", "0x10", "true", "1e", "1e999", " -1e400 "])
def test_a_cell_that_is_no_number_has_row_and_column(tmp_path, cell):
    rows = records()
    rows[3]["b"] = cell
    path = write_manifest(tmp_path / "table.csv", rows)
    message = f"row 5, column 'b': {cell!r} is not a finite number: correct it, or empty the cell"
    with pytest.raises(UserError, match=message):
        read(path)
    data = read(path, setup="predict")
    sample = data.samples("predict")[3]
    assert "row 5, column '[a, b]'" in sample.bad_files[0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"sensors": ["a", "c"]}, r"there is no column 'c' for the input 'sensors'; the columns are 'a', 'b'"),
        ({"text": ["a", "b"], "sensors": "a"}, r"has \['a', 'b'\] for 'text', but its ByteTokenizer reads one column"),
        ({"sensors": []}, r"has \[\] for 'sensors', but its FeatureProcessor reads at least one column"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, inputs, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, "csv"), inputs=inputs)


def test_a_wrong_number_of_columns_has_row_and_column(tmp_path):
    data = read(write(tmp_path, "csv"), features=3)
    message = (
        r"row 2, column '\[a, b\]': the input has 2 numbers, expected 3 .* set features of the FeatureEncoder to 2"
    )
    with pytest.raises(UserError, match=message):
        data.samples("train")[0]


def test_prediction_works_without_the_columns(tmp_path):
    rows = records()
    for row in rows:
        del row["b"]
    data = read(write_manifest(tmp_path / "table.csv", rows), setup="predict")
    assert values(data, "predict") == [None] * 6


def test_lists_of_parquet_and_array_files(tmp_path):
    vectors = [np.arange(6.0).reshape(3, 2) + at for at in range(6)]
    for at, vector in enumerate(vectors):
        np.save(tmp_path / f"{at}.npy", vector)
    rows = [row | {"path": f"{at}.npy"} for at, row in enumerate(records())]
    columns = pa.Table.from_pylist(rows)
    lists = columns.append_column("list", pa.array([vector.tolist() for vector in vectors]))
    pyarrow.parquet.write_table(lists, tmp_path / "table.parquet")
    for column in ("path", "list"):
        data = read(tmp_path / "table.parquet", inputs={"sensors": column})
        assert values(data) == [vector.tolist() for vector in vectors[:4]]
    (tmp_path / "3.npy").unlink()
    with pytest.raises(UserError, match=r"row 4, column 'path': the file '3.npy' does not exist"):
        read(tmp_path / "table.parquet", inputs={"sensors": "path"})


@pytest.mark.parametrize("chunk_rows", [1, 2, 10_000])
def test_json_lists_are_those_of_parquet(tmp_path, monkeypatch, chunk_rows):
    monkeypatch.setattr("fusion_pl.tables.text_table.CHUNK_ROWS", chunk_rows)
    lists = [[], [1, 2.5], None, [3, -4e300], [5, 6], [7, 2**60 + 1]]
    nested = [[[1, 2]], None, [[3, 4], [5, None]], [[0, 0]] * 3, None, None]
    rows = [row | {"list": a, "nested": b} for row, a, b in zip(records(), lists, nested, strict=True)]
    write_manifest(tmp_path / "table.jsonl", rows)
    table = read_table(str(tmp_path / "table.jsonl"))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["list"] = pa.array([None if x is None else list(map(float, x)) for x in lists])
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "table.parquet")
    parquet = read_table(str(tmp_path / "table.parquet"))
    assert table.cells("list") == parquet.cells("list")
    assert table.cells("nested") == parquet.cells("nested")
    assert not table.problems
    data = read(tmp_path / "table.jsonl", inputs={"sensors": "list"})
    assert values(data, "val") == [[5, 6], [7, 2**60]]


@pytest.mark.parametrize(
    ("first", "cell", "message"),
    [
        ([1, 2], "a.npy", "the cell is a str, expected a list of numbers"),
        ([1, 2], [[1, 2]], "the cell is a list, expected a list of numbers"),
        ([[1, 2]], [1, 2], "the cell is a list, expected a list of lists of numbers"),
        ([1, 2], ["a"], "the cell is a list, expected a list of numbers"),
        ([1, 2], 3, "the cell is a int, expected a list of numbers"),
        ([1, 2], [True, 2], "the cell is a list, expected a list of numbers"),
        ([1, 2], [10**400, 2], "the cell is a list, expected a list of numbers"),
        ("a", [1, 2], "the cell is a list, expected text or a number"),
        ("a", ["a"], "the cell is a list, expected text or a number"),
        (None, {"a": 1}, "the cell is a dict, expected text or a number"),
    ],
)
def test_json_cells_of_other_types_are_refused(tmp_path, first, cell, message):
    rows = [{"list": first}, {"list": cell}, {"list": first}]
    table = read_table(str(write_manifest(tmp_path / "table.jsonl", rows)))
    (problem,) = table.problems
    assert str(problem).startswith("row 2, column 'list': the cell is a ")
    assert str(problem).endswith(message.rpartition(": ")[2])
    assert len(table) == 3
    assert table.cell("list", 1) is None


def test_a_column_of_lists_is_no_label(tmp_path):
    rows = [row | {"label": [1, 2]} for row in records()]
    with pytest.raises(UserError, match="column 'label': it holds lists, but MultiClass reads one class per row"):
        read(write_manifest(tmp_path / "table.jsonl", rows))


def test_a_bad_file_is_one_sentence_or_a_missing_input(tmp_path):
    rows = [row | {"path": f"{at}.npy"} for at, row in enumerate(records())]
    for at in range(6):
        np.save(tmp_path / f"{at}.npy", np.array([at, np.nan if at == 1 else 1.0]))
    path = write_manifest(tmp_path / "table.csv", rows)
    data = read(path, inputs={"sensors": "path"})
    with pytest.raises(
        UserError, match=r"row 3, column 'path': .*1\.npy has nan as number 2, expected a finite number"
    ):
        list(data.training_values("sensors"))
    data = read(path, inputs={"sensors": "path"}, on_bad_file="missing")
    assert [value.tolist() for value in data.training_values("sensors")] == [[0, 1], [2, 1], [3, 1]]


def test_batches_of_loader_workers_are_standardised(tmp_path):
    """Statistics that are set after the processors were handed to the data reach the workers."""
    data = read(write(tmp_path, "csv"), "flag", drop_empty=True)  # the second model reads no text
    data.num_workers = 1
    encoder = FeatureEncoder(2, missing_numbers="flag")
    data.processors = {"sensors": encoder.processor}
    data.setup("fit")
    encoder.fit_statistics(data.training_values("sensors"))
    (batch,) = data.val_dataloader()
    rows = np.array([[5, 50], [6, 60]])
    wanted = (rows - [2.5, 0]) / [np.std([1, 2, 4.5]), np.std([10, -10])]
    np.testing.assert_allclose(batch.inputs["sensors"]["vectors"][:, 0, :2], wanted, rtol=1e-6)
    assert not torch.any(batch.inputs["sensors"]["vectors"][:, 0, 2:])


def test_the_checkpoint_stores_the_columns_as_plain_data(tmp_path):
    assert json.loads(json.dumps(read(write(tmp_path, "csv")).columns)) == {"sensors": ["a", "b"], "text": "text"}
