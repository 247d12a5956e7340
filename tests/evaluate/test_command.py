"""``fusion-pl evaluate`` as a user runs it."""

from __future__ import annotations

import csv
import html
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fusion_pl import FusionClassifier
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.evaluate import scores
from fusion_pl.evaluate.parts import Parts
from fusion_pl.evaluate.predict_rows import predict_rows
from fusion_pl.fusion import Concat
from fusion_pl.predict import Predictor
from tests.analysis.test_report import Page
from tests.commands import run_command
from tests.evaluate import models
from tests.evaluate.conftest import load_rows
from tests.evaluate.models import SPOILT, fit_model, read, results, write_table
from tests.test_module import quiet_trainer

only_multi_class = pytest.mark.parametrize("evaluated", ["MultiClass"], indirect=True)


def evaluate(checkpoint, table, *arguments, output="out"):
    """Evaluate without corrupted inputs, which other tests measure."""
    return models.evaluate(checkpoint, table, "--sweeps", "false", *arguments, output=output)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(scores, "NUM_RESAMPLES", 20)


def test_the_metrics_are_those_of_the_predictions(evaluated):
    """Predicted with the Python interface, and counted by their names."""
    folder, _ = evaluated
    predictor = Predictor.from_checkpoint(folder / "best.ckpt", device="cpu")
    rows = [row for row in read(folder / "rows.csv") if row["split"] == "test"]
    predictions = predictor.predict([{name: row[name] or None for name in ("first", "second")} for row in rows])
    labels = [set(filter(None, row["label"].split("|"))) for row in rows]
    right = [set(prediction.names) == names for prediction, names in zip(predictions, labels, strict=True)]
    found = results(folder / "out")
    assert found["overview"]["rows"] == len(rows)
    score = found["metrics"][predictor.task.score]
    assert score["value"] == pytest.approx(sum(right) / len(right))
    assert score["interval"][0] < score["value"] < score["interval"][1]


def test_the_spoilt_speaker_is_found(evaluated):
    folder, task = evaluated
    found = results(folder / "out")
    groups = [(column, group) for column, members in found["groups"].items() for group in members]
    worse = {(column, group["name"]) for column, group in groups if group["is_worse"]}
    assert worse == {("speaker", SPOILT)}
    (warning,) = found["overview"]["warnings"]
    assert f"the model is worse on the group {SPOILT} of speaker" in warning
    assert html.escape(warning) in (folder / "out/report.html").read_text()
    (group,) = [group for _, group in groups if group["is_worse"]]
    error = {"Ordinal": "mae", "MultiLabel": "hamming loss"}.get(task)  # what is tested, unless it is 1 - accuracy
    tested = f"{error} {group['error']:.3f} (" if error else f"accuracy {100 * group['score']:.1f} % ("
    others = f"{group['other_error']:.3f}" if error else f"{100 - 100 * group['other_error']:.1f} %"
    assert tested in warning
    assert f" {others} on all others; p" in warning


def test_every_row_is_in_one_group_of_each_column(evaluated):
    folder, _ = evaluated
    found = results(folder / "out")
    rows = [row for row in read(folder / "rows.csv") if row["split"] == "test"]
    counts = {group["name"]: group["rows"] for group in found["groups"]["speaker"]}
    assert counts == Counter(row["speaker"] for row in rows)
    assert {group["name"]: group["rows"] for group in found["groups"]["note"]} == {
        "few": sum(row["note"] == "few" for row in rows),
        "(empty)": sum(row["note"] == "" for row in rows),
    }
    ages = sorted(int(row["age"]) for row in rows)
    assert len(found["groups"]["age"]) == 4
    for group in found["groups"]["age"]:
        low, high = map(int, group["name"].split(" to "))
        assert group["rows"] == sum(low <= age <= high for age in ages)
    patterns = Counter(" + ".join(name for name in ("first", "second") if row[name]) for row in rows)
    assert {group["name"]: group["rows"] for group in found["groups"]["present inputs"]} == patterns
    assert all(sum(group["rows"] for group in groups) == len(rows) for groups in found["groups"].values())
    small = next(group for group in found["groups"]["note"] if group["name"] == "few")
    assert small["p_value"] is None
    assert "too few rows" in (folder / "out/report.md").read_text()
    lengths = {name: groups for name, groups in found["groups"].items() if name.startswith("length of ")}
    assert set(lengths) == {"length of first (characters)", "length of second (characters)"}
    assert {group["name"] for group in lengths["length of first (characters)"]} > {"(empty)"}


