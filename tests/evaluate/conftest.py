"""One trained model per task, with the evaluation of its test split."""

from __future__ import annotations

import pytest

from tests.evaluate.models import TASKS, evaluate, fit_model, write_table


@pytest.fixture(scope="session", params=TASKS)
def evaluated(request, tmp_path_factory):
    """A folder with ``rows.csv``, ``best.ckpt`` and the evaluation ``out``, and the name of the task."""
    folder = tmp_path_factory.mktemp("evaluated")
    table = write_table(folder / "rows.csv", request.param)
    checkpoint = fit_model(table, folder, request.param)
    assert evaluate(checkpoint, table, "--groups", "speaker,age,note", output=folder / "out") == 0
    return folder, request.param
