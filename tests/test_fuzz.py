"""A few cases of the fuzz script; `python -m benchmarks.fuzz` runs more."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.fuzz import FAULTS, KINDS, load_file, make_case, outcome, write_originals


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
    for number in range(60):
        kind, name, content = make_case(folder, 0, number)
        path = tmp_path / f"case.{name.rpartition('.')[2]}"
        path.write_bytes(content)
        result, message = outcome(path, kind, expected[kind, name])
        counts[result] += 1
        assert result not in FAULTS, (number, kind, message)
    assert counts["sentence"] > 30
    assert counts["same"] > 0


def test_cases_are_a_function_of_seed_and_number(folder):
    assert make_case(folder, 0, 7) == make_case(folder, 0, 7) != make_case(folder, 1, 7)


def test_faults_are_detected(folder, tmp_path):
    assert outcome(folder / "small.ckpt", "checkpoint", ()) == ("different numbers", "")
    assert outcome(None, "checkpoint", ())[0] == "traceback"
    assert outcome(tmp_path / "none", "checkpoint", ())[0] == "sentence"