def test_the_hardest_samples_are_those_with_the_least_probable_label(evaluated):
    folder, task = evaluated
    found = results(folder / "out")
    samples = found["hardest"]["samples"]
    losses = [sample["loss"] for sample in samples]
    assert losses == sorted(losses, reverse=True)
    rows = {str(number): row for number, row in enumerate(read(folder / "rows.csv"), start=2)}
    for sample in samples:
        assert sample["target"] == list(filter(None, rows[sample["id"]]["label"].split("|")))
        probabilities = torch.tensor([sample["probabilities"][name] for name in found["overview"]["classes"]]).double()
        has = torch.tensor([name in sample["target"] for name in found["overview"]["classes"]])
        likelihoods = torch.where(has, probabilities, 1 - probabilities) if task == "MultiLabel" else probabilities[has]
        assert sample["loss"] == pytest.approx(-float(likelihoods.log().mean()), abs=1e-4)
    doubts = [sample["doubt"] for sample in found["doubtful"]["samples"]]
    assert doubts == sorted(doubts, reverse=True)
    assert max(losses) >= found["metrics"]["nll"]["value"]


def test_the_card_of_a_sample_has_its_labels_and_its_groups(evaluated):
    folder, task = evaluated
    page = html.unescape((folder / "out/report.html").read_text())
    rows = {str(number): row for number, row in enumerate(read(folder / "rows.csv"), start=2)}
    samples = results(folder / "out")["hardest"]["samples"]
    for sample in samples:
        row = rows[sample["id"]]
        label = f"label {row['label']}" if row["label"] else "no labels"
        predicted = "|".join(sample["labels"]) if task == "MultiLabel" else sample["label"]
        decision = f"predicted {predicted}" if predicted else "none predicted"
        assert f"row {sample['row']}: {label}, {decision}" in page
        groups = {name: row[name] for name in ("speaker", "age", "note")}
        assert sample["groups"] == groups
        assert f"; speaker: {row['speaker']}, age: {row['age']}, note: {row['note'] or '(empty)'}</p>" in page


@pytest.fixture(scope="module")
def pictures(manifest, tmp_path_factory):
    """The evaluation of a model of texts, images and sounds."""
    torch.manual_seed(0)
    encoders = {
        "text": TinyText(dim=8),
        "image": TinyImage(dim=16, image_size=16, channels=1),
        "audio": TinyAudio(dim=8, num_layers=1),
    }
    model = FusionClassifier(encoders, Concat, ["high", "low"])
    data = ManifestData(str(manifest), batch_size=8, num_workers=0)
    data.processors = model.processors
    folder = tmp_path_factory.mktemp("pictures")
    trainer = quiet_trainer(folder, max_epochs=1)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "best.ckpt", weights_only=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "NUM_RESAMPLES", 20)
        assert evaluate(folder / "best.ckpt", manifest, output=folder / "new/out") == 0
    return folder / "new/out"


def test_the_page_is_self_contained(pictures):
    text = (pictures / "report.html").read_text()
    page = Page(text)  # all tags are closed
    addresses = [value or "" for _, attrs in page.tags for key, value in attrs.items() if key in {"src", "href"}]
    assert all(address.startswith("data:") for address in addresses)
    kinds = Counter(re.match(r"data:(\w+/[\w+]+);", address)[1] for address in addresses)
    assert kinds["image/png"] == 2 * 10  # both lists have all twelve rows, of which two lack the image
    assert kinds["audio/wav"] == 2 * 11
    assert kinds["image/svg+xml"] == 4
    assert "script" not in {tag for tag, _ in page.tags}
    groups = results(pictures)["groups"]
    assert set(groups) == {"length of text (characters)", "length of audio (seconds)", "present inputs"} & set(groups)
    assert {group["name"] for group in groups["present inputs"]} >= {"text + image + audio", "text + audio"}


def test_the_markdown_links_to_the_pictures(pictures):
    links = re.findall(r"\((pictures/[\w-]+\.svg)\)", (pictures / "report.md").read_text())
    assert {f"pictures/{path.name}" for path in pictures.glob("pictures/*")} == set(links)
    assert not list(pictures.rglob("*.partial"))
    assert not (pictures / "partial").exists()


@only_multi_class
def test_unlabelled_and_unreadable_rows_are_counted(evaluated, few_resamples, tmp_path, monkeypatch, capsys):
    folder, _ = evaluated
    monkeypatch.chdir(tmp_path)
    lines = (folder / "rows.csv").read_text().splitlines()
    rows = [line for line in lines if ",test," in line]
    extra = ["red,red,,test,s1,1,", "red,red,unheard,test,s1,1,", ",,x,test,s1,1,"]
    Path("rows.csv").write_text("\n".join([lines[0], *rows, *extra]))
    assert evaluate(folder / "best.ckpt", "rows.csv") == 0
    found, clean = results(), results(folder / "out")
    assert {name: one["value"] for name, one in found["metrics"].items()} == pytest.approx(
        {name: one["value"] for name, one in clean["metrics"].items()}
    )
    assert (found["overview"]["rows"], found["overview"]["failed"]) == (len(rows), 1)
    message = capsys.readouterr().err
    assert f"1 row is left out, whose label the model does not know; first, row {len(rows) + 3}: 'unheard'" in message
    assert "1 row is left out, without a label" in message
    assert "1 row could not be predicted" in message


