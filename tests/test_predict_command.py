"""``fusion-pl predict`` as a user runs it: which checkpoint, which file, which columns, which lines on the console."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from fusion_pl.__main__ import main
from fusion_pl.cli.run import run
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.prediction import rows as rows_module
from tests import texts

DATA = ["--data.manifest", "rows.csv", "--data.num_workers", "0"]


def predict(*arguments, ckpt_path=str(texts.BEST), output="p.csv"):
    return run("predict", ["--ckpt_path", ckpt_path, "--output", output, *DATA, *arguments])


def table(path="p.csv"):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_of_the_newest_run_is_found_by_name(name, again):
    """As for test: by the number of the run, in the folder of its logger."""
    assert predict(ckpt_path=f"lightning_logs/version_0/checkpoints/{name}.ckpt", output="path.csv") == 0
    assert predict(ckpt_path=name, output="name.csv") == 0
    assert table("name.csv") == table("path.csv")
    Path("lightning_logs").rename("runs")
    assert predict("--trainer.logger.save_dir", "runs", ckpt_path=name, output="moved.csv") == 0
    Path("logs/pets").mkdir(parents=True)
    Path("runs/version_0").rename("logs/pets/version_3")
    logger = ["--trainer.logger.save_dir", "logs", "--trainer.logger.name", "pets"]
    assert predict(*logger, ckpt_path=name, output="named.csv") == 0


def test_a_missing_checkpoint_is_reported_with_the_searched_folder(again, capsys):
    Path("lightning_logs/pets").mkdir()
    Path("lightning_logs/version_0").rename("lightning_logs/pets/version_0")
    assert predict(ckpt_path="best") == 2
    message = capsys.readouterr().err
    assert "there is no best.ckpt below lightning_logs/version_*/checkpoints" in message
    assert "--trainer.logger.name pets" in message
    assert predict(ckpt_path="best.ckpt") == 2
    message = capsys.readouterr().err
    assert f"there is no checkpoint best.ckpt (looked for {again / 'best.ckpt'})" in message
    assert "or give best or last" in message


def test_existing_output_is_not_overwritten_without_the_option(again, capsys):
    Path("p.csv").write_text("mine")
    assert predict() == 2
    assert "p.csv exists: pass --overwrite to replace it, or another --output" in capsys.readouterr().err
    assert Path("p.csv").read_text() == "mine"
    assert predict("--overwrite") == 0
    assert len(table()) == 36


@pytest.mark.parametrize("columns", ["split,text", "[split, text]"])
def test_columns_of_the_table_are_copied_to_the_output(columns, again):
    rows = table("rows.csv")
    assert predict("--columns", columns) == 0
    assert list(table()[0])[:3] == ["id", "split", "text"]
    assert [(row["split"], row["text"]) for row in table()] == [(row["split"], row["text"]) for row in rows]
    assert predict("--columns", columns, output="p.jsonl") == 0
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [line["columns"] for line in lines] == [{"split": row["split"], "text": row["text"]} for row in rows]


def test_a_copied_column_with_the_name_of_an_output_is_renamed(again):
    assert predict("--columns", "label") == 0
    assert [row["table(label)"] for row in table()] == [row["label"] for row in table("rows.csv")]
    assert {row["label"] for row in table()} <= {"ham", "spam"}


def test_a_column_that_the_table_lacks_is_refused(again, capsys):
    assert predict("--columns", "text,splitt") == 2
    message = capsys.readouterr().err
    assert "there is no column 'splitt' for --columns" in message
    assert "did you mean split?" in message
    assert not Path("p.csv").exists()


@pytest.mark.parametrize("name", ["text", "notes"])
def test_a_given_column_that_the_table_lacks_is_refused(name, picture_checkpoint, tmp_path, monkeypatch, capsys):
    """A column that only the checkpoint records may be absent."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("picture,words\n,hello\n")
    assert predict("--data.inputs", f"{{text: {name}}}", ckpt_path=picture_checkpoint) == 2
    message = capsys.readouterr().err
    assert f"there is no column '{name}' for the input 'text'; the columns are 'picture', 'words'" in message
    assert "predicting without" not in message
    assert not Path("p.csv").exists()
    assert predict("--data.inputs", "{text: words}", ckpt_path=picture_checkpoint) == 0


