"""Tables with names and cells that are made to break something, through the real command."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from fusion_pl.cli.run import run

LABELS = ["[/b]", r"$\frac{1$", "\x1b[2J\N{CJK UNIFIED IDEOGRAPH-732B}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose classes are markup of rich and of matplotlib; and the checkpoint that it left."""
    folder = tmp_path_factory.mktemp("hostile")
    Image.new("L", (16, 16), 200).save(folder / "a.png")
    soundfile.write(folder / "a.wav", np.sin(np.arange(4000)), 8000)
    rows = [
        {"text": f"row {row}", "image": "a.png", "audio": "a.wav", "label": LABELS[row % 3]}
        | {"split": ("train", "val")[row % 4 == 3]}
        for row in range(24)
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = {
        "text": ("TinyText", {"dim": 8}),
        "image": ("TinyImage", {"dim": 16, "image_size": 16, "channels": 1}),
        "audio": ("TinyAudio", {"dim": 8, "num_layers": 1}),
    }
    config = {
        "model": {
            "encoders": {
                name: {"class_path": f"fusion_pl.encoders.{part}", "init_args": given}
                for name, (part, given) in small.items()
            },
            "fusion": {"class_path": "fusion_pl.fusion.Mean"},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": str(folder / "manifest.jsonl"), "batch_size": 5, "num_workers": 0},
        },
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder / "logs")},
            },
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fusion-pl"])
        assert run("fit", ["--config", str(folder / "config.yaml")]) == 0
    return folder


def test_labels_may_look_like_markup(folder):
    (path,) = folder.glob("logs/**/metrics.json")
    assert set(json.loads(path.read_text())["per_class"]) == set(LABELS)


def test_nothing_that_a_terminal_would_obey_is_printed(folder, tmp_path, monkeypatch, capsys, caplog):
    """Neither of a label, nor of a file that cannot be read, nor of one that a sentence names."""
    monkeypatch.chdir(tmp_path)
    (folder / "\x1b[2Jbad.png").write_bytes(b"none")
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows[0]["image"] = "\x1b[2Jbad.png"
    table = folder / "bad.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    given = ["--config", str(folder / "config.yaml"), "--data.manifest", str(table), "--trainer.logger", "false"]
    assert run("fit", given) == 2
    assert run("fit", [*given, "--data.on_bad_file", "missing", "--checkpoint.dirpath", "other"]) == 0
    said = capsys.readouterr()
    assert "\\x1b[2J\N{CJK UNIFIED IDEOGRAPH-732B}" in said.out
    assert r"\x1b[2Jbad.png" in said.err
    assert "fusion-pl data check lists all such rows" in said.err
    assert r"\x1b[2Jbad.png" in caplog.text
    assert "\x1b[2J" not in said.out + said.err + caplog.text


def predicted(folder, tmp_path, rows):
    (best,) = folder.glob("logs/**/best.ckpt")
    table = folder / "new.jsonl"
    table.write_text("\n".join(rows))
    output = tmp_path / "p.jsonl"
    data = ["--data.manifest", str(table), "--data.num_workers", "0"]
    code = run("predict", ["--ckpt_path", str(best), "--output", str(output), *data])
    return code, [json.loads(line) for line in output.read_text().splitlines()] if code == 0 else []


def test_a_hostile_row_gets_its_own_error_and_spoils_no_other(folder, tmp_path):
    if not (folder / "pipe.png").exists():
        os.mkfifo(folder / "pipe.png")
    content = bytearray((folder / "a.wav").read_bytes())
    (folder / "cut.wav").write_bytes(content[:1000])
    (folder / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    cells = [
        ({"text": "fine"}, None),
        ({"text": "half \ud800 pair"}, "which is not a character"),
        ({"image": "pipe.png"}, "pipe.png is not a file"),
        ({"image": "page.png"}, "page.png cannot be read as an image"),
        ({"image": "\x1b[2Jnone.png"}, "does not exist"),
        ({"audio": "cut.wav"}, "cut.wav is truncated"),
        ({"text": "fine", "id": "half \ud801"}, None),
        ({"text": "fine", "image": "a.png", "audio": "a.wav"}, None),
    ]
    code, lines = predicted(folder, tmp_path, [json.dumps(row) for row, _ in cells])
    assert code == 0
    for line, (row, error) in zip(lines, cells, strict=True):
        assert (line["error"] is None) == (error is None), line
        assert (error or "") in (line["error"] or "")
        assert line["label"] in {*LABELS, None}
        assert line["id"] == row.get("id", line["id"])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("[" * 100_000, "row 2: the line is not valid JSON"),
        ('{"text": ' + "9" * 5000 + "}", "row 2: the line is not valid JSON"),
        ('{"text": {"a": 1}}', "row 2, column 'text': the cell is a dict"),
    ],
)
def test_json_that_is_too_deep_or_too_long_is_a_problem_of_its_row(folder, tmp_path, line, match, capsys):
    code, _ = predicted(folder, tmp_path, ['{"text": "a"}', line])
    assert code == 2
    assert match in capsys.readouterr().err


def test_a_table_without_one_of_the_inputs_says_how_to_do_without(folder, tmp_path, capsys):
    rows = [{"text": f"row {row}", "label": "ab"[row % 2], "split": ("train", "val")[row % 4 == 3]} for row in range(8)]
    table = tmp_path / "text.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    given = ["--config", str(folder / "config.yaml"), "--data.manifest", str(table)]
    assert run("fit", given) == 2
    assert (
        "give another column with --data.inputs.image, or leave image out of model.encoders" in capsys.readouterr().err
    )
    text = ["--model.encoders", "{text: {class_path: fusion_pl.encoders.TinyText}}"]
    assert run("fit", [*given, *text, "--data.input_dropout", "{text: 0.1, image: 0.1}"]) == 2
    assert "remove 'image' from data.input_dropout, or give --data.input_dropout null" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_is_named_without_what_is_written_beside(folder, tmp_path, capsys):
    (tmp_path / "p.csv.partial").touch()  # for root, too, the folder cannot be made
    (best,) = folder.glob("logs/**/best.ckpt")
    given = ["--ckpt_path", str(best), "--data.manifest", str(folder / "manifest.jsonl"), "--data.num_workers", "0"]
    assert run("predict", [*given, "--output", str(tmp_path / "p.csv")]) == 2
    said = capsys.readouterr().err
    assert f"cannot write {tmp_path}/p.csv: File exists: a folder has the name of a file" in said
    assert "--ckpt_path last" not in said
