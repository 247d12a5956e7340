"""``fusion-pl predict`` in several processes writes the rows in the order of the table."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from fusion_pl.data.base import FusionData
from fusion_pl.prediction import processes
from fusion_pl.prediction.formats import Csv
from fusion_pl.processes import share_hardware
from fusion_pl.types import UserError
from tests.commands import forkserver_context
from tests.prediction.conftest import NUM_ROWS

TWO = ["--trainer.devices", "2"]


@pytest.fixture
def quick_start(monkeypatch):
    """Start processes from one that has imported the libraries."""
    forkserver_context()
    monkeypatch.setattr(processes, "START_METHOD", "forkserver")


def read(path):
    """Return the rows of an output, without the last digits, which depend on the rest of a batch."""
    with open(path, newline="") as file:
        return [[row[name] for name in ("id", "number", "label", "error")] for row in csv.DictReader(file)]


def test_two_processes_with_an_odd_number_of_rows(folder, predict, quick_start, monkeypatch, capfd):
    """They are killed at first; the same command goes on."""
    assert predict("--columns", "number", output="whole.csv") == 0
    told = capfd.readouterr().err

    def wait_and_kill(connections):
        found = wait(connections)
        for process in multiprocessing.active_children():
            process.kill()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(processes, "wait", wait_and_kill)
        assert predict(*TWO, "--columns", "number") == 2
    assert (
        "of 2 ended with exit code -9, perhaps because the memory is full: the same command" in capfd.readouterr().err
    )
    assert not Path("p.csv").exists()
    assert predict(*TWO, "--columns", "number") == 0
    assert capfd.readouterr().err.strip().endswith(told.replace("whole", "p").strip())
    assert read("p.csv") == read("whole.csv")
    assert len(read("p.csv")) == NUM_ROWS
    assert not Path("p.csv.partial").exists()


def test_rows_that_one_of_two_processes_has_saved_are_not_predicted_again(folder, predict, quick_start, capfd):
    assert predict("--columns", "number", output="whole.csv") == 0
    join = Csv.join

    def fail(self, parts, output):
        raise OSError(errno.ENOSPC, "No space left on device", str(output))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Csv, "join", fail)
        assert predict(*TWO, "--columns", "number") == 2
    assert Csv.join is join
    Path("p.csv.partial/rows-0.json").unlink()  # as if the first process had saved nothing
    capfd.readouterr()
    assert predict(*TWO, "--columns", "number") == 0
    assert f"{NUM_ROWS - NUM_ROWS // 2} rows are predicted already" in capfd.readouterr().err
    assert read("p.csv") == read("whole.csv")


def test_an_error_that_cannot_be_pickled_is_sent_with_its_traceback():
    class Local(Exception):  # noqa: N818 - which no other process knows
        pass

    try:
        raise Local("the reason")
    except Local as error:
        sent = processes._portable(error)
    assert "the reason" in str(sent)
    assert "test_processes.py" in str(sent)
    error = UserError("one sentence")
    assert processes._portable(error) is error


def test_processes_on_the_cpu_share_the_cores_of_a_machine_with_gpus(monkeypatch):
    monkeypatch.setattr("fusion_pl.processes.init_worker", lambda: None)
    monkeypatch.setattr(multiprocessing, "set_start_method", lambda *arguments, **options: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    share_hardware(1, 2, use_gpus=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,6"
    share_hardware(1, 2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"


class NoSamples(FusionData):
    """Data of a user, all of which is predicted already."""

    classes = ()
    class_counts = None

    def samples(self, split):
        return []


def test_no_rows_need_one_process(folder, predict, capsys):
    assert predict(*TWO, data=("--data", f"{__name__}.NoSamples")) == 1
    assert "0 of 0 rows predicted" in capsys.readouterr().err
    assert Path("p.csv").read_text() == "id,label,probability,p(ham),p(spam),weight(text),error\n"


def test_an_error_in_a_process_is_one_sentence(folder, predict, quick_start, capfd, monkeypatch):
    start = processes._start

    def start_without_table(*arguments):
        Path("rows.csv").unlink(missing_ok=True)
        return start(*arguments)

    monkeypatch.setattr(processes, "_start", start_without_table)
    assert predict(*TWO) == 2
    message = capfd.readouterr().err
    assert "the manifest rows.csv does not exist" in message
    assert "Traceback" not in message


def test_another_number_of_processes_is_refused(folder, predict, stop_after, capsys):
    stop_after(2)
    assert predict() == 130
    assert predict(*TWO) == 2
    assert "begun with another --trainer.devices" in capsys.readouterr().err


def test_numbers_that_cannot_work_are_refused(folder, predict, capsys):
    assert predict("--trainer.devices", "0") == 2
    assert "--trainer.devices is 0, expected a number of processes of at least 1" in capsys.readouterr().err
