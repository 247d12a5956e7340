"""A run that cannot go on: one sentence says why, and its folder is as it was."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from fusion_pl.cli.run import run
from tests.texts import BEST, LAST, RUN, fit, results

LEFT = "nothing is left to train: {} has trainer.max_epochs (2) behind it; give --trainer.max_epochs a larger number"


def files():
    return {path: path.read_bytes() for path in Path("lightning_logs").rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trainer.max_epochs", "1"], "last.ckpt has 2 epochs behind it, and trainer.max_epochs is 1"),
        ([], LEFT.format(LAST)),
        (["--trainer.max_epochs", "9", "--trainer.max_steps", "10"], "has trainer.max_steps (10) behind it"),
        (["--trainer.max_epochs", "9", "--model.fusion.dim", "8"], "size mismatch"),
    ],
)
def test_a_refused_run_is_as_it_was(again, more, said, capsys):
    before = files()
    assert fit("--ckpt_path", "last", *more) == 2
    assert said in capsys.readouterr().err
    assert files() == before


def test_a_run_that_was_stopped_before_its_results_writes_them(again):
    whole = results()
    (RUN / "metrics.json").unlink()
    assert fit("--ckpt_path", "last") == 0
    assert results()["metrics"] == whole["metrics"]


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_a_new_class_is_named_with_its_row(again, subcommand, capsys):
    with Path("rows.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["good thing 1", "犬", "train"])
    before = files()
    more = ["--ckpt_path", "last", "--trainer.max_epochs", "3"] if subcommand == "fit" else ["--ckpt_path", str(BEST)]
    assert run(subcommand, ["--config", "config.yaml", *more]) == 2
    said = capsys.readouterr().err
    assert "'犬' is new" in said
    assert "rows.csv, row 38" in said
    assert "correct the label or remove the row, or train again" in said
    assert files() == before


def test_a_missing_class_is_named(again, capsys):
    shutil.copy("rows.csv", "before.csv")
    Path("rows.csv").write_text(Path("rows.csv").read_text().replace(",spam,", ",eggs,"))
    assert run("test", ["--config", "config.yaml"]) == 2
    said = capsys.readouterr().err
    assert "'eggs' is new (rows.csv, row 3, column 'label'), 'spam' is missing; set data.classes to" in said
    order = ["--data.classes", "[spam, ham]"]
    shutil.copy("before.csv", "rows.csv")
    assert run("test", ["--config", "config.yaml", *order]) == 2
    assert "they are in another order; set data.classes to ['ham', 'spam'], or train again" in capsys.readouterr().err
