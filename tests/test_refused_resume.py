"""A run that cannot go on: one sentence says why, and its folder is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.texts import LAST, RUN, fit, results

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
