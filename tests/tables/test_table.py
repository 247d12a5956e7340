from __future__ import annotations

import pytest

from fusion_pl.tables.read_table import read_table
from fusion_pl.tables.table import Problem, raise_problems
from fusion_pl.types import MissingFileError, UserError


@pytest.fixture(params=[0, 2**24], ids=["memory-mapped", "in memory"], autouse=True)
def max_memory_bytes(request, monkeypatch):
    monkeypatch.setattr("fusion_pl.tables.text_table.MAX_MEMORY_BYTES", request.param)


def cells(table):
    return {column: table.cells(column) for column in table.columns}


def write(folder, content, name="m.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "a,b\r\nü 1,\r\n,2\r\n"),
        ("m.csv", "\ufeffa,b\nü 1,\n\n,2\n"),
        ("m.csv", ",a, b,,\n0,ü 1,,,\n1,,2,,\n"),
        ("m.TSV", "a\tb\nü 1\t\n\t2\n"),
        ("m.jsonl", '{"a": "ü 1"}\n\n{"b": 2, "a": null}\n'),
        ("m.ndjson", '\ufeff{"a": "\\u00fc 1", "b": null}\r\n{"b": "2"}\r\n'),
    ],
)
def test_the_same_table_in_every_spelling(tmp_path, name, content):
    table = read_table(write(tmp_path, content, name))
    assert cells(table) == {"a": ["ü 1", None], "b": [None, "2"]}
    assert not table.problems


def test_rows_are_numbered_as_in_a_spreadsheet(tmp_path):
    table = read_table(write(tmp_path, 'a,b\n1,"two\nlines"\n\n3,4\n'))
    assert table.row_numbers.tolist() == [2, 4]
    assert table.cells("b") == ["two\nlines", "4"]
    assert read_table(write(tmp_path, '\n{"a": 1}\n', "m.jsonl")).row_numbers.tolist() == [2]


def test_only_json_distinguishes_empty_from_missing(tmp_path):
    assert read_table(write(tmp_path, '{"a": ""}\n{"a": null}\n{"b": 1}', "m.jsonl")).cells("a") == ["", None, None]
    assert read_table(write(tmp_path, 'a,b\n"",1\n')).cells("a") == [None]


def test_a_line_separator_inside_json_text_does_not_end_a_row(tmp_path):
    assert read_table(write(tmp_path, '{"a": "x\u2028y"}', "m.jsonl")).cells("a") == ["x\u2028y"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.xlsx", "a", r"ends in '\.xlsx': a manifest is a \.csv"),
        ("m.csv", "a\nh\xe4ll\n".encode("latin-1"), r"not UTF-8 \(byte 0xe4 in line 2\): save it as UTF-8"),
        ("m.csv", "", "has no header"),
        ("m.csv", "a,b\n", "has no rows"),
        ("m.jsonl", "\n", "has no rows"),
        ("m.csv", "a,b,a\n1,2,3\n", "row 1: the column 'a' appears more than once"),
        ("m.csv", "a;b\n1;2\n", r"separated by ';', expected ',': export it .* pandas.read_csv\(.*index=False\)$"),
        ("m.tsv", "a;b\n1;2\n", r"separated by ';', expected '\\t': export it .* sep='\\t', index=False\)$"),
        ("m.csv", "a\tb\n1\t2\n", r"separated by '\\t', expected ',': rename the file to \.tsv$"),
        ("m.tsv", "a,b\n1,2\n", r"separated by ',', expected '\\t': rename the file to \.csv$"),
        ("m.csv", 'a,b\n1,"2\n3,4\n', "line 3: unexpected end of data: check the quotation marks"),
        ("m.csv", "a,b\n1\n", "row 2: the row has 1 cells, the header has 2"),
    ],
)
def test_an_unreadable_manifest_is_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, content, name))


def test_an_absent_manifest_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"the manifest /.*none\.csv does not exist: give the path"):
        read_table(str(tmp_path / "none.csv"))


def test_unreadable_rows_are_problems(tmp_path):
    table = read_table(write(tmp_path, '{"a": 1}\n{"a": \n[1]\n{"a": [2]}', "m.jsonl"))
    assert table.row_numbers.tolist() == [1, 4]
    assert [(problem.row, problem.column) for problem in table.problems] == [(2, None), (3, None), (4, "a")]
    assert "not valid JSON: Expecting value: line 1 column 7" in str(table.problems[0])
    assert "a JSON list, expected an object" in str(table.problems[1])
    assert str(table.problems[2]) == "row 4, column 'a': the cell is a list, expected text or a number"

    ragged = read_table(write(tmp_path, "a,b\n1,2\n1,2,3\n5,6\n"))
    assert cells(ragged) == {"a": ["1", "5"], "b": ["2", "6"]}
    assert str(ragged.problems[0]) == "row 3: the row has 3 cells, the header has 2"


def test_the_first_ten_problems_are_in_the_order_of_the_file():
    raise_problems("m.csv", [])
    with pytest.raises(UserError) as caught:
        raise_problems(
            "m.csv", [Problem("wrong", row) for row in range(25, 1, -1)] + [Problem("no column", column="c")]
        )
    lines = str(caught.value).split("\n  ")
    assert lines[0] == "m.csv has 25 problems:"
    assert lines[1:3] == ["column 'c': no column", "row 2: wrong"]
    assert lines[10:] == ["row 10: wrong", "… and 15 more"]
