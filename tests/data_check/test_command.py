"""The command: a folder with one fault of each kind, and one without any."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import sys
from dataclasses import replace

import pyarrow
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from fusion_pl.__main__ import main
from fusion_pl.cli.run import run
from fusion_pl.data import Keypad
from fusion_pl.data.keypad import KEYPAD
from fusion_pl.tables.read_table import read_table
from tests.data_check.folder import write_folder, write_table
from tests.terminal import CTRL_C, Terminal


def data_check(folder, *arguments, output="report"):
    with pytest.MonkeyPatch.context() as patch:
        words = ["--config", str(folder / "config.yaml"), "--output", str(folder / output), *map(str, arguments)]
        patch.setattr(sys, "argv", ["fusion-pl", "data", "check", *words])
        return main()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    write_folder(folder, is_damaged=True)
    assert data_check(folder, "--cleaned", folder / "cleaned.csv", "--data.num_workers", "2") == 1
    return folder


@pytest.fixture(scope="module")
def report(damaged):
    return json.loads((damaged / "report/report.json").read_text())


# kind, row number in the table (the header is row 1), column, words of the sentence
EXPECTED = [
    ("truncated", 2, "image", "truncated"),
    ("empty_file", 3, "image", "0 bytes"),
    ("unreadable", 4, "image", "cannot be read as an image"),
    ("constant", 5, "image", "all pixels are black"),
    ("wrong_ending", 6, "image", "ends in .jpg, but its content is PNG"),
    ("near_duplicate", 27, "image", "looks like that of row 7 (train, another split)"),
    ("partly_grey", 8, "image", "bottom"),
    ("silent", 9, "audio", "silent"),
    ("truncated", 10, "audio", "header promises"),
    ("wrong_ending", 11, "audio", "content is FLAC"),
    ("blank", 12, "text", "no words"),
    ("lost_characters", 13, "text", "U+FFFD"),
    ("table", 15, "audio", "does not exist"),
    ("table", 16, "image", "lies outside the root"),
    ("table", 17, "label", "the label is empty"),
    ("leak", 18, None, "those of row 38 (test)"),
    ("duplicate", 21, None, "those of row 19 (train)"),
    ("leak", 20, None, "those of row 30 (val), whose label is 'a'"),
    ("shared", 23, "image", "row 33, which is in another split (test)"),
    ("cut_off", None, None, "1 of 39 values (2.6%) of the input 'text' are longer than the 256 tokens"),
]


@pytest.mark.parametrize(("kind", "row", "column", "words"), EXPECTED, ids=[str(line[:3]) for line in EXPECTED])
def test_each_fault_is_found_at_its_row_and_column(report, kind, row, column, words):
    found = [line for line in report["findings"] if (line["kind"], line["row"], line["column"]) == (kind, row, column)]
    assert len(found) == 1
    assert words in found[0]["text"]
    assert "\n" not in found[0]["text"]


def test_nothing_else_is_found(report):
    assert len(report["findings"]) == len(EXPECTED)
    assert report["errors"] == sum(line["severity"] == "error" for line in report["findings"]) == 9
    assert report["errors"] + report["warnings"] == len(EXPECTED)


def test_the_numbers_are_those_of_the_table(report, damaged):
    with (damaged / "table.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    splits = ("train", "val", "test")
    assert report["rows"] == {split: sum(row["split"] == split for row in rows) for split in splits}
    for name, counts in report["classes"].items():
        assert counts == {split: sum((row["split"], row["label"]) == (split, name) for row in rows) for split in splits}
    assert report["missing"] == {name: dict.fromkeys(splits, 0) for name in ("text", "image", "audio")}
    lengths = sorted(1 + len(row["text"].encode()) for row in rows)
    text = report["lengths"]["text"]
    assert (text["minimum"], text["maximum"], text["limit"]) == (lengths[0], lengths[-1], 256)
    assert report["lengths"]["audio"]["median"] == pytest.approx(0.2)


def test_the_page_shows_the_findings_with_pictures_and_sounds_and_loads_nothing(report, damaged):
    page = (damaged / "report/report.html").read_text(encoding="utf-8")
    assert page.count("<li>") == len(report["findings"])
    assert 'img src="data:image/png;base64,' in page
    assert 'audio controls preload="metadata" src="data:audio/wav;base64,' in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_the_cleaned_table_has_no_errors_left(damaged, capsys):
    with (damaged / "cleaned.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {f"s{row}" for row in range(40)} - set(rows) == {"s15", "s16", "s18"}  # no label, and twice a leak
    emptied = {(name, column) for name, row in rows.items() for column in ("text", "image", "audio") if not row[column]}
    images = {("s0", "image"), ("s1", "image"), ("s2", "image"), ("s14", "image")}
    assert emptied == images | {("s8", "audio"), ("s13", "audio")}
    assert data_check(damaged, "--data.manifest", damaged / "cleaned.csv", output="second") == 0
    assert " 0 errors" in capsys.readouterr().out


def test_an_intact_folder_has_no_findings_and_trains_nothing(tmp_path, capsys):
    write_folder(tmp_path, is_damaged=False)
    before = sorted(tmp_path.rglob("*"))
    assert data_check(tmp_path) == 0
    assert json.loads((tmp_path / "report/report.json").read_text())["findings"] == []
    assert "40 rows, 120 values opened: 0 errors, 0 warnings" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == sorted(
        [*before, tmp_path / "report", *(tmp_path / "report" / name for name in ("report.html", "report.json"))]
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cleaned", "table.csv"], "--cleaned table.csv exists: remove it, or give another name"),
        (["--cleaned", "none/a.csv"], "--cleaned none/a.csv: the folder none does not exist"),
        (["--cleaned", "a.xlsx"], "--cleaned a.xlsx ends in '.xlsx', expected one of .csv"),
        (["--data.manifest", "none.csv"], "the manifest none.csv does not exist"),
        (["--data.label", "kind"], "table.csv has 1 problem:\n  there is no column 'kind' for the label"),
        (["--outptu", "a"], "there is no option --outptu; did you mean --output?"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    write_folder(tmp_path, is_damaged=False)
    monkeypatch.chdir(tmp_path)
    assert data_check(tmp_path, *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_the_output_may_not_be_a_file(tmp_path, capsys):
    write_folder(tmp_path, is_damaged=False)
    assert data_check(tmp_path, output="table.csv") == 2
    assert "table.csv is, or lies below, a file: give a folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["data"], ["data", "chekc"]])
def test_the_second_word_of_the_command_is_explained(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fusion-pl", *words])
    assert main() == (0 if len(words) == 1 else 2)
    printed = capsys.readouterr()
    assert "data check" in printed.out + printed.err


def test_ctrl_c_ends_the_check_in_one_sentence(tmp_path):
    """Texts are opened by workers for about ten seconds."""
    write_folder(tmp_path, is_damaged=False)
    lines = "".join(f"words {row},{'ab'[row % 2]},train\n" for row in range(300_000))
    (tmp_path / "long.csv").write_text(f"text,label,split\n{lines}")
    encoders = '{"text": {"class_path": "fusion_pl.encoders.TinyText"}}'
    words = ["--config", "config.yaml", "--output", "report", "--data.manifest", "long.csv", "--data.num_workers", "2"]
    command = ["data", "check", *words, "--model.encoders", encoders]
    with Terminal(command, folder=tmp_path) as terminal:
        terminal.until(lambda: "Checking files and texts" in terminal.text)
        terminal.press(CTRL_C)
        assert terminal.ended() == 130, terminal.text
    assert "Stopped; nothing was saved." in terminal.text
    assert "Traceback" not in terminal.text
    assert not (tmp_path / "report").exists()


def printed_options(capsys):
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Train with it: ")]
    return shlex.split(line.removeprefix("Train with it: "))


def test_the_printed_options_are_quoted_for_the_shell(tmp_path, capsys):
    folder, other = tmp_path / "My Animals", tmp_path / "clean tables"
    folder.mkdir()
    other.mkdir()
    write_folder(folder, is_damaged=False)
    assert data_check(folder, "--cleaned", other / "a.csv", "--data.num_workers", "0") == 0
    assert printed_options(capsys) == ["--data.manifest", str(other / "a.csv"), "--data.root", str(folder)]


@pytest.mark.parametrize("root", ["nowhere", "https://example.invalid/files"])
def test_the_root_may_be_a_url_or_absent_if_all_inputs_are_texts(tmp_path, capsys, root):
    write_folder(tmp_path, is_damaged=False)
    encoders = '{"text": {"class_path": "fusion_pl.encoders.TinyText"}}'
    cleaned = tmp_path / "cleaned.csv"
    assert data_check(tmp_path, "--model.encoders", encoders, "--data.root", root, "--cleaned", cleaned) == 0
    assert printed_options(capsys) == ["--data.manifest", str(cleaned), "--data.root", root]


def test_the_printed_options_replace_a_data_set_that_has_no_manifest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # which fit writes to
    monkeypatch.setattr(Keypad, "dataset", replace(KEYPAD, sizes={"train": 24, "val": 12, "test": 12}))
    write_folder(tmp_path, is_damaged=False)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["data"] = {"class_path": "Keypad", "init_args": {"folder": "keypad", "num_workers": 0}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert data_check(tmp_path, "--cleaned", "cleaned.csv") in (0, 1)
    options = printed_options(capsys)
    assert run("fit", ["--config", "config.yaml", *options, "--dry_run"]) == 0
    assert "cleaned.csv" in " ".join(options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_rows_that_are_kept_are_those_of_the_table_byte_for_byte(suffix, tmp_path):
    """Cells are quoted as the csv module does by default: only if they need it."""
    write_folder(tmp_path, is_damaged=False)
    cells = [
        "plain",
        "1.50",
        "001",
        " two, words ",
        'a "quote"',
        "line\nbreak",
        "tab\tcell",
        "return\rcell",
        "é ☃",
        "'",
    ]

    def encode(rows):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter="," if suffix == ".csv" else "\t").writerows(rows)
        return text.getvalue().replace("\r\n", "\n").encode()

    splits = ("train", "train", "val", "test")
    rows = [
        [f"{cells[row % 10]} {row}", cells[(row + 1) % 10], "", "ab"[row % 2], splits[row // 5]] for row in range(20)
    ]
    kept = [["text", "note", "empty", "label", "split"], *rows]
    (tmp_path / f"rows{suffix}").write_bytes(encode([*kept, ["", "", "", "a", "train"]]))
    encoders = '{"text": {"class_path": "fusion_pl.encoders.TinyText"}}'
    cleaned = tmp_path / f"cleaned{suffix}"
    arguments = ["--model.encoders", encoders, "--data.manifest", tmp_path / f"rows{suffix}", "--cleaned", cleaned]
    assert data_check(tmp_path, *arguments) == 1
    assert cleaned.read_bytes() == encode(kept)


def test_a_table_without_rows_is_not_written(tmp_path, capsys):
    write_folder(tmp_path, is_damaged=False)
    write_table(tmp_path / "table.csv", [{"text": "", "label": "a", "split": "train"}])
    encoders = '{"text": {"class_path": "fusion_pl.encoders.TinyText"}}'
    assert data_check(tmp_path, "--model.encoders", encoders, "--cleaned", tmp_path / "cleaned.csv") == 1
    assert not (tmp_path / "cleaned.csv").exists()
    printed = capsys.readouterr().out
    assert "cleaned.csv is not written" in printed
    assert "Train with it" not in printed


def test_media_in_a_table_stay_bytes_in_the_cleaned_table(tmp_path, capsys):
    """As Hugging Face's data sets have them; one image is damaged."""
    write_folder(tmp_path, is_damaged=False)
    contents = [(tmp_path / f"{row}.jpg").read_bytes() for row in range(20)]
    contents[3] = contents[3][:-500]
    column = [{"bytes": content, "path": None} for content in contents]
    splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    table = pyarrow.table({"image": column, "label": ["a", "b"] * 10, "number": range(20), "split": splits})
    parquet.write_table(table, tmp_path / "table.parquet")
    encoders = '{"image": {"class_path": "fusion_pl.encoders.TinyImage"}}'
    arguments = ["--data.manifest", tmp_path / "table.parquet", "--model.encoders", encoders]
    assert data_check(tmp_path, *arguments, "--cleaned", tmp_path / "cleaned.parquet") == 1
    cleaned = parquet.read_table(tmp_path / "cleaned.parquet")
    kept = [row for row in range(20) if row != 3]  # it has no other input
    assert cleaned.equals(table.take(kept))
    assert json.loads((tmp_path / "report/report.json").read_text())["findings"][0]["row"] == 4
    assert data_check(tmp_path, *arguments, "--cleaned", tmp_path / "cleaned.csv", output="other") == 2
    assert "cannot hold the column 'image' of media: write a .parquet file" in capsys.readouterr().err
    table = table.set_column(0, "image", pyarrow.array(contents))
    parquet.write_table(table, tmp_path / "table.parquet")
    assert data_check(tmp_path, *arguments, "--cleaned", tmp_path / "cleaned.jsonl", output="other") == 2
    assert "cannot hold the column 'image' of binary: write a .parquet file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()  # nothing was opened


