"""A run on streamed rows that is stopped at any moment and resumed is bit for bit the run that was never stopped."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time

import datasets
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from tests.commands import Command
from tests.file_server import FileServer
from tests.test_exact_resume import (
    ACCUMULATE,
    DDP,
    EPOCH,
    EVERY_STEP,
    PART_OF_EPOCH,
    PLATEAU,
    ROWS,
    TWO_VALIDATIONS,
    VAL_ROWS,
    WORKERS,
    assert_same,
    in_new_process,
    in_process,
    names,
    outcome,
    reference_runs,
    resume_after,
    write,
)
from tests.texts import RUN

from .test_exact_resume import trained_on  # noqa: F401 - a fixture

STEPS = ["--trainer.max_steps", str(3 * EPOCH)]
CONSTANT = ["--model.lr_scheduler", "ConstantLR"]  # needs no number of steps


def write_stream(folder, stop=None):
    """Write the rows of the table as Parquet files, two of them with training rows, and stream them."""
    write(folder, stop)
    with (folder / "rows.csv").open() as file:
        rows = [{**row, "label": int(row["label"])} for row in csv.DictReader(file)]
    assert len(rows) == ROWS + VAL_ROWS
    features = Features({**dict.fromkeys(["title", "text", "split"], Value("string")), "label": ClassLabel(2)})
    datasets.disable_progress_bars()
    for name, part in (("train-0", rows[:7]), ("train-1", rows[7:ROWS]), ("validation-0", rows[ROWS:])):
        (folder / "rows").mkdir(exist_ok=True)
        Dataset.from_list(part, features).to_parquet(folder / "rows" / f"{name}.parquet")
    datasets.enable_progress_bars()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    options = config["data"]["init_args"] | {"dataset": "rows", "shuffle_buffer": 4}
    del options["manifest"]
    config["data"] = {"class_path": "fusion_pl.data.HubStream", "init_args": options}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    yield from reference_runs(write_stream, tmp_path_factory)


@pytest.mark.parametrize(
    ("stops", "options"),
    [
        # in the first batch of the run, in the last one of an epoch, in its validation, and within the next epoch
        (
            [{"batches": 0}, {"batches": EPOCH - 1}, {"batches": EPOCH, "in_validation": True}, {"batches": EPOCH + 2}],
            STEPS,
        ),
        ([{"batches": EPOCH + 2}], [*STEPS, *WORKERS]),
        ([{"batches": EPOCH + 2, "in_validation": True}, {"batches": EPOCH + 2}], [*PART_OF_EPOCH, *TWO_VALIDATIONS]),
        ([{"batches": 2 * EPOCH, "in_validation": True}], CONSTANT),
        # after the first batch of two
        ([{"batches": 4 + 2}], [*CONSTANT, *ACCUMULATE, "--trainer.limit_train_batches", "4"]),
    ],
    ids=names,
)
def test_a_terminated_run(stops, options, reference, tmp_path):
    expected = reference(in_process, *(options[:-2] if options[-2:] == WORKERS else options))
    assert_same(resume_after(stops, write_stream, tmp_path / "stopped", *options), expected)


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        ({"batches": EPOCH + 2}, [*STEPS, *EVERY_STEP]),
        ({"batches": EPOCH, "in_validation": True}, [*STEPS, *EVERY_STEP]),  # after the last batch of an epoch
        ({"batches": EPOCH + 1}, [*EVERY_STEP, *PLATEAU]),
    ],
    ids=lambda value: "-".join(map(str, value.items() if isinstance(value, dict) else value)),
)
def test_a_killed_run(stop, options, reference, tmp_path):
    folder = write_stream(tmp_path / "stopped", stop | {"signum": int(signal.SIGKILL)})
    assert in_new_process(folder, "--config", "stop.yaml", *options) == -signal.SIGKILL
    assert in_process(folder, "--ckpt_path", "last", *options) == 0
    assert_same(outcome(folder), reference(in_process, *[one for one in options if one not in EVERY_STEP]))


NINE_STEPS = ["--trainer.max_steps", "9"]
PAIR = [*DDP, *NINE_STEPS, "--data.num_workers", "1"]


@pytest.fixture(scope="module")
def stopped_pair(tmp_path_factory):
    """The folder of a run of two processes that was stopped in the first batch of its second epoch."""
    folder = write_stream(tmp_path_factory.mktemp("pair"), {"batches": 3})
    assert in_new_process(folder, "--config", "stop.yaml", *PAIR) == 128 + signal.SIGTERM
    return folder


def test_two_processes(stopped_pair, reference, tmp_path):
    folder = shutil.copytree(stopped_pair, tmp_path / "stopped")
    expected = reference(in_new_process, *PAIR)
    assert expected["steps"] == 9
    assert in_new_process(folder, "--ckpt_path", "last", *PAIR) == 0
    assert_same(outcome(folder), expected)


def test_one_process_continues_the_epoch_of_two(stopped_pair, trained_on, tmp_path):  # noqa: F811
    folder = shutil.copytree(stopped_pair, tmp_path / "stopped")
    assert in_process(folder, "--ckpt_path", "last", *NINE_STEPS, "--trainer.max_epochs", "2") == 0
    assert len(trained_on) == len(set(trained_on)) == ROWS - 6


def wait_until(happened, process):
    while not happened():
        assert process.poll() is None
        time.sleep(0.1)


def test_a_second_ctrl_c_ends_a_run_whose_connection_stalls(tmp_path):
    folder = write_stream(tmp_path / "run")
    messages = folder / "messages"
    with FileServer() as server:
        server.files = {f"/{path.name}": path.read_bytes() for path in (folder / "rows").iterdir()}
        files = {split: f"{server.url}/{split}{end}.parquet" for split, end in (("train", "-0"), ("validation", "-0"))}
        options = ["--data.dataset", "parquet", "--data.data_files", json.dumps(files), *CONSTANT]
        command = ["fit", "--config", "config.yaml", *options, "--trainer.max_epochs", "100000"]
        process = Command(command, [messages, messages], folder)
        try:
            wait_until((folder / RUN / "checkpoints/last.ckpt").exists, process)
            server.faults["/train-0.parquet"] = ["stalls"] * 1000
            seen = len(server.requests)
            wait_until(lambda: any(path == "/train-0.parquet" for path, _ in server.requests[seen:]), process)
            process.send_signal(signal.SIGINT)
            wait_until(lambda: "press Ctrl-C again" in messages.read_text(), process)
            process.send_signal(signal.SIGINT)
            assert process.wait(40) == 128 + signal.SIGINT  # the server stalls for 60 s
        finally:
            process.kill()
        assert "Stopped at once, without saving." in messages.read_text()
        assert "Fatal" not in messages.read_text()
