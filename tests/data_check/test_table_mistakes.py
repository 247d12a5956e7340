"""Mistakes of a new user in a table: misspelt labels, paths as texts, wrong columns."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
import yaml

from fusion_pl.__main__ import main
from fusion_pl.cli.run import run
from fusion_pl.tables.labels import describe_joined_labels
from tests.data_check.folder import CONFIG, write_table

SIZE = 30


def write_texts(folder, change=lambda row: {}, **options):
    """Write a configuration and thirty rows: different texts of cats and dogs, 20 train, 5 val and 5 test."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"id": f"s{row}", "text": f"text number {row}", "label": ("Cat", "Dog")[row % 2]}
        | {"split": "train" if row < 20 else "val" if row < 25 else "test"}
        | change(row)
        for row in range(SIZE)
    ]
    write_table(folder / "table.csv", rows)
    model = CONFIG["model"] | {"encoders": {"text": CONFIG["model"]["encoders"]["text"]}}
    arguments = {"manifest": str(folder / "table.csv"), "num_workers": 0} | options
    data = CONFIG["data"] | {"init_args": arguments}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    return folder


def data_check(folder, monkeypatch):
    words = ["--config", str(folder / "config.yaml"), "--output", str(folder / "report")]
    monkeypatch.setattr(sys, "argv", ["fusion-pl", "data", "check", *words])
    code = main()
    return code, json.loads((folder / "report/report.json").read_text())["findings"]


def test_a_misspelt_label_is_reported_once_without_advice_for_a_small_class(tmp_path, monkeypatch, capsys):
    write_texts(tmp_path, lambda row: {"label": "Catt"} if row == 6 else {})
    code, findings = data_check(tmp_path, monkeypatch)
    assert code == 0
    assert [(line["kind"], line["row"], line["column"]) for line in findings] == [("misspelt", 8, "label")]
    assert "the class 'Catt' has 1 row; did you mean Cat? Correct the label" in findings[0]["text"]
    assert findings[0]["text"] in capsys.readouterr().out


def test_fit_reports_a_misspelt_label(tmp_path, caplog):
    write_texts(tmp_path, lambda row: {"label": "Catt"} if row == 6 else {})
    with caplog.at_level("INFO"):
        assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    assert "table.csv: the class 'Catt' has 1 row; did you mean Cat?" in caplog.text


@pytest.mark.parametrize("other", ["cat", "Cat 2", "CAT"])
def test_classes_that_differ_in_case_or_spaces_are_reported(other, tmp_path, caplog, monkeypatch):
    """Whatever their size, and also with digits; but ``Cat 2`` is another class."""
    write_texts(tmp_path, lambda row: {"label": other} if row % 6 == 0 else {})
    with caplog.at_level("INFO"):
        assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    text = f"the class {other!r} has 5 rows, and differs from 'Cat' in case or spaces only: write both in the same way"
    assert (text in caplog.text) == (other != "Cat 2")
    _, findings = data_check(tmp_path, monkeypatch)
    assert [line["kind"] for line in findings if line["kind"] == "misspelt"] == ["misspelt"] * (other != "Cat 2")


def test_small_classes_with_other_names_or_numbers_are_not_misspelt(tmp_path, monkeypatch):
    labels = {6: "Horse", 7: "level 2"} | dict.fromkeys(range(8, 14), "level 1")
    write_texts(tmp_path, lambda row: {"label": labels[row]} if row in labels else {})
    _, findings = data_check(tmp_path, monkeypatch)
    assert "misspelt" not in {line["kind"] for line in findings}


def test_texts_that_are_paths_of_files_are_reported(tmp_path, monkeypatch, caplog):
    def change(row):
        if row >= SIZE - 2:
            return {}
        (tmp_path / f"{row}.txt").write_text("a text", encoding="utf-8")
        return {"text": f"{row}.txt"}

    write_texts(tmp_path, change)
    _, findings = data_check(tmp_path, monkeypatch)
    text = "28 texts are the paths of existing files: put the text itself into the cell"
    assert [line["text"] for line in findings if line["kind"] == "paths"] == [text]
    with caplog.at_level("INFO"):
        assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    assert "column 'text': most texts are the paths of existing files: put the text itself into the cell" in caplog.text


def test_texts_that_are_no_paths_are_not_reported(tmp_path, caplog):
    write_texts(tmp_path, lambda row: {})
    with caplog.at_level("INFO"):
        assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    assert "paths" not in caplog.text