def test_cells_of_numbers_are_those_of_the_table_in_the_cleaned_text(tmp_path):
    write_folder(tmp_path, is_damaged=False)
    columns = {"text": [float("nan"), *map(float, range(19))], "flag": [True, None] * 10, "label": ["a", "b"] * 10}
    table = pyarrow.table(columns | {"split": ["train"] * 12 + ["val"] * 4 + ["test"] * 4})
    parquet.write_table(table, tmp_path / "table.parquet")
    encoder = {"class_path": "fusion_pl.encoders.TinyText"}
    encoders = json.dumps({"text": encoder, "flag": encoder})
    paths = [tmp_path / "table.parquet", tmp_path / "cleaned.csv"]
    data_check(tmp_path, "--data.manifest", paths[0], "--model.encoders", encoders, "--cleaned", paths[1])
    before, after = map(read_table, map(str, paths))
    assert {name: after.cells(name) for name in columns} == {name: before.cells(name) for name in columns}


def test_an_image_like_that_of_a_row_without_split_is_in_no_other_split(tmp_path):
    write_folder(tmp_path, is_damaged=False)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[25]["split"] = "?"
    write_table(tmp_path / "table.csv", rows)
    Image.open(tmp_path / "5.jpg").resize((90, 60)).save(tmp_path / "25.jpg", quality=60)
    assert data_check(tmp_path) == 1
    findings = json.loads((tmp_path / "report/report.json").read_text())["findings"]
    (text,) = [line["text"] for line in findings if line["kind"] == "near_duplicate"]
    assert text == "the image looks like that of row 7 (train): look at both"


def test_imbalance_and_missing_inputs_are_warnings(tmp_path):
    write_folder(tmp_path, is_damaged=False)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = "b" if row["id"] == "s0" else "a"
        row["audio"] = "" if row["split"] == "val" else row["audio"]
    write_table(tmp_path / "table.csv", rows)
    assert data_check(tmp_path) == 0
    texts = [line["text"] for line in json.loads((tmp_path / "report/report.json").read_text())["findings"]]
    assert any("the class 'a' has 19 training rows, 'b' only 1" in text for text in texts)
    assert any("the class 'b' has no val and no test row" in text for text in texts)
    assert any("10 of 10 val rows lack the input 'audio'" in text for text in texts)
    assert len(texts) == 3