@only_multi_class
def test_rows_of_the_training_are_told(evaluated, few_resamples, tmp_path, monkeypatch, capsys):
    folder, _ = evaluated
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "best.ckpt", "other.ckpt")
    assert evaluate(folder / "best.ckpt", folder / "rows.csv", "--split", "all", "--against", "other.ckpt") == 0
    assert results()["overview"]["rows"] == 480
    message = capsys.readouterr().err
    assert "the model was trained on 120 of these 480 rows" in message
    assert "120 of these 480 rows are validation rows" in message
    assert "warning: other.ckpt: the model was trained on 120 of these 480 rows" in message


def test_without_a_split_column_the_checkpoint_knows_the_test_rows(few_resamples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = read(write_table(Path("table.csv"), rows=200))
    with open("rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    checkpoint = fit_model(Path("rows.csv"), tmp_path, epochs=1)
    data = ManifestData("rows.csv")
    data.processors = Predictor.from_checkpoint(checkpoint, device="cpu").processors
    assert evaluate(checkpoint, "rows.csv") == 0
    assert results()["overview"]["rows"] == (data.row_splits == 2).sum()
    capsys.readouterr()
    Path("new.csv").write_text("first,second,label\nred,red,x\n")
    assert evaluate(checkpoint, "new.csv") == 2
    assert "has no column 'split' and no row that the checkpoint records as test" in capsys.readouterr().err
    assert evaluate(checkpoint, "new.csv", "--split", "all") == 0  # one row, of one class
    assert results()["overview"]["rows"] == 1


@only_multi_class
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--groups", "speeker,note"], r"there is no column 'speeker' for --groups.*did you mean speaker"),
        (["--data.label", "labels"], r"there is no column 'labels' for the label.*did you mean label"),
        (["--data.label", "note"], r"none of the 240 rows of the split test has a label of the model.*'note'"),
        (["--data.inputs", "{first: notes}"], r"there is no column 'notes' for the input 'first'"),
        (["--data.split", "part"], r"there is no column 'part' for the split"),
        (["--split", "tset"], r"split is tset, expected.*train.*test"),
        (["--against", "other.ckpt"], r"--against: there is no checkpoint other.ckpt"),
        (["--group", "speaker"], r"no option --group; did you mean --groups"),
    ],
)
def test_mistakes_are_one_sentence(evaluated, arguments, match, tmp_path, monkeypatch, capsys):
    folder, _ = evaluated
    monkeypatch.chdir(tmp_path)
    assert evaluate(folder / "best.ckpt", folder / "rows.csv", *arguments) == 2
    message = capsys.readouterr().err
    assert re.search(match, message)
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


@only_multi_class
def test_an_output_that_is_a_file_is_refused(evaluated, tmp_path, monkeypatch, capsys):
    folder, _ = evaluated
    monkeypatch.chdir(tmp_path)
    Path("out").write_text("mine")
    assert evaluate(folder / "best.ckpt", folder / "rows.csv") == 2
    assert "--output out is, or lies below, a file: give a folder" in capsys.readouterr().err
    assert Path("out").read_text() == "mine"


KILLED = """
import os
import signal

from fusion_pl.__main__ import main
from fusion_pl.evaluate.parts import Parts

store, stored = Parts.store, iter(range(3))


def store_or_kill(self, name, arrays):
    if next(stored, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    store(self, name, arrays)


Parts.store = store_or_kill
main()
"""