def test_one_shared_text_is_reported_in_the_singular(tmp_path, monkeypatch):
    write_texts(tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["model"]["encoders"]["number"] = {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}}
    config["data"]["init_args"]["inputs"] = {"number": "id"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    table = tmp_path / "table.csv"
    table.write_text(table.read_text().replace("text number 29", "text number 0"))
    _, findings = data_check(tmp_path, monkeypatch)
    assert [line["text"].partition(",")[0] for line in findings] == ["1 row has a text that rows of a later split have"]


def test_the_console_shows_the_first_ten_findings_of_a_kind(tmp_path, monkeypatch, capsys):
    write_texts(tmp_path, lambda row: {"label": ""} if row < 12 else {})
    code, findings = data_check(tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert code == 1
    assert len([line for line in findings if line["kind"] == "table"]) == 12
    assert [f"row {row}, column 'label'" in printed for row in range(2, 14)] == [True] * 10 + [False] * 2
    assert "… and 2 more" in printed


def several_names(row):
    """A cell of one to three names; some combinations occur in one row only."""
    return {"label": "|".join(name for bit, name in enumerate(("crime", "drama", "music")) if (row % 7 + 1) >> bit & 1)}


ARE_NAMES = "look like several names per cell, such as 'crime|drama': give --model.task MultiLabel"


def test_labels_of_several_names_are_the_first_finding(tmp_path, monkeypatch, caplog):
    write_texts(tmp_path, several_names)
    code, findings = data_check(tmp_path, monkeypatch)
    assert (code, findings[0]["kind"], findings[0]["column"]) == (0, "joined", "label")
    assert "4 of the 7 different labels " + ARE_NAMES in findings[0]["text"]
    assert "misspelt" not in {line["kind"] for line in findings}
    with caplog.at_level("INFO"):
        assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 0
    assert ARE_NAMES in caplog.text


@pytest.mark.parametrize("separator", [";", ", "])
def test_the_options_for_labels_with_other_separators_work(separator, tmp_path, capsys):
    write_texts(tmp_path, lambda row: {"label": several_names(row)["label"].replace("|", separator)})
    config, mark = ["--config", str(tmp_path / "config.yaml"), "--dry_run"], separator.strip()
    assert run("fit", config) == 0
    options = f"--model.task MultiLabel --model.task.separator '{mark}'"
    message = f"such as 'crime{separator}drama': give {options} (in Python task=MultiLabel('{mark}'))"
    assert message in " ".join(capsys.readouterr().err.split())
    assert run("fit", [*config, *shlex.split(options)]) == 0
    assert "look like several names" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "classes",
    [
        ["yes", "no", "yes, please", "no, thanks"],
        ["1", "1,5", "2", "2,5", "3", "5"],
        ["Portland, OR", "Salem, OR", "Portland, ME", "Salem, MA"],
        ["cat", "dog", "cat; asleep", "dog; asleep", "none"],
        ["a", "b", "c", "d", "a,b"],
    ],
)
def test_names_that_contain_commas_are_classes(classes):
    assert describe_joined_labels(classes) == ""


@pytest.mark.parametrize(
    "change", [lambda row: {"label": ""} if row == 3 else {}, lambda row: {"label": "drama|war"} if row == 29 else {}]
)
def test_labels_of_several_names_are_told_instead_of_their_consequences(change, tmp_path, capsys):
    write_texts(tmp_path, lambda row: several_names(row) | change(row))
    assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "table.csv has 1 problem: column 'label'" in message
    assert ARE_NAMES in message
    assert "did you mean" not in message


def test_the_question_after_a_missing_column_is_the_end_of_the_sentence(tmp_path, capsys):
    write_texts(tmp_path, label="labels")
    assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert (
        "; the columns are 'id', 'text', 'label', 'split': give another column with --data.label; did you mean label?"
        in message
    )
    assert "?:" not in message


def test_all_missing_columns_are_in_one_error(tmp_path, capsys):
    write_texts(tmp_path, label="species", inputs={"text": "caption"}, split="part")
    assert run("fit", ["--config", str(tmp_path / "config.yaml"), "--dry_run"]) == 2
    message = capsys.readouterr().err
    assert "has 3 problems" in message
    assert "no column 'species' for the label; the columns are" in message
    assert "give another column with --data.label" in message
    assert "no column 'caption' for the input 'text'" in message
    assert "no column 'part' for the split" in message
