"""``fusion-pl predict`` reads every class of the data layer, and each row has the prediction of the table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fusion_pl.cli.run import run, run_reporting_errors
from fusion_pl.cli.shard import shard_command
from fusion_pl.encoders import TinyImage
from tests.prediction.conftest import NUM_ROWS

SPLITS = {"train": range(9), "validation": range(9, NUM_ROWS)}


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def hub(folder):
    """The rows of the table as a data set of two splits, without labels."""
    from datasets import Dataset, DatasetDict

    rows = read("rows.csv")
    parts = {
        name: Dataset.from_list([{"text": rows[row]["text"] or None} for row in split])
        for name, split in SPLITS.items()
    }
    DatasetDict(parts).save_to_disk("hub")
    return ("--data.dataset", "hub")


@pytest.mark.parametrize("cls", ["HubData", "HubStream"])
def test_a_data_set_of_the_hub(cls, hub, predict, capsys):
    assert predict(output="table.csv") == 0
    assert predict(data=("--data", f"fusion_pl.data.{cls}", *hub)) == 0
    assert "20 of 23 rows predicted" in capsys.readouterr().err
    found, expected = read("p.csv"), read("table.csv")
    same = ("label", "probability", "p(ham)", "p(spam)", "weight(text)")
    assert [[row[name] for name in same] for row in found] == [[row[name] for name in same] for row in expected]
    ids = [f"train-{row + 1}" for row in range(9)] + [f"val-{row + 1}" for row in range(14)]
    assert [row["id"] for row in found] == (ids if cls == "HubStream" else [str(row + 1) for row in range(NUM_ROWS)])
    assert "all inputs are empty" in found[3]["error"]


def test_a_stream_goes_on(hub, predict, stop_after, capsys):
    """It is stopped in the second split; its batches, and so the last digits, are those of a command that is not."""
    stream = ("--data", "fusion_pl.data.HubStream", *hub)
    assert predict("--embeddings", data=stream, output="whole.jsonl") == 0
    stop_after(5)
    assert predict("--embeddings", data=stream, output="p.jsonl") == 130
    assert "Stopped after 17 rows" in capsys.readouterr().err  # 4 + 4 + 1 of the first split, and 4 + 4 of the second
    assert predict("--embeddings", data=stream, output="p.jsonl") == 0
    assert "17 rows are predicted already" in capsys.readouterr().err
    assert Path("p.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_columns_of_a_stream_cannot_be_copied(hub, predict, capsys):
    assert predict("--columns", "text", data=("--data", "HubStream", *hub)) == 2
    assert "--columns: HubStream has no table whose columns could be copied" in capsys.readouterr().err


def test_a_stream_without_a_column_of_the_inputs_is_refused(hub, predict, capsys):
    assert predict("--data.inputs.text", "txt", data=("--data", "HubStream", *hub)) == 2
    assert "there is no column 'txt' for an input" in capsys.readouterr().err


def test_shards(manifest, folder, save_model):
    encoder = "{class_path: fusion_pl.encoders.TinyImage, init_args: {dim: 16, image_size: 16, channels: 1}}"
    arguments = ["--data", "ManifestData", "--data.manifest", str(manifest), "--data.drop_empty", "true"]
    arguments += ["--model.encoders.image", encoder, "--model.fusion", "Concat", "--output", "shards"]
    assert run_reporting_errors(lambda: shard_command([*arguments, "--shuffle", "false"])) == 0
    checkpoint = save_model({"image": TinyImage(dim=16, image_size=16, channels=1)})
    call = ["--ckpt_path", checkpoint, "--data.num_workers", "0", "--columns", "text"]
    assert run("predict", [*call, "--output", "p.csv", "--data", "ShardData", "--data.shards", "shards"]) == 0
    assert run("predict", [*call, "--output", "table.csv", "--data.manifest", str(manifest)]) == 0
    expected = {row["id"]: row["p(ham)"] for row in read("table.csv")}
    found = read("p.csv")
    assert [row["p(ham)"] for row in found] == [expected[row["id"]] for row in found]
    assert len(found) == 40  # of 48, eight of which have no picture
