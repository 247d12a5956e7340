"""``fusion-pl predict`` goes on after a stop or a kill, and the output has every row once."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from fusion_pl.cli.run import run
from fusion_pl.prediction import command, formats
from fusion_pl.prediction.formats import Csv
from fusion_pl.prediction.partial import PartialFile, PartialOutput
from fusion_pl.prediction.rows import RowPredictor
from fusion_pl.types import UserError
from tests.commands import Command
from tests.prediction.conftest import NUM_ROWS, write_rows

PARTIAL = Path("p.csv.partial")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_stopped_command_goes_on(suffix, folder, predict, stop_after, monkeypatch, capsys):
    """The bytes are those of a command that was not stopped, and so are the numbers at the end."""
    monkeypatch.setattr(formats, "ROW_GROUP_ROWS", 10)  # the command that is stopped encodes 4 rows at once
    assert predict("--columns", "number", output=f"whole.{suffix}") == 0
    told = capsys.readouterr().err.replace("whole.", "p.")
    stop_after(4)
    assert predict("--columns", "number", output=f"p.{suffix}") == 130
    assert "Stopped after 16 rows; the same command continues with the next one." in capsys.readouterr().err
    assert not Path(f"p.{suffix}").exists()
    assert predict("--columns", "number", output=f"p.{suffix}") == 0
    message = capsys.readouterr().err
    assert "16 rows are predicted already; continuing with the next one" in message
    assert message.endswith(told.strip("\n") + "\n")
    assert "20 of 23 rows predicted" in message
    assert Path(f"p.{suffix}").read_bytes() == Path(f"whole.{suffix}").read_bytes()
    if suffix == "parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile("p.parquet") as file:
            assert [file.metadata.row_group(number).num_rows for number in range(3)] == [10, 10, 3]
            assert file.read(["id"])["id"].to_pylist() == [f"s{row}" for row in range(23)]
    assert not list(folder.glob("*.partial"))


def test_other_options_are_refused(folder, predict, stop_after, capsys):
    stop_after(2)
    assert predict() == 130
    capsys.readouterr()
    assert predict("--columns", "number") == 2
    assert (
        "p.csv.partial contains predictions that were begun with another --columns: repeat" in capsys.readouterr().err
    )
    Path("rows.csv").write_text("text\nanother\n")
    assert predict() == 2
    assert "begun with another table or --data" in capsys.readouterr().err
    assert predict("--overwrite") == 0
    assert "1 of 1 rows predicted" in capsys.readouterr().err
    assert len(Path("p.csv").read_text().splitlines()) == 2


def test_an_option_that_is_left_out_is_told(folder, predict, stop_after, monkeypatch, capsys):
    PARTIAL.mkdir()
    output = PartialOutput(Path("p.csv"), {"a": "1"})
    (PARTIAL / "key.json").write_text('{"a": "1", "--select": "3 margin"}')
    (PARTIAL / "rows-0.json").write_text("{}")
    with pytest.raises(UserError, match="begun with another --select: repeat"), output.lock(overwrite=False):
        pass


def test_an_output_that_appears_before_the_lock_is_kept(folder, predict, monkeypatch, capsys):
    make_key = command.make_key

    def other_command_ends(*arguments):
        Path("p.csv").write_text("of another command")
        return make_key(*arguments)

    monkeypatch.setattr(command, "make_key", other_command_ends)
    assert predict() == 2
    assert "--output p.csv exists: pass --overwrite" in capsys.readouterr().err
    assert Path("p.csv").read_text() == "of another command"


def test_a_stop_while_the_output_is_joined_tells_what_is_saved(folder, predict, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Csv, "join", lambda *arguments: signal.raise_signal(signal.SIGINT))
        assert predict() == 130
    assert f"Stopped after {NUM_ROWS} rows; the same command continues" in capsys.readouterr().err
    assert predict() == 0
    assert len(Path("p.csv").read_text().splitlines()) == NUM_ROWS + 1


def test_best_is_looked_for_once(folder, text_checkpoint, monkeypatch):
    best = Path("lightning_logs/version_0/checkpoints/best.ckpt")
    best.parent.mkdir(parents=True)
    shutil.copy(text_checkpoint, best)
    found = []

    def build(config):
        found.append(config.ckpt_path)
        return RowPredictor(config)

    monkeypatch.setattr(command, "RowPredictor", build)
    call = ["--ckpt_path", "best", "--data.manifest", "rows.csv", "--data.num_workers", "0", "--output", "p.csv"]
    assert run("predict", call) == 0
    assert found == [str(best)]


def test_a_command_that_saved_no_row_stands_in_the_way_of_no_other(folder, predict):
    PARTIAL.mkdir()
    (PARTIAL / "key.json").write_text('{"checkpoint": "another"}')
    (PARTIAL / "rows-0").write_text("id,label")
    assert predict() == 0
    assert len(Path("p.csv").read_text().splitlines()) == 24


def test_overwrite_goes_on_with_the_same_options(folder, predict, stop_after, capsys):
    Path("p.csv").write_text("before")
    stop_after(2)
    assert predict("--overwrite") == 130
    assert Path("p.csv").read_text() == "before"
    assert predict("--overwrite") == 0
    assert "8 rows are predicted already" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["rows-0", "rows-0.json"])
def test_damaged_partial_files_are_written_again(damage, folder, predict, stop_after, capsys):
    stop_after(2)
    assert predict() == 130
    (PARTIAL / damage).write_text("")
    assert predict() == 0
    assert "predicted already" not in capsys.readouterr().err
    assert len(Path("p.csv").read_text().splitlines()) == 24


def test_two_commands_with_one_output(folder, predict, capsys):
    from filelock import FileLock

    PARTIAL.mkdir()
    with FileLock(PARTIAL / ".lock"):
        assert predict() == 2
    assert "another process is writing p.csv: wait until it has finished" in capsys.readouterr().err


IMPATIENT = """
from fusion_pl.__main__ import main
from fusion_pl.prediction import rows

rows.SAVE_SECONDS = 0.0
main()
"""


def test_a_killed_command_goes_on(folder, predict, text_checkpoint):
    """A process that stores its rows often is killed when it has predicted some of them."""
    write_rows("rows.csv", 3000)
    call = ["predict", "--ckpt_path", text_checkpoint, "--data.num_workers", "0", "--data.manifest", "rows.csv"]
    call += ["--output", "p.csv", "--data.batch_size", "2"]
    process = Command(call, [os.devnull, "stderr"], code=IMPATIENT)
    while not (PARTIAL / "rows-0.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert not Path("p.csv").exists()
    assert 0 < PartialFile(PARTIAL / "rows-0").rows < 3000
    assert predict(batch_size=128) == 0
    with open("p.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [f"s{row}" for row in range(3000)]
