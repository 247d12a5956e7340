"""``fusion-pl predict`` for one sample on the command line, and for rows of the standard input."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from fusion_pl.cli.run import run
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.fusion import Average, Concat
from fusion_pl.predict import Predictor
from tests.prediction.conftest import NUM_ROWS
from tests.terminal import Terminal


@pytest.fixture(scope="module")
def pictures(save_model):
    return save_model({"text": TinyText(dim=8), "image": TinyImage(dim=8)}, Concat)


def predict_sample(checkpoint, *arguments):
    return run("predict", ["--ckpt_path", checkpoint, *arguments])


def test_one_sample_is_printed_as_json(pictures, manifest, capsys):
    picture = str(manifest.parent / "0.png")
    assert predict_sample(pictures, "--input", "text=a = b", "--input", f"image={picture}", "--embeddings") == 0
    found = json.loads(capsys.readouterr().out)
    expected = Predictor.from_checkpoint(pictures, "cpu").predict({"text": "a = b", "image": picture})
    assert found["id"] == expected.id
    assert found["label"] == expected.label
    assert found["probabilities"] == expected.probabilities
    assert len(found["embedding"]) == 256
    assert "set" not in found


def test_a_sample_that_cannot_be_read_has_an_error(pictures, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert predict_sample(pictures, "--input", f"image={tmp_path}/bad.png") == 1
    assert "bad.png cannot be read" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "txt=a"], "--input txt: the inputs of the model are text, image; did you mean text?"),
        (["--input", "image=lost.png"], "--input image: there is no file 'lost.png' (looked for /"),
        (["--input", "image=/lost.png"], "--input image: there is no file '/lost.png': check the path"),
        (["--input", "image="], "--input image: there is no file ''"),
        (["--input", "hello"], "--input hello: write NAME=VALUE, such as text=…"),
        (["--input", "text=a", "--input", "text=b"], "--input text is given twice: give it once"),
        (["--input", "text=a", "--output", "p.csv"], "whose prediction is printed: leave out --output"),
        (["--input", "text=a", "--data.manifest", "m.csv"], "--data.manifest belongs to a table: give one of the two"),
        (["--input", "text=a", "--data", "HubData"], "--data belongs to a table: give one of the two"),
        (["--input", "text=a", "--select", "3"], "--select belongs to a table: give one of the two"),
    ],
)
def test_wrong_inputs_are_refused(arguments, message, pictures, capsys):
    assert predict_sample(pictures, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_terminal_shows_a_table(pictures, folder):
    with Terminal(["predict", "--ckpt_path", pictures, "--input", "text=hello"]) as terminal:
        assert terminal.ended() == 0, terminal.text
    assert "prediction: " in terminal.text
    assert "│ ham" in terminal.text
    assert "{" not in terminal.text


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_of_the_standard_input(form, folder, predict, monkeypatch, capfdbinary):
    """Written to the standard output; the paths of files would begin in the current folder."""
    assert predict(output="p.jsonl") == 0
    capfdbinary.readouterr()
    content = Path("rows.csv").read_text()
    if form == "jsonl":
        content = "".join(json.dumps(row) + "\n" for row in csv.DictReader(io.StringIO(content)))
        content = content.replace('""', "null")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(1, "w", closefd=False)))
    monkeypatch.delattr("fusion_pl.prediction.source.sha256")  # no key is needed: the output cannot be continued
    assert predict(output="-", data=("--data.manifest", "-")) == 0
    found = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    expected = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    for line, row in enumerate(expected, start=1):  # JSON Lines have no header
        error = (row["error"] or "").replace("rows.csv, row", "the standard input, row")
        row["error"] = (error.replace(f"row {line + 1}:", f"row {line}:") if form == "jsonl" else error) or None
    assert found == expected
    assert len(found) == NUM_ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" ", "--data.manifest -: the standard input is empty"),
        (b"txt\na\n", "the standard input has 1 problem"),
        (b"text,text\na,b\n", "the standard input, row 1: the column 'text' appears more than once"),
    ],
)
def test_a_table_that_cannot_be_read_from_the_standard_input(content, message, folder, predict, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert predict(output="-", data=("--data.manifest", "-")) == 2
    found = capsys.readouterr().err
    assert message in found
    assert "stdin.csv" not in found


def test_embeddings_in_every_format(folder, predict):
    """They are those of the model, to the digits that the format has."""
    for suffix in ("csv", "jsonl", "parquet"):
        assert predict("--embeddings", output=f"p.{suffix}") == 0
    with open("p.csv", newline="") as file:
        cells = [json.loads(row["embedding"] or "null") for row in csv.DictReader(file)]
    objects = [json.loads(line)["embedding"] for line in Path("p.jsonl").read_text().splitlines()]
    from pyarrow import parquet

    table = parquet.read_table("p.parquet")
    assert table["embedding"].to_pylist() == objects
    assert cells[3] is None
    assert objects[3] is None
    for found, expected in zip(cells, objects, strict=True):
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-5))
    assert table.column_names == [
        "id",
        "label",
        "probability",
        "p(ham)",
        "p(spam)",
        "weight(text)",
        "embedding",
        "error",
    ]


def test_a_head_without_embeddings_is_refused(save_model, folder, capsys):
    checkpoint = save_model({"text": TinyText(dim=8)}, Average)
    assert predict_sample(checkpoint, "--input", "text=a", "--embeddings") == 2
    assert "--embeddings: Average fuses decisions, not embeddings" in capsys.readouterr().err
