"""A run that cannot be resumed: one sentence says why, and its folder is unchanged."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from fusion_pl.cli.run import run
from tests.texts import BEST, LAST, RUN, fit, results

FINISHED = "nothing is left to train: {} has reached trainer.max_epochs (2); pass a larger --trainer.max_epochs"


def files():
    return {path: path.read_bytes() for path in Path("lightning_logs").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.max_epochs", "1"], "last.ckpt is trained for 2 epochs, and trainer.max_epochs is 1"),
        ([], FINISHED.format(LAST)),
        (["--trainer.max_epochs", "9", "--trainer.max_steps", "10"], "has reached trainer.max_steps (10)"),
        (["--trainer.max_epochs", "9", "--model.fusion.dim", "8"], "size mismatch"),
    ],
)
def test_a_refused_run_is_unchanged(again, more, message, capsys):
    before = files()
    assert fit("--ckpt_path", "last", *more) == 2
    assert message in capsys.readouterr().err
    assert files() == before


def test_a_run_that_was_stopped_before_its_results_writes_them(again):
    before = results()
    (RUN / "metrics.json").unlink()
    assert fit("--ckpt_path", "last") == 0
    assert results()["metrics"] == before["metrics"]


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_a_new_class_is_named_with_its_row(again, subcommand, capsys):
    with Path("rows.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["good thing 1", "犬", "train"])
    before = files()
    more = ["--ckpt_path", "last", "--trainer.max_epochs", "3"] if subcommand == "fit" else ["--ckpt_path", str(BEST)]
    assert run(subcommand, ["--config", "config.yaml", *more]) == 2
    message = capsys.readouterr().err
    assert "'犬' is new" in message
    assert "rows.csv, row 38" in message
    assert "correct the label or remove the row, or train again" in message
    assert files() == before


def test_a_missing_class_is_named(again, capsys):
    shutil.copy("rows.csv", "before.csv")
    Path("rows.csv").write_text(Path("rows.csv").read_text().replace(",spam,", ",eggs,"))
    assert run("test", ["--config", "config.yaml"]) == 2
    message = capsys.readouterr().err
    assert "'eggs' is new (rows.csv, row 3, column 'label'), 'spam' is missing; set data.classes to" in message
    order = ["--data.classes", "[spam, ham]"]
    shutil.copy("before.csv", "rows.csv")
    assert run("test", ["--config", "config.yaml", *order]) == 2
    assert "they are in another order; set data.classes to ['ham', 'spam'], or train again" in capsys.readouterr().err
