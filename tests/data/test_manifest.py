from __future__ import annotations

import logging
import os
import re

import numpy as np
import pytest

from fusion_pl.data import ManifestData
from fusion_pl.data.rows import LoadError
from fusion_pl.tables.splits import SPLITS
from fusion_pl.types import MissingFileError, UserError


@pytest.fixture
def build(toy, processors):
    """Write the toy table and build its data module."""

    def _build(name="manifest.csv", **kwargs):
        data = ManifestData(toy.write(name), num_workers=0, **kwargs)
        data.processors = processors
        return data

    return _build


def refused(data, stage="fit"):
    with pytest.raises(UserError) as caught:
        data.setup(stage)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- what it gives
@pytest.mark.parametrize("name", ["manifest.csv", "manifest.tsv", "manifest.jsonl"])
def test_every_row_has_its_own_content(build, name):
    data = build(name)
    data.setup("fit")
    data.setup("test")
    assert data.classes == ["cat", "dog"]
    assert data.class_counts == [4, 4]
    seen = []
    for split, size in {"train": 8, "val": 2, "test": 2}.items():
        samples = data.samples(split)
        assert len(samples) == size
        for sample in (samples[at] for at in range(size)):
            at = int(sample.id.removeprefix("s"))
            seen.append(at)
            assert len(sample.inputs["text"]) == at + 1
            assert np.asarray(sample.inputs["image"]).mean() == 10 * at
            assert sample.inputs["audio"].samples.mean() == at / 16
            assert sample.target == (0 if at % 2 else 1)
    assert sorted(seen) == list(range(12))


def test_inputs_map_names_to_columns_and_the_rest_keep_their_name(toy, processors):
    for record in toy.records:
        record["body"] = record.pop("text")
        record["kind of animal"] = record.pop("label")
    data = ManifestData(toy.write(), inputs={"text": "body"}, label="kind of animal", num_workers=0)
    data.processors = processors
    assert data.columns == {"text": "body", "image": "image", "audio": "audio"}
    data.setup("fit")
    assert data.samples("train")[2].inputs["text"] == "xxx"


def test_two_inputs_of_one_kind(toy, processors):
    for record in toy.records:
        record["title"] = record["id"]
    data = ManifestData(toy.write(), num_workers=0)
    data.processors = {"title": processors["text"], "text": processors["text"]}
    data.setup("fit")
    assert data.samples("train")[3].inputs == {"title": "s3", "text": "xxxx"}


def test_an_empty_cell_is_a_missing_input(build, toy):
    toy.records[0] |= {"image": "", "text": ""}
    toy.records[1] |= {"audio": None}
    data = build()
    data.setup("fit")
    assert list(data.samples("train")[0].inputs) == ["audio"]
    assert list(data.samples("train")[1].inputs) == ["text", "image"]


def test_an_empty_text_of_json_is_present(build, toy):
    toy.records[0] |= {"text": ""}
    data = build("manifest.jsonl")
    data.setup("fit")
    assert data.samples("train")[0].inputs["text"] == ""


def test_rows_without_an_id_are_named_by_their_number(build, toy):
    toy.without("id")
    assert [sample.id for sample in map(build().samples("val").__getitem__, range(2))] == ["10", "11"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(["10", "9", " 9", "-1"], ["-1", "9", "10"]), (["10", "9", "b", "a"], ["10", "9", "a", "b"])],
)
def test_classes_are_inferred_in_a_stable_order(build, toy, labels, classes):
    for at, record in enumerate(toy.records):
        record["label"] = labels[at % len(labels)]
    assert build().classes == classes


def test_configured_classes_keep_their_order(build):
    data = build(classes=["dog", "cat"])
    assert data.classes == ["dog", "cat"]
    assert [data.samples("train")[at].target for at in range(2)] == [0, 1]


def test_paths_are_relative_to_the_configured_root(build, toy, tmp_path):
    data = build(root=str(toy.folder))
    moved = tmp_path / "elsewhere.csv"
    os.rename(data.manifest, moved)
    data = ManifestData(str(moved), root=str(toy.folder), num_workers=0)
    data.processors = build().processors
    data.setup("fit")
    assert np.asarray(data.samples("train")[7].inputs["image"]).mean() == 70


