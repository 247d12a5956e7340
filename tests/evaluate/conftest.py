"""One trained model per task, with the evaluation of its test split."""

from __future__ import annotations

import pytest
from rich.console import Console

from fusion_pl.cli.parsing import parse
from fusion_pl.evaluate import scores
from fusion_pl.evaluate.command import evaluate_parser, load_evaluated_model
from fusion_pl.evaluate.parts import Parts
from fusion_pl.evaluate.predict_rows import predict_rows
from fusion_pl.evaluate.rows import select_rows
from tests.evaluate.models import TASKS, evaluate, fit_model, write_table

GROUPS = ["--groups", "speaker,age,note"]


@pytest.fixture(scope="session", params=TASKS)
def evaluated(request, tmp_path_factory):
    """A folder with ``rows.csv``, ``best.ckpt`` and the evaluation ``out``, and the name of the task."""
    folder = tmp_path_factory.mktemp("evaluated")
    table = write_table(folder / "rows.csv", request.param)
    checkpoint = fit_model(table, folder, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "NUM_RESAMPLES", 100)
        assert evaluate(checkpoint, table, *GROUPS, "--sweeps", "false", output=folder / "out") == 0
    return folder, request.param


@pytest.fixture(scope="session")
def evaluation(evaluated, tmp_path_factory):
    """The predictions of that model."""
    folder, _ = evaluated
    model, rows = load_rows(folder)
    return predict_rows(model, rows, Parts(tmp_path_factory.mktemp("partial"), "key"), Console(quiet=True))


def load_rows(folder):
    """Return the model of ``best.ckpt`` with its table, and the rows of the test split."""
    arguments = ["--ckpt_path", folder / "best.ckpt", "--data.manifest", folder / "rows.csv", "--output", "out"]
    config = parse(evaluate_parser(), [*map(str, arguments), "--device", "cpu", "--data.num_workers", "0"])
    model, record = load_evaluated_model(config, config.ckpt_path)
    return model, select_rows(model.data, "test", record).rows
