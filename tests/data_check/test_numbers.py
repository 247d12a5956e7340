"""The command on vectors and numbers, in files, lists and columns."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import yaml

from fusion_pl.__main__ import main
from fusion_pl.cli.run import run
from fusion_pl.predict import Predictor
from tests.data_check.folder import write_table

SIZE = 30
SPLITS = ["train"] * 20 + ["val"] * 5 + ["test"] * 5
LABELS = ["a", "b"] * (SIZE // 2)


def write_config(folder, manifest, inputs, **encoder):
    encoder = {"class_path": "FeatureEncoder", "init_args": {"features": 3, "dim": 8} | encoder}
    config = {
        "model": {"encoders": {"numbers": encoder}, "fusion": {"class_path": "Mean"}},
        "data": {
            "class_path": "ManifestData",
            "init_args": {"manifest": manifest, "inputs": {"numbers": inputs}, "num_workers": 0},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run the command in a folder; return its exit code and the findings as (kind, row)."""
    monkeypatch.chdir(tmp_path)

    def run(*options):
        words = ["--config", "config.yaml", "--output", "report", *options]
        monkeypatch.setattr(sys, "argv", ["fusion-pl", "data", "check", *words])
        code = main()
        report = json.loads((tmp_path / "report/report.json").read_text())
        return code, [(line["kind"], line["row"]) for line in report["findings"]]

    return run


def test_a_copy_of_a_file_in_another_split_is_found(tmp_path, check):
    (tmp_path / "v").mkdir()
    rng = np.random.default_rng(0)
    for row in range(SIZE):
        np.save(tmp_path / f"v/{row}.npy", rng.normal(size=(1 + row % 3, 3)).astype("float32"))
    shutil.copy(tmp_path / "v/0.npy", tmp_path / "v/25.npy")
    rows = [
        {"numbers": f"v/{row}.npy", "label": label, "split": split}
        for row, (label, split) in enumerate(zip(["a", *LABELS[1:25], "a", *LABELS[26:]], SPLITS, strict=True))
    ]
    write_table(tmp_path / "table.csv", rows)
    write_config(tmp_path, "table.csv", "numbers")
    assert check() == (1, [("leak", 2)])  # row 2 of the file is row 0, whose copy is in row 27


def write_lists(path, cells):
    lines = [
        {"id": f"s{row}", "numbers": cell, "label": label, "split": split}
        for row, (cell, label, split) in enumerate(zip(cells, LABELS, SPLITS, strict=True))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("is_sequence", [False, True])
def test_a_list_that_lacks_a_number_is_a_missing_input(tmp_path, check, is_sequence):
    """As for several columns: the data check, training and prediction agree, for vectors and for sequences."""
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(SIZE, 3)).tolist()
    cells[4] = [1.0, None, 2.0]
    if is_sequence:
        cells = [[cell, [0.0, 1.0, 2.0]] for cell in cells]
    write_lists(tmp_path / "table.jsonl", cells)
    write_config(tmp_path, "table.jsonl", "numbers")
    assert check() == (1, [("table", 5)])
    assert check("--data.drop_empty", "true") == (0, [])
    fit = ["--config", "config.yaml", "--data.drop_empty", "true"]
    assert run("fit", [*fit, "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]) == 0
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    predict = ["--ckpt_path", str(checkpoint), "--data.manifest", "table.jsonl", "--output", "p.jsonl"]
    assert run("predict", [*predict, "--data.num_workers", "0"]) == 0
    errors = [json.loads(line)["error"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row for row, error in enumerate(errors) if error] == [4]
    assert "all inputs are empty" in errors[4]
    (prediction,) = Predictor.from_checkpoint(checkpoint, "cpu").predict([{"numbers": cells[4]}])
    assert prediction.error.startswith("the sample has none of the model's inputs")


def write_columns(path, change):
    """Rows with three columns of numbers; ``change`` is a dictionary from (row, column) to a cell."""
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"s{row}", "x": rng.normal(), "y": rng.normal(), "z": rng.normal(), "label": label, "split": split}
        for row, (label, split) in enumerate(zip(LABELS, SPLITS, strict=True))
    ]
    for (row, column), cell in change.items():
        rows[row][column] = cell
    write_table(path, rows)


@pytest.mark.parametrize(
    ("missing_numbers", "empty", "sentence"),
    [
        ("input", ["y"], "the sample 's3' has no complete input (empty: y): fill it in, set missing_numbers: flag of"),
        ("input", ["x", "y", "z"], "all inputs of the sample 's3' are empty (x, y, z): fill one in, remove the row,"),
        ("flag", ["x", "y", "z"], "all inputs of the sample 's3' are empty (x, y, z): fill one in, remove the row,"),
    ],
)
def test_a_row_without_input_is_told_which_cell_is_empty(
    tmp_path, monkeypatch, capsys, missing_numbers, empty, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # which fit writes to
    write_columns(tmp_path / "table.csv", {(3, column): "" for column in empty})
    write_config(tmp_path, "table.csv", ["x", "y", "z"], missing_numbers=missing_numbers)
    assert run("fit", ["--config", "config.yaml", "--dry_run"]) == 2
    assert f"row 5: {sentence}" in capsys.readouterr().err


def test_a_row_whose_only_list_lacks_a_number_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    write_lists(tmp_path / "table.jsonl", [[1.0, row, None if row == 3 else 2.0] for row in range(SIZE)])
    write_config(tmp_path, "table.jsonl", "numbers")
    assert run("fit", ["--config", "config.yaml", "--dry_run"]) == 2
    assert (
        "row 4: the sample 's3' has no complete input (numbers lacks a number): fill it in" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("missing_numbers", "cells", "left"),
    [
        ("flag", {"y": "many"}, ["1", "", "3"]),
        ("flag", {"x": "many", "y": "nan", "z": "1,5"}, None),  # no number is left
        ("flag", {"x": "", "y": "nan", "z": ""}, None),
        ("input", {"y": "many"}, None),
    ],
)
def test_wrong_numbers_of_several_are_emptied_and_the_row_is_kept_if_its_input_is(
    tmp_path, check, missing_numbers, cells, left
):
    cells = {(3, column): cell for column, cell in ({"x": "1", "y": "2", "z": "3"} | cells).items()}
    write_columns(tmp_path / "table.csv", cells)
    write_config(tmp_path, "table.csv", ["x", "y", "z"], missing_numbers=missing_numbers)
    code, findings = check("--cleaned", "cleaned.csv")
    assert (code, set(findings)) == (1, {("table", 5)})
    with (tmp_path / "cleaned.csv").open() as file:
        rows = {row["id"]: [row["x"], row["y"], row["z"]] for row in csv.DictReader(file)}
    assert rows.pop("s3", None) == left
    assert len(rows) == SIZE - 1
    assert check("--data.manifest", "cleaned.csv") == (0, [])