@only_multi_class
def test_a_killed_command_goes_on(evaluated, few_resamples, tmp_path, monkeypatch):
    """The parts that were stored before the kill are not predicted again, and the results are those without a kill."""
    folder, _ = evaluated
    monkeypatch.chdir(tmp_path)
    lines = (folder / "rows.csv").read_text().splitlines()
    Path("rows.csv").write_text("\n".join([lines[0], *[line for line in lines if ",test," in line] * 6]))
    shutil.copy(folder / "best.ckpt", "best.ckpt")
    options = ["--data.batch_size", "4", "--split", "all"]
    command = ["evaluate", "--ckpt_path", "best.ckpt", "--data.manifest", "rows.csv", "--output", "out"]
    command += ["--device", "cpu", "--data.num_workers", "0", "--sweeps", "false", *options]
    assert run_command(*command, code=KILLED).returncode == -signal.SIGKILL
    kept = {path.name for path in Path("out/partial").glob("*.npz")}
    assert len(kept) == 3
    assert not Path("out/report.html").exists()
    stored = []
    store = Parts.store

    def store_and_note(self, name, arrays):
        stored.append(self.path(name).name)
        store(self, name, arrays)

    monkeypatch.setattr(Parts, "store", store_and_note)
    assert evaluate("best.ckpt", "rows.csv", *options) == 0
    assert len(stored) == 1440 / 32 - len(kept)
    assert not kept & set(stored)
    assert evaluate("best.ckpt", "rows.csv", *options, output="whole") == 0
    assert len(stored) == 2 * 1440 / 32 - len(kept)
    assert results() == results("whole")
    assert not Path("out/partial").exists()


@only_multi_class
def test_parts_of_another_batch_size_are_not_used(evaluated, tmp_path):
    """After a stop for lack of memory, the command is repeated with smaller batches."""
    folder, _ = evaluated
    model, rows = load_rows(folder)
    parts = Parts(tmp_path, "key")
    for batch_size, size in ((8, 64), (5, 80)):  # of the first part alone, then of all rows
        model.data.batch_size = batch_size
        assert len(predict_rows(model, rows[:size], parts, Console(quiet=True))) == size


@only_multi_class
def test_a_second_checkpoint_may_have_other_inputs(evaluated, few_resamples, tmp_path, monkeypatch, capsys):
    """Compared with both tests on the predictions of the Python interface; rows without its input are left out."""
    folder, _ = evaluated
    monkeypatch.chdir(tmp_path)
    table = folder / "rows.csv"
    other = fit_model(table, tmp_path, epochs=1, inputs=("first",), drop_empty=True)
    assert evaluate(folder / "best.ckpt", table, "--against", other) == 0
    rows = [row for row in read(table) if row["split"] == "test" and row["first"]]
    right = []
    for path in (folder / "best.ckpt", other):
        predictor = Predictor.from_checkpoint(path, device="cpu")
        samples = [{name: row[name] or None for name in predictor.processors} for row in rows]
        labels = [prediction.label for prediction in predictor.predict(samples)]
        right.append([label == row["label"] for label, row in zip(labels, rows, strict=True)])
    found = results()["against"]
    assert (found["checkpoint"], found["rows"]) == (str(other), len(rows))
    only_first = sum(a and not b for a, b in zip(*right, strict=True))
    assert found["mcnemar"]["only_first_correct"] == only_first
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["first"] == pytest.approx(sum(right[0]) / len(rows))
    assert accuracy["second"] == pytest.approx(sum(right[1]) / len(rows))
    assert accuracy["interval"][0] <= accuracy["difference"] <= accuracy["interval"][1]
    assert results()["overview"]["rows"] == 240  # the other sections have all rows
    both = ["--against", folder / "best.ckpt", "--data.inputs"]
    assert evaluate(other, table, *both, "{first: first, second: second}") == 0
    assert "is right more often than" in capsys.readouterr().err
    assert evaluate(other, table, *both, "{third: first}") == 2
    assert "data.inputs has the input 'third', but the model's inputs are first, second" in capsys.readouterr().err


@only_multi_class
def test_a_checkpoint_of_other_classes_is_refused(evaluated, tmp_path, monkeypatch, capsys):
    folder, _ = evaluated
    monkeypatch.chdir(tmp_path)
    other = fit_model(write_table(tmp_path / "other.csv", "Ordinal", rows=60), tmp_path, "Ordinal", epochs=1)
    assert evaluate(folder / "best.ckpt", folder / "rows.csv", "--against", other) == 2
    message = capsys.readouterr().err
    assert "is a model of Ordinal with the classes 0, 1, 2, and " in message
    assert not Path("out").exists()


def test_a_damaged_part_is_computed_again(tmp_path):
    parts = Parts(tmp_path / "partial", "key")
    parts.store("one", {"values": torch.arange(3).numpy()})
    assert parts.load("one")["values"].tolist() == [0, 1, 2]
    assert Parts(tmp_path / "partial", "other").load("one") is None
    parts.path("one").write_bytes(parts.path("one").read_bytes()[:50])
    assert parts.load("one") is None
    assert parts.compute("one", lambda: {"values": torch.ones(1).numpy()})["values"].tolist() == [1]
    (tmp_path / "partial/mine.npz").write_text("mine")
    parts.remove()
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["mine.npz"]