def test_a_manifest_in_the_working_directory(build, toy, monkeypatch):
    data = build()
    monkeypatch.chdir(toy.folder)
    here = ManifestData("manifest.csv", num_workers=0)
    here.processors = data.processors
    here.setup("fit")
    monkeypatch.chdir("/")  # paths were resolved once
    assert "image" in here.samples("train")[0].inputs


def test_rows_without_the_models_inputs_can_be_left_out(toy, processors, caplog):
    """One input that some rows lack: the splits of the other rows do not change."""
    toy.without("split")
    for at in (2, 7):
        toy.records[at]["image"] = ""
    splits = {}
    for drop in (False, True):
        data = ManifestData(toy.write(), num_workers=0, drop_empty=drop)
        data.processors = processors if not drop else {"image": processors["image"]}
        with caplog.at_level(logging.INFO):
            data.setup("fit")
        splits[drop] = {
            split: {data.samples(split)[at].id for at in range(len(data.samples(split)))} for split in SPLITS
        }
    assert "left out 2 of 12 rows, which have no input" in caplog.text
    assert splits[True] == {split: ids - {"s2", "s7"} for split, ids in splits[False].items()}


# -------------------------------------------------------------------------------------------------------------- splits
def test_without_a_split_column_splits_are_drawn_with_a_message(build, toy, caplog):
    toy.without("split")
    data = build(val_fraction=0.25, test_fraction=0.2, seed=1)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    sizes = ", ".join(f"{len(data.samples(split))} {split}" for split in ("train", "val", "test"))
    assert f"has no column 'split': drew {sizes} rows (by id and seed 1)" in caplog.text
    ids = [sample.id for split in ("train", "val", "test") for sample in _all(data.samples(split))]
    assert len(set(ids)) == len(ids) == 12


def test_without_validation_rows_some_are_taken_from_train_with_a_message(build, toy, caplog):
    toy.records = [record for record in toy.records if record["split"] != "val"]
    data = build(val_fraction=0.25)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    taken = len(data.samples("val"))
    assert f"no validation rows: drew {taken} of the train rows (" in caplog.text
    assert [sample.id for sample in _all(data.samples("test"))] == ["s10", "s11"]
    taken = {sample.id for sample in _all(data.samples("val"))}
    assert taken.isdisjoint({sample.id for sample in _all(data.samples("train"))})
    assert sum(data.class_counts) + len(taken) == 8


def _all(samples):
    return [samples[at] for at in range(len(samples))]


# -------------------------------------------------------------------------------------------------------------- errors
def test_all_problems_are_in_one_error(build, toy):
    toy.records[0]["label"] = "dgo"
    toy.records[1]["label"] = " "
    toy.records[2]["id"] = "s1"
    toy.records[3]["image"] = "none.png"
    toy.records[4]["audio"] = "../outside.wav"
    toy.records[5]["split"] = "tran"
    toy.records[6] |= {"text": "", "image": "", "audio": ""}
    toy.records[7]["split"] = ""
    toy.records[8]["image"] = "images\\8.png"
    data = build(classes=["cat", "dog", "horse"])
    lines = refused(data).split("\n  ")
    outside = os.path.normpath(os.path.join(toy.folder, "..", "outside.wav"))
    assert lines == [
        f"{data.manifest} has 10 problems:",
        "column 'label': the class 'horse' has no training sample",
        "row 2, column 'label': 'dgo' is not one of the classes cat, dog, horse; did you mean dog?",
        "row 3, column 'label': the label is empty: give the row a class, or remove it",
        "row 4, column 'id': the id 's1' was already used in row 3",
        f"row 5, column 'image': the file 'none.png' does not exist (looked for {toy.folder / 'none.png'})",
        f"row 6, column 'audio': {outside} lies outside the root {toy.folder}: move it there, set data.root, or "
        "data.allow_outside: true",
        "row 7, column 'split': 'tran' is not a split: expected train, val (or valid, validation, dev) or test",
        "row 8: all inputs of the sample 's6' are empty (text, image, audio): fill one in, remove the row, or set "
        "data.drop_empty: true",
        "row 9, column 'split': the split is empty: expected train, val (or valid, validation, dev) or test",
        "row 10, column 'image': the file 'images\\\\8.png' does not exist (looked for "
        f"{toy.folder}/images\\8.png); separate folders by /",
    ]


