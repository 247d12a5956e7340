"""A few cases of the fuzz script; `python -m benchmarks.fuzz` runs more."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import fuzz_check
from benchmarks.fuzz import FAULTS, KINDS, load_file, make_case, outcome
from benchmarks.fuzz_originals import write_originals
from fusion_pl.data_check.values import Inspection


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


def test_damaged_files_are_refused_in_one_sentence_or_have_no_effect(folder, tmp_path, recwarn):
    expected = {
        (kind, name): load_file(folder / name, kind)
        for kind, (names, _) in KINDS.items()
        for name in sorted(set(names))
    }
    counts: Counter[str] = Counter()
    for number in range(96):
        kind, name, content = make_case(folder, 0, number)
        path = tmp_path / f"case.{name.rpartition('.')[2]}"
        path.write_bytes(content)
        result, message = outcome(path, kind, expected[kind, name])
        counts[result] += 1
        assert result not in FAULTS, (number, kind, message)
    assert counts["sentence"] > 48
    assert counts["same"] > 0


def test_cases_are_a_function_of_seed_and_number(folder):
    assert make_case(folder, 0, 7) == make_case(folder, 0, 7) != make_case(folder, 1, 7)


def test_faults_are_detected(folder, tmp_path):
    assert outcome(folder / "small.ckpt", "checkpoint", ()) == ("different numbers", "")
    assert outcome(None, "checkpoint", ())[0] == "traceback"
    assert outcome(tmp_path / "none", "checkpoint", ())[0] == "sentence"


@pytest.mark.parametrize("name", ["picture.jpg", "sound.wav"])
def test_a_damage_that_the_check_does_not_notice_is_a_fault(folder, tmp_path, monkeypatch, name):
    """The check opens something else than training."""
    is_image = name.startswith("picture")
    intact = fuzz_check.check_file(folder / name, is_image)
    monkeypatch.setattr(fuzz_check, "inspect_cell", lambda *_: Inspection(content=intact + 1))
    assert outcome(folder / name, "checked file", intact)[0] == "traceback"
    (tmp_path / name).write_bytes(b"damaged")
    assert outcome(tmp_path / name, "checked file", intact)[0] == "sentence"
    monkeypatch.undo()
    assert outcome(folder / name, "cut file", intact + 1)[0] == "different numbers"
