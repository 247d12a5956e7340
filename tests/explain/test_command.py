"""``fusion-pl explain`` as a user runs it."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from fusion_pl import FusionClassifier
from fusion_pl.__main__ import main
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.fusion import Concat
from fusion_pl.predict import Predictor
from fusion_pl.tasks import MultiLabel
from tests.test_module import quiet_trainer

ENCODERS = {
    "text": lambda: TinyText(dim=8),
    "image": lambda: TinyImage(dim=16, image_size=16, channels=1),
    "audio": lambda: TinyAudio(dim=8, num_layers=1),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, manifest):
    torch.manual_seed(0)
    model = FusionClassifier({name: build() for name, build in ENCODERS.items()}, Concat, ["high", "low"])
    data = ManifestData(str(manifest), batch_size=8, num_workers=0)
    data.processors = model.processors
    folder = tmp_path_factory.mktemp("explained")
    trainer = quiet_trainer(folder, max_epochs=3)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "best.ckpt", weights_only=True)
    return folder / "best.ckpt"


def explain(checkpoint, manifest, *arguments, output="why"):
    with pytest.MonkeyPatch.context() as patch:
        words = ["--ckpt_path", checkpoint, "--data.manifest", manifest, "--output", output, "--device", "cpu"]
        patch.setattr(sys, "argv", ["fusion-pl", "explain", *map(str, words), *arguments])
        return main()


def read(folder="why"):
    return [json.loads(line) for line in Path(folder, "explanations.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def output(checkpoint, manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output") / "reports" / "why"
    assert explain(checkpoint, manifest, "--limit", "6", "--data.num_workers", "0", output=folder) == 0
    return folder


def test_every_row_has_the_class_and_the_inputs_of_its_prediction(output, checkpoint, manifest):
    records = read(output)
    assert [record["id"] for record in records] == [f"s{row}" for row in range(6)]
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    with manifest.open() as file:
        rows = list(csv.DictReader(file))
    for record, row in zip(records, rows, strict=False):
        files = {name: manifest.parent / row[name] for name in ("image", "audio") if row[name]}
        prediction = predictor.predict(files | {"text": row["text"]})
        assert (record["label"], record["explained_class"]) == (prediction.label, prediction.label)
        assert record["probability"] == pytest.approx(prediction.probability, abs=1e-5)
        assert set(record["inputs"]) == {"text", *files}
        assert all(effect["parts"]["spans"] for effect in record["inputs"].values())
        total = sum(effect["shapley"] for effect in record["inputs"].values())
        assert total == pytest.approx(record["log_odds"] - record["log_odds_without_inputs"], abs=1e-4)


def test_the_page_is_self_contained(output):
    page = (output / "explanation.html").read_text()
    images, sounds = page.count("data:image/png"), page.count("data:audio/wav")
    assert (images, sounds) == (2 * 5, 5)  # one row lacks its image, another one its sound
    assert page.count("<polygon") == 5
    assert page.count("<section") == 6
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_the_console_says_which_rows_were_explained(checkpoint, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert explain(checkpoint, manifest, "--ids", "s40,s3") == 0
    assert [record["id"] for record in read()] == ["s40", "s3"]
    assert "2 of 48 rows explained: why/explanation.html" in capsys.readouterr().err
    assert explain(checkpoint, manifest, "--limit", "1", "--target", "low") == 0
    assert [record["explained_class"] for record in read()] == ["low"]
    message = capsys.readouterr().err
    assert "These are the first 1 rows; --limit 48 explains all, --ids selects rows." in message


def test_of_several_predicted_labels_the_explained_one_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("id,text\na,one\nb,two\n")
    model = FusionClassifier({"text": TinyText(dim=8)}, Concat, ["crime", "drama", "war"], task=MultiLabel())
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.zero_()
        model.fusion.classifier[-1].bias.copy_(torch.tensor([2.0, 1.0, -1.0]))
    trainer = quiet_trainer(tmp_path, max_epochs=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint("best.ckpt", weights_only=True)
    assert explain("best.ckpt", "rows.csv") == 0
    message = " ".join(capsys.readouterr().err.split())
    assert "2 rows have several predicted labels, of which only the most probable one is explained: --target" in message
    page = Path("why/explanation.html").read_text()
    assert (
        page.count("Of the 2 predicted labels, only crime is explained here; --target NAME explains another one.") == 2
    )
    assert explain("best.ckpt", "rows.csv", "--target", "drama") == 0
    assert "several predicted labels" not in capsys.readouterr().err
    assert explain("best.ckpt", "rows.csv", "--target", "war") == 0  # which is not predicted
    assert "war is explained here" not in Path("why/explanation.html").read_text()


def test_the_method_applies_to_texts_and_images(checkpoint, manifest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert explain(checkpoint, manifest, "--limit", "1", "--method", "integrated_gradients") == 0
    parts = {name: effect["parts"] for name, effect in read()[0]["inputs"].items()}
    assert parts["text"]["spans"]
    assert parts["text"]["error"] is not None
    assert "not available for TinyAudio" in parts["audio"]["note"]
    page = Path("why/explanation.html").read_text()
    assert "are integrated gradients" in page
    assert "effects of leaving them out" not in page


def test_rows_that_cannot_be_explained_have_their_error(checkpoint, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("id,text,image,audio\na,one,,\nb,,,\nc,two,broken.png,\n")
    Path("broken.png").write_bytes(b"no image")
    assert explain(checkpoint, "rows.csv") == 0
    records = read()
    assert "explained_class" in records[0]
    assert "all inputs are empty" in records[1]["error"]
    assert "broken.png cannot be read as an image" in records[2]["error"]
    assert "No explanation" in Path("why/explanation.html").read_text()
    assert "2 could not be explained; the first, b: " in capsys.readouterr().err
    Path("rows.csv").write_text("id,text,image,audio\nb,,,\n")
    assert explain(checkpoint, "rows.csv") == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--limit", "0"], "--limit is 0, expected a number of rows of at least 1"),
        (["--ids", "s3,s99"], r"has no row with the id 's99'; did you mean s\d"),
        (["--target", "hihg"], "'hihg' is not one of the classes high, low; did you mean high"),
        (["--data.inputs", "{text: notes}"], "there is no column 'notes' for the input 'text'"),
        (["--targe", "high"], "did you mean --target"),
        (["--method", "gradients"], "occlusion.*integrated_gradients"),
    ],
)
def test_mistakes_are_one_sentence(arguments, match, checkpoint, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert explain(checkpoint, manifest, *arguments) == 2
    message = capsys.readouterr().err
    assert re.search(match, message)
    assert "Traceback" not in message
    assert not list(tmp_path.rglob("*.jsonl"))


def test_an_output_that_is_a_file_is_refused(checkpoint, manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("why").write_text("mine")
    assert explain(checkpoint, manifest) == 2
    assert "--output why is, or lies below, a file: give a folder" in capsys.readouterr().err
    assert Path("why").read_text() == "mine"
