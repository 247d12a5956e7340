"""``fusion-pl predict`` in several processes writes the rows in the order of the table."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import time
import traceback
from pathlib import Path

import pytest

from fusion_pl.cli.run import run
from fusion_pl.data.base import FusionData
from fusion_pl.encoders import TinyText
from fusion_pl.prediction import formats, processes
from fusion_pl.processes import share_hardware
from fusion_pl.types import UserError
from tests.commands import Command, fork_spawned_processes, forkserver_context
from tests.prediction.conftest import NUM_ROWS

TWO = ["--trainer.devices", "2"]


def spawned_processes(pid):
    """Return the processes that a command has started with a new interpreter."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_two_processes_with_an_odd_number_of_rows_are_killed(folder, predict, text_checkpoint, monkeypatch, capfd):
    """The first one, a new interpreter, is behind when all are killed; the same command continues with its rows alone.

    The first batch is the range of the first process, so that one process forms the same batches.
    """
    first = NUM_ROWS // 2
    assert predict("--columns", "number", output="whole.csv", batch_size=first) == 0
    told = capfd.readouterr().err.replace("whole.csv", "p.csv").strip()
    call = ["predict", "--ckpt_path", text_checkpoint, "--data.manifest", "rows.csv", "--columns", "number", *TWO]
    call += ["--data.num_workers", "0", "--data.batch_size", str(first), "--output", "p.csv"]
    command = Command(call, [os.devnull, "stderr"])
    while not (started := spawned_processes(command.pid)):
        assert command.poll() is None, Path("stderr").read_text()
        time.sleep(0.005)
    os.kill(started[0], signal.SIGSTOP)
    while not Path("p.csv.partial/rows-1.json").exists():
        assert command.poll() is None, Path("stderr").read_text()
        time.sleep(0.02)
    os.killpg(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert not Path("p.csv").exists()
    fork_spawned_processes(monkeypatch)  # a new interpreter takes six seconds
    assert predict("--columns", "number", *TWO, batch_size=first) == 0
    message = capfd.readouterr().err.strip()
    assert f"{NUM_ROWS - first} rows are predicted already" in message
    assert message.endswith(told)
    assert Path("p.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert not Path("p.csv.partial").exists()


def test_a_full_disk_while_the_ranges_are_joined(folder, predict, monkeypatch, capfd):
    """The same command starts no process, and joins the ranges again."""
    fork_spawned_processes(monkeypatch)
    first = NUM_ROWS // 2
    assert predict(output="whole.csv", batch_size=first) == 0

    def copy_some(source, target, size):
        target.write(source.read(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(formats.shutil, "copyfileobj", copy_some)
        assert predict(*TWO, batch_size=first) == 2
    monkeypatch.delattr(processes, "_start")
    assert predict(*TWO, batch_size=first) == 0
    assert f"{NUM_ROWS} rows are predicted already" in capfd.readouterr().err
    assert Path("p.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_a_process_that_the_system_kills_is_one_sentence():
    context = forkserver_context()
    connection, child_connection = context.Pipe()
    process = context.Process(target=signal.raise_signal, args=[signal.SIGKILL])
    process.start()
    child_connection.close()
    with pytest.raises(UserError, match="process 1 of 2 ended with exit code -9, perhaps because the memory is full:"):
        processes._receive(connection, process, "process 1 of 2")


def test_an_error_is_sent_with_its_traceback():
    """One that cannot be pickled becomes another one."""

    class Local(Exception):  # noqa: N818 - which no other process knows
        pass

    for error in (Local("the reason"), ValueError("the reason")):
        try:
            raise error
        except Exception as raised:
            sent = pickle.loads(pickle.dumps(processes._portable(raised)))
        text = "".join(traceback.format_exception(sent))
        assert f"{type(error).__name__}: the reason" in text
        assert "test_processes.py" in text
    assert isinstance(sent, ValueError)


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


def test_a_checkpoint_that_is_replaced_after_the_start_is_refused(folder, save_model, monkeypatch, capfd):
    """The processes find it; their error is one sentence."""
    fork_spawned_processes(monkeypatch)
    one, other = (save_model({"text": TinyText(dim=8)}) for _ in range(2))
    start = processes._start

    def replace_and_start(*arguments):
        os.replace(shutil.copy(other, "other.ckpt"), one)
        return start(*arguments)

    monkeypatch.setattr(processes, "_start", replace_and_start)
    call = ["--ckpt_path", one, "--data.manifest", "rows.csv", "--data.num_workers", "0", "--output", "p.csv", *TWO]
    assert run("predict", call) == 2
    message = capfd.readouterr().err
    assert "the checkpoint changed after predictions to p.csv had begun: restore it, and the same command" in message
    assert "Traceback" not in message


def test_another_number_of_processes_is_refused(folder, predict, stop_after, capsys):
    stop_after(2)
    assert predict() == 130
    assert predict(*TWO) == 2
    assert "begun with another --trainer.devices" in capsys.readouterr().err


def test_numbers_that_cannot_work_are_refused(folder, predict, capsys):
    assert predict("--trainer.devices", "0") == 2
    assert "--trainer.devices is 0, expected a number of processes of at least 1" in capsys.readouterr().err