def test_unknown_labels_and_splits_are_listed_once_with_their_rows(build, toy):
    for row, record in enumerate(toy.records):
        record["label"] = ["cat", "cow", "owl", f"bird {row}"][row % 4 if row < 9 else 0]
        record["split"] = ["train", "hold", "train", "val"][row % 4]
    data = build(classes=["cat"])
    assert refused(data).split("\n  ") == [
        f"{data.manifest} has 5 problems:",
        "row 3 and 1 other row, column 'label': 'cow' is not one of the classes cat",
        "row 3 and 2 other rows, column 'split': 'hold' is not a split: expected train, val (or valid, validation, "
        "dev) or test",
        "row 4 and 1 other row, column 'label': 'owl' is not one of the classes cat",
        "row 5, column 'label': 'bird 3' is not one of the classes cat",
        "row 9, column 'label': 'bird 7' is not one of the classes cat",
    ]


def test_problems_of_reading_are_in_the_same_error(build, toy):
    toy.records[1]["id"] = "s0"
    data = build()
    with open(data.manifest, "a", encoding="utf-8") as file:
        file.write("too,short\n")
    message = refused(data)
    assert "has 2 problems" in message
    assert "row 3, column 'id'" in message
    assert "row 14: the row has 2 cells, the header has 6" in message


def test_missing_columns_are_named_with_a_suggestion(toy, processors):
    for record in toy.records:
        record["txt"] = record.pop("text")
    data = ManifestData(toy.write(), inputs={"voice": "audio"}, split="fold", num_workers=0)
    data.processors = processors
    message = refused(data)
    assert "data.inputs has the input 'voice', but the model's inputs are text, image, audio" in message
    assert "there is no column 'text' for the input 'text'; the columns are 'id', 'image', " in message
    assert (
        "'txt': give another column with --data.inputs.text, or leave text out of model.encoders; did you mean txt?"
        in message
    )
    assert "there is no column 'fold' for the split" in message


def test_a_missing_label_column_is_refused(build, toy):
    toy.without("label", "image")
    data = build()
    message = refused(data)
    assert "no column 'label' for the label" in message
    assert "no column 'image' for the input 'image'" in message
    with pytest.raises(UserError, match="no column 'label' for the label"):
        _ = data.classes


def test_labels_that_are_all_empty(build, toy):
    for record in toy.records:
        record["label"] = ""
    data = build()
    with pytest.raises(UserError, match="column 'label': every label is empty"):
        _ = data.classes
    assert "row 2 and 11 other rows, column 'label': the label is empty" in refused(data)


def test_classes_of_a_missing_manifest_are_refused():
    with pytest.raises(
        MissingFileError, match=r"the manifest nowhere\.csv does not exist \(looked for /.*/nowhere\.csv\): give"
    ):
        _ = ManifestData("nowhere.csv").classes


def test_an_empty_split_is_refused_in_the_stage_that_needs_it(build, toy):
    toy.records = [record for record in toy.records if record["split"] != "test"]
    data = build()
    data.setup("fit")
    assert "there is no test row: the splits have 8 train, 2 val, 0 test rows" in refused(data, "test")


def test_a_class_without_training_rows_is_refused(build, toy):
    toy.records[-1]["label"] = "catt"
    message = refused(build())
    assert "the class 'catt' has no training sample (its first row is row 13); did you mean cat?" in message


def test_files_of_other_splits_are_checked_in_fit_only(build, toy):
    toy.records[0]["image"] = "none.png"
    data = build()
    data.setup("test")
    assert "row 2, column 'image'" in refused(data, "fit")


