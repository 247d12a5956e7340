"""Result files, read and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fusion_pl.analysis.result import RunResult
from fusion_pl.types import UserError
from tests.analysis.runs import done, failed


@pytest.mark.parametrize("result", [done("Mean", 1, 0.5, "0110"), failed("Block", 0, "out of memory")])
def test_reads_what_was_written(tmp_path, result):
    result.write(tmp_path / "result.json")
    assert RunResult.read(tmp_path / "result.json") == result


@pytest.fixture
def read_changed(tmp_path):
    """Return a function that changes fields of a stored result and reads it."""

    def _read_changed(removed=(), **fields):
        path = tmp_path / "result.json"
        done("Mean", 1, 0.5, "0110").write(path)
        stored = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in stored.items() if name not in removed}))
        return RunResult.read(path)

    return _read_changed


@pytest.mark.parametrize("name", ["class_path", "inputs", "seed", "status"])
def test_a_missing_field_is_named(read_changed, name):
    with pytest.raises(UserError, match=rf"result\.json is damaged \(required: {name}\): delete the file and compare"):
        read_changed(removed=[name])


@pytest.mark.parametrize(
    "content", ['{"class_path": "fusion_pl.fu', "[1]", "null", b"\xff\xfe{}"], ids=["cut", "list", "null", "bytes"]
)
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        UserError, match=r"result\.json is damaged \(.+\): delete the file and compare again$"
    ) as caught:
        RunResult.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "one", "seed is one, expected a whole number"),
        ("seed", True, "seed is True, expected a whole number"),
        ("seed", 1.5, r"seed is 1\.5, expected a whole number"),
        ("seed", None, "required: seed"),
        ("status", "running", "status is running, expected one of 'done', 'failed'"),
        ("inputs", [], "the run of Mean with seed 1 has no inputs"),
        ("inputs", "text", "inputs is text, expected a list"),
        ("validation_score", "high", "validation_score is high, expected a number or null"),
        ("test", [1], r"test is \[1\], expected a dictionary"),
        ("test", {"test/accuracy": "high"}, "test is high, expected a number"),
        ("class_path", 3, "class_path is 3, expected text"),
        ("ids", ["a", "b", "c", 4], "ids is 4, expected text"),
        ("colour", "red", "Option 'colour' is not accepted"),
    ],
)
def test_a_field_of_another_type_is_named(read_changed, field, value, message):
    with pytest.raises(
        UserError, match=rf"result\.json is damaged \({message}.*\): delete the file and compare again$"
    ):
        read_changed(**{field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"validation_score": None},
        {"validation_score": float("nan")},
        {"test": {}},
        {"test": {"test/accuracy": 97.0}},
    ],
)
def test_a_finished_run_needs_its_accuracies(fields):
    with pytest.raises(UserError, match=r"the run of Mean with seed 1 has .*expected a number from 0 to 1"):
        replace(done("Mean", 1, 0.5, "0110"), **fields)


@pytest.mark.parametrize("correct", ["", "01x"])
def test_a_finished_run_needs_the_correctness_of_each_sample(correct):
    with pytest.raises(UserError, match="has a field correct that is empty, or not a text of 0 and 1"):
        replace(done("Mean", 1, 0.5, "0110"), correct=correct)


def test_a_finished_run_needs_the_ids_of_its_samples():
    with pytest.raises(UserError, match="no validation samples, or not one id per test sample"):
        replace(done("Mean", 1, 0.5, "0110"), ids=())