def test_an_empty_row_has_one_reason(picture_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("id,image,text\nn1,,hello\nn2,,\n")
    assert predict(ckpt_path=picture_checkpoint) == 0
    assert table()[1]["error"] == "rows.csv, row 3: all inputs are empty: fill one in, or remove the row"


@pytest.mark.parametrize("option", ["--config config.yaml", "--config=config.yaml", "-c config.yaml"])
def test_a_configuration_is_refused(option, again, capsys):
    assert predict(*option.split()) == 2
    message = capsys.readouterr().err
    assert "fusion-pl predict takes no --config, because the checkpoint contains the model" in message
    assert "no such file" not in message


@pytest.mark.parametrize("command", ["explain", "evaluate"])
@pytest.mark.parametrize(
    "option", ["--config config.yaml", "--config=config.yaml", "-c config.yaml", "--data fusion_pl.data.ManifestData"]
)
def test_the_configuration_of_the_training_is_refused(command, option, again, capsys, monkeypatch):
    given = ["--ckpt_path", str(texts.BEST), "--output", "p.csv", *DATA]
    monkeypatch.setattr(sys, "argv", ["fusion-pl", command, *option.split(), *given])
    assert main() == 2
    message = capsys.readouterr().err
    assert f"fusion-pl {command} takes neither --config nor a class for --data" in message
    assert "the checkpoint" in message
    assert "no such file" not in message


def test_a_file_of_data_options_is_accepted(again, capsys):
    Path("options.yaml").write_text("manifest: rows.csv\nnum_workers: 0\n")
    given = ["--ckpt_path", str(texts.BEST), "--output", "p.csv"]
    assert run("predict", [*given, "--data", "options.yaml"]) == 0
    assert len(table()) == 36
    assert run("predict", [*given, "--overwrite", "--data", "option.yaml"]) == 2
    assert "--data option.yaml: there is no such file" in capsys.readouterr().err


def test_known_labels_give_an_accuracy(again, monkeypatch, capsys):
    """Rows are counted batch by batch; the first ones are new."""
    monkeypatch.setattr(rows_module, "MIN_ROWS", 1)
    header, *lines = Path("rows.csv").read_text().splitlines()
    Path("rows.csv").write_text("\n".join([header, "a new thing,ham,train", "another,ham,train", *lines]))
    assert predict("--data.batch_size", "5") == 0
    rows = list(zip(table(), table("rows.csv"), strict=True))
    right = sum(prediction["label"] == row["label"] for prediction, row in rows)
    known = "38 rows with a known label, 36 of which the model was trained on"  # each text is also in a training row
    assert f"accuracy {right / 38:.4f} ({known})" in capsys.readouterr().err


def test_absent_and_unknown_labels_are_accepted(again, capsys):
    lines = Path("rows.csv").read_text().splitlines()
    Path("rows.csv").write_text("\n".join([lines[0], lines[1], "good thing,ham!,train", "bad thing,,train"]))
    assert predict() == 0
    assert "(1 row with a known label, 1 of which the model was trained on)" in capsys.readouterr().err
    Path("rows.csv").write_text("text,label\nanother thing,ham\n")
    assert predict("--overwrite") == 0
    assert "(1 row with a known label)" in capsys.readouterr().err
    Path("rows.csv").write_text("text\ngood thing\n")
    assert predict("--overwrite") == 0
    message = capsys.readouterr().err
    assert "1 of 1 rows predicted" in message
    assert "accuracy" not in message


def test_a_head_without_weights_has_no_weight_columns(again):
    assert predict() == 0
    assert list(table()[0]) == ["id", "label", "probability", "p(ham)", "p(spam)", "error"]


@pytest.fixture(scope="module")
def picture_checkpoint(tmp_path_factory):
    """An untrained model of texts and images, saved."""
    encoders = {"text": TinyText(dim=8), "image": TinyImage(dim=8)}
    path = tmp_path_factory.mktemp("pictures") / "model.ckpt"
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(FusionClassifier(encoders, Concat, ["ham", "spam"]))
    trainer.save_checkpoint(path)
    return str(path)


@pytest.mark.parametrize(("text", "code"), [("", 1), ("hello", 1), ("only text", 0)])
def test_the_exit_code_is_1_if_no_row_can_be_predicted(text, code, picture_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    last = ",only text" if code == 0 else "lost/2.png,"
    Path("rows.csv").write_text(f"image,text\nlost/1.png,{text}\n{last}\n")
    assert predict(ckpt_path=picture_checkpoint) == code
    message = capsys.readouterr().err
    assert f"{1 - code} of 2 rows predicted, written to p.csv" in message
    assert f"{1 + code} could not be predicted, see the error column; the first: {table()[0]['error']}" in message
    assert "lost/1.png" in table()[0]["error"]
    assert f"Relative paths begin in {tmp_path}: if the files are in another folder" in message


def test_the_root_is_not_suggested_for_files_that_exist(picture_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("1.png").write_text("not an image")
    Path("rows.csv").write_text("image,text\n1.png,\n")
    assert predict(ckpt_path=picture_checkpoint) == 1
    message = capsys.readouterr().err
    assert "cannot be read as an image" in message
    assert "--data.root" not in message