def test_files_outside_the_root_may_be_allowed(build, toy, tmp_path):
    picture = tmp_path / "outside.png"
    os.rename(toy.folder / "3 ü.png", picture)
    toy.records[3]["image"] = str(picture)
    assert "lies outside the root" in refused(build())
    data = build(allow_outside=True)
    data.setup("fit")
    assert np.asarray(data.samples("train")[3].inputs["image"]).mean() == 30


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"val_fraction": 0.0}, r"val_fraction must lie in \(0, 1\).* got 0\.0 and 0\.15"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "their sum below 1"),
        ({"test_fraction": -0.1}, r"test_fraction in \[0, 1\)"),
        ({"classes": ["a", "b", "b"]}, "classes contains 'b' more than once"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        ManifestData("m.csv", **kwargs)


# ---------------------------------------------------------------------------------------------------------- bad files
def test_a_file_that_cannot_be_decoded_raises_with_its_row(build, toy):
    (toy.folder / "2 ü.png").write_bytes(b"broken")
    data = build()
    data.setup("fit")
    assert data.samples("train")[1].id == "s1"
    with pytest.raises(
        LoadError, match=rf"{re.escape(data.manifest)}, row 4, column 'image': .*2 ü\.png cannot be read as an image"
    ):
        data.samples("train")[2]


def test_a_file_that_cannot_be_decoded_counts_as_missing_if_configured(build, toy):
    (toy.folder / "2 ü.png").write_bytes(b"broken")
    data = build(on_bad_file="missing")
    data.setup("fit")
    sample = data.samples("train")[2]
    assert (sample.id, list(sample.inputs)) == ("s2", ["text", "audio"])
    assert len(sample.bad_files) == 1
    assert "row 4, column 'image'" in sample.bad_files[0]


def test_a_row_whose_inputs_all_fail_raises(build, toy):
    (toy.folder / "2 ü.png").write_bytes(b"broken")
    toy.records[2] |= {"text": "", "audio": ""}
    data = build(on_bad_file="missing")
    data.setup("fit")
    with pytest.raises(
        LoadError, match=r"row 4, column 'image'.*the sample '.*' has no other input, so remove the row"
    ):
        data.samples("train")[2]


# ---------------------------------------------------------------------------------------------------------- prediction
def test_predict_uses_all_rows_in_order_without_labels(build, toy):
    toy.without("label", "split")
    data = build()
    data.setup("predict")
    samples = _all(data.samples("predict"))
    assert [sample.id for sample in samples] == [f"s{at}" for at in range(12)]
    assert [len(sample.inputs) for sample in samples] == [3] * 12
    assert {sample.target for sample in samples} == {None}
    (batch,) = data.predict_dataloader()
    assert batch.target is None


def test_predict_keeps_bad_rows_with_one_message_each(build, toy):
    (toy.folder / "1 ü.png").write_bytes(b"broken")
    (toy.folder / "1 ü.wav").write_bytes(b"broken")
    toy.records[2]["audio"] = "none.wav"
    toy.records[3]["image"] = "/etc/passwd"
    toy.records[4] |= {"text": "", "image": "", "audio": ""}
    data = build()
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    without = ~(batch.present["text"] | batch.present["image"] | batch.present["audio"])
    assert without.nonzero().flatten().tolist() == [1, 2, 3, 4]
    expected = [
        "row 3, column 'image'",
        r"row 4, .*none.wav does not exist",
        "row 5.*outside the root",
        "row 6.*are empty",
    ]
    for pattern, (sentence,) in zip(expected, batch.bad_files[1:5], strict=True):
        assert re.search(pattern, sentence)
    assert not any(batch.bad_files[:1] + batch.bad_files[5:])
    assert len(batch.ids) == 12


def test_predict_needs_the_column_of_one_input(build, toy, caplog):
    for column, message in (
        ("audio", "has no column 'audio': predicting without audio"),
        ("image", "has no columns 'image', 'audio': predicting without image, audio"),
    ):
        toy.without(column)
        data = build()
        with caplog.at_level(logging.INFO):
            data.setup("predict")
        assert message in caplog.text
    assert list(data.samples("predict")[0].inputs) == ["text"]
    toy.without("text")
    assert "there is no column 'text' for an input" in refused(build(), "predict")
