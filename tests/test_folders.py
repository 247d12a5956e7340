"""Runs replace neither files of the user nor files of other runs."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from fusion_pl.cli.run import run
from tests.parsing import ROOT
from tests.texts import RUN, fit, load, results, values

ONE = ["--trainer.max_epochs", "1"]


@pytest.mark.parametrize("option", ["--trainer.logger=false", "--trainer.fast_dev_run=true"])
def test_a_run_without_a_folder_replaces_no_file_of_the_user(fresh, capsys, option):
    os.rename("rows.csv", "splits.csv")
    Path("metrics.json").write_text("mine")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    given = ["--data.manifest", "splits.csv", option]
    assert fit(*given, *ONE) == 0
    assert run("validate", ["--config", "config.yaml", *given]) == (0 if "logger" in option else 2)  # no checkpoint
    if "logger" in option:
        shutil.rmtree("checkpoints")
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
    message = capsys.readouterr().out
    assert "val/accuracy" in message
    assert "results:" not in message


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        (["--checkpoint.dirpath", "keep"], "keep"),
        (["--trainer.logger", "false"], "checkpoints"),
        (["--trainer.logger.version", "7"], "lightning_logs/version_7/checkpoints"),
    ],
)
def test_a_new_run_never_replaces_checkpoints_of_another_run(fresh, capsys, given, folder):
    Path(folder).mkdir(parents=True)
    best, last = Path(folder, "best.ckpt"), Path(folder, "last.ckpt")
    for path in (best, last):
        path.write_text("of another run")
    before = sorted(Path().rglob("*"))
    assert fit(*given, *ONE) == 2
    message = capsys.readouterr().err
    assert f"{folder} holds checkpoints of another run (best.ckpt, last.ckpt)" in message
    assert "--ckpt_path last" in message
    assert best.read_text() == last.read_text() == "of another run"
    assert {path for path in Path().rglob("*") if path.name != ".lock"} == set(before)


def test_a_run_with_checkpoints_in_another_folder_is_resumed(fresh):
    given = ["--checkpoint.dirpath", "keep", "--checkpoint.save_top_k", "0"]
    assert fit(*given, *ONE) == 0
    assert fit(*given, *ONE) == 2
    assert fit(*given, "--ckpt_path", "last", "--trainer.max_epochs", "2") == 0
    assert load("keep/last.ckpt")["epoch"] == 1
    (folder,) = {path.parent for path in Path().rglob("metrics.json")} - {RUN}
    assert results(folder)["epoch"] == 1  # no checkpoint is the best, and the results are those of the last validation
    assert results(folder)["metrics"]["val/loss"] == pytest.approx(values("val/loss", folder)[-1])


@pytest.mark.parametrize(
    ("there", "match"),
    [
        (
            ["best-0.ckpt", "best-1.ckpt", "last.ckpt"],
            "but best-0.ckpt, best-1.ckpt, last.ckpt: give",
        ),
        (["last.ckpt"], "but last.ckpt: give"),
    ],
)
@pytest.mark.parametrize("elsewhere", [True, False])
def test_existing_checkpoints_are_listed(fresh, capsys, there, match, elsewhere):
    folder = Path("keep" if elsewhere else "lightning_logs/version_1/checkpoints")
    folder.mkdir(parents=True)
    older = Path("lightning_logs/version_0/checkpoints")
    older.mkdir(parents=True)
    for path in (*(folder / name for name in there), older / "best.ckpt"):
        path.touch()
    given = ["--checkpoint.dirpath", "keep"] if elsewhere else []
    assert run("test", ["--config", "config.yaml", *given]) == 2
    message = capsys.readouterr().err
    assert f"{folder} has no best.ckpt, {match}" in message
    assert f"--ckpt_path {folder}/{there[0]}" in message
    assert "remove" not in message
    assert str(older) not in message


@pytest.mark.parametrize(
    "option", ["--checkpoint.dirpath", "--trainer.default_root_dir", "--trainer.logger.save_dir", "--cache"]
)
def test_an_address_is_refused_as_a_folder(fresh, capsys, option):
    before = sorted(Path().iterdir())
    assert fit(option, "memory://ck") == 2
    assert f"{option}: memory://ck is an address" in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_the_demo_predicts_with_the_checkpoint_of_the_highest_number(fresh, capsys):
    (options,) = re.findall(r"predict (--ckpt_path .*?) --data", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for version in (10, 9):  # the later modification time belongs to the older run
        path = Path(f"lightning_logs/keypad/version_{version}/checkpoints/best.ckpt")
        path.parent.mkdir(parents=True)
        path.touch()
    os.utime("lightning_logs/keypad/version_10/checkpoints/best.ckpt", (0, 0))
    assert run("predict", [*options.split(), "--data.manifest", "rows.csv", "--output", "p.csv"]) == 2
    assert "lightning_logs/keypad/version_10/checkpoints/best.ckpt is not a checkpoint" in capsys.readouterr().err
