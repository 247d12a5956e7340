"""Every notebook runs from top to bottom in a folder of its own, and is kept without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BUDGET = {"EPOCHS": "1", "BATCH_SIZE": "16"}  # what a test changes of the cell that is tagged "parameters"
FEWER_SAMPLES = """
from dataclasses import replace

from fusion_pl.data import Keypad, Street

for demo in (Keypad, Street):
    demo.dataset = replace(demo.dataset, sizes={"train": 160, "val": 80, "test": 60})
"""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def with_budget(source, budget):
    """Replace the values of a parameters cell; a name that the cell does not assign is a mistake."""
    for name, value in budget.items():
        source, count = re.subn(rf"^{name} = .+$", f"{name} = {value}", source, flags=re.MULTILINE)
        assert count == 1, f"the parameters cell does not assign {name}"
    return source


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "clear all outputs, then save"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@every_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = with_budget(parameters.source, BUDGET) + FEWER_SAMPLES
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    assert "Warning" not in said, said
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert any("<audio" in output.get("data", {}).get("text/html", "") for output in outputs)
