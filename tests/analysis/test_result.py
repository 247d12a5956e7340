"""The files that runs leave behind, read and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fusion_pl.analysis.result import Result
from fusion_pl.types import UserError
from tests.analysis.runs import done, failed


def test_a_result_survives_json() -> None:
    for one in (done("Mean", 1, 0.5, "0110"), failed("Block", 0, "out of memory")):
        assert Result.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_every_missing_field_is_named() -> None:
    whole = done("Mean", 1, 0.5, "0110").to_dict()
    for key in whole:
        rest = {name: value for name, value in whole.items() if name != key}
        with pytest.raises(UserError, match=rf"runs/1\.json lacks '{key}'"):
            Result.from_dict(rest, "runs/1.json")


def test_a_result_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "result.json"
    done("Mean", 1, 0.5, "0110").write(path)
    assert Result.read(path) == done("Mean", 1, 0.5, "0110")
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"result\.json is damaged \(.*\): delete the file and compare again"):
        Result.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "one"),
        ("seed", True),
        ("seed", 1.5),
        ("seed", None),
        ("status", "running"),
        ("inputs", []),
        ("inputs", "text"),
        ("validation", "high"),
        ("test", [1]),
        ("test", {"test/accuracy": "high"}),
        ("fusion", 3),
    ],
)
def test_a_field_of_another_type_is_named(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"runs/1\.json: '{key}"):
        Result.from_dict(done("Mean", 1, 0.5, "0110").to_dict() | {key: value}, "runs/1.json")


def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(UserError, match="no JSON object"):
        Result.from_dict([1], "runs/1.json")
    with pytest.raises(UserError, match="unknown field 'colour'"):
        Result.from_dict(done("Mean", 1, 0.5, "0110").to_dict() | {"colour": "red"}, "runs/1.json")


@pytest.mark.parametrize(
    "change", [{"validation": None}, {"validation": float("nan")}, {"test": {}}, {"test": {"test/accuracy": 97.0}}]
)
def test_a_finished_run_has_its_accuracies(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"the finished run of Mean with seed 1 has .*expected an accuracy from 0 to 1"):
        replace(done("Mean", 1, 0.5, "0110"), **change)


@pytest.mark.parametrize("correct", ["", "01x"])
def test_a_finished_run_says_what_was_right(correct: str) -> None:
    with pytest.raises(UserError, match="which test samples were right"):
        replace(done("Mean", 1, 0.5, "0110"), correct=correct)
