"""Statistics of a comparison, against a computation by hand and by plainer means."""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest

from fusion_pl.analysis.result import Result, label
from fusion_pl.analysis.statistics import best_of, grouped, holm, paired, pareto, subsets_of, summarise
from fusion_pl.types import UserError
from tests.analysis.runs import INPUTS, done, failed


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


def test_labels() -> None:
    names = ("text", "image", "sound")
    whole = done("Mean", 0, 0.5, "01", names)
    found = [label(replace(whole, inputs=some), names) for some in (names, ("text",), ("text", "sound"))]
    assert found == ["Mean", "text alone", "text + sound"]


def test_heads_that_share_a_label_stay_apart() -> None:
    mine = replace(done("Mean", 0, 0.5, "01"), class_path="mine.Mean")
    some = [done(name, 0, 0.5, "01", ("text",)) for name in ("Max", "Sum")]
    names = list(grouped([done("Mean", 0, 0.6, "01"), mine, done("Max", 0, 0.5, "01"), *some], INPUTS))
    assert names == ["fusion_pl.fusion.Mean", "mine.Mean", "Max", "text alone (Max)", "text alone (Sum)"]


def test_one_seed_twice_is_refused() -> None:
    with pytest.raises(UserError, match="Mean has two results with seed 4"):
        summarise([done("Mean", 4, 0.5, "01"), done("Mean", 4, 0.6, "01")], INPUTS)


def test_means_and_spreads() -> None:
    runs = [done("Mean", seed, share, correct) for seed, share, correct in ((0, 0.5, "0111"), (1, 0.9, "0001"))]
    (row,) = summarise([*runs, failed("Mean", 2, "broke")], INPUTS)
    assert (row.done, row.failed, row.batch_size) == ((0, 1), {2: "broke"}, 8)
    assert row.validation is not None
    assert row.test is not None
    assert (row.validation.mean, row.validation.deviation) == pytest.approx((0.7, statistics.stdev([0.5, 0.9])))
    assert (row.test.mean, row.test.deviation, row.test.count) == pytest.approx((0.5, np.std([0.75, 0.25], ddof=1), 2))
    assert row.costs["seconds"] == pytest.approx(10.5)
    assert row.subsets == pytest.approx({"text": 0.4, "image": 0.4, "text+image": 0.5})
    assert subsets_of([row], INPUTS) == ["text", "image", "text+image"]


def test_one_seed_has_no_spread() -> None:
    (row,) = summarise([done("Mean", 0, 0.5, "0111")], INPUTS)
    assert row.test is not None
    assert (row.test.deviation, row.test.count) == (0, 1)


def test_validation_chooses_and_test_never_does() -> None:
    runs = [failed("Block", 0, "broke"), done("Sum", 0, 0.6, "1111"), done("Mean", 0, 0.8, "0001")]
    rows = summarise(runs, INPUTS)
    assert [row.label for row in rows] == ["Mean", "Sum", "Block"]
    best = best_of(rows)
    assert best is not None
    assert best.label == "Mean"


def test_of_equal_rows_the_smaller_one_is_best() -> None:
    rows = summarise([done("AAAA", 0, 0.6, "1111"), done("B", 0, 0.6, "0001")], INPUTS)
    assert [row.label for row in rows] == ["B", "AAAA"]


def test_nothing_is_best_where_all_failed() -> None:
    runs = [failed("Block", 0, "broke")]
    assert best_of(summarise(runs, INPUTS)) is None
    assert best_of([]) is None
    assert paired(runs, INPUTS) == {}


def test_holm_by_hand() -> None:
    # sorted: 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; none may fall below the one before
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def signed_rank(differences: list[int]) -> float:
    """Two-sided exact p-value: of all ways to give the differences signs, the share at least as lopsided."""
    sizes = [abs(one) for one in differences if one]
    order = sorted(sizes)
    ranks = [statistics.fmean(place for place, one in enumerate(order, 1) if one == size) for size in sizes]
    middle = sum(ranks) / 2
    found = abs(sum(rank for rank, one in zip(ranks, filter(None, differences), strict=True) if one > 0) - middle)
    signs = itertools.product((0, 1), repeat=len(sizes))
    sums = [abs(sum(rank for rank, sign in zip(ranks, some, strict=True) if sign) - middle) for some in signs]
    return sum(one >= found - 1e-9 for one in sums) / len(sums)


def test_pairs_by_sample_over_common_seeds() -> None:
    best = ["1111110111", "1111111101"]
    worse = ["0011010111", "0101011101"]
    runs = [done("Best", seed, 0.9, marks) for seed, marks in enumerate(best)]
    runs += [done("Worse", seed, 0.5, marks) for seed, marks in enumerate(worse)]
    runs.append(done("Worse", 7, 0.5, "0000000000"))  # a seed that only one of the two has does not count
    hits = [[sum(map(int, marks)) for marks in zip(*seeds, strict=True)] for seeds in (best, worse)]
    differences = [one - other for one, other in zip(*hits, strict=True)]
    assert paired(runs, INPUTS) == pytest.approx({"Worse": signed_rank(differences)})


def test_a_clear_difference_is_found_and_none_is_not() -> None:
    good = "1" * 360 + "0" * 40
    bad = "0" * 80 + "1" * 280 + "0" * 40
    alike = "0" * 6 + "1" * 359 + "0" * 35  # wrong on six that good has, right on five that it has not
    found = paired(
        [
            done("Good", 0, 0.9, good),
            done("Bad", 0, 0.7, bad),
            done("Same", 0, 0.8, good),
            done("Alike", 0, 0.8, alike),
        ],
        INPUTS,
    )
    assert found.keys() == {"Bad", "Same", "Alike"}
    assert found["Bad"] < 1e-6
    assert found["Same"] == 1
    assert found["Alike"] > 0.05


def test_runs_on_other_samples_cannot_be_paired() -> None:
    with pytest.raises(UserError, match=r"Sum \(seed 3\) was tested on 3 samples and Mean \(seed 0\) on 4"):
        paired([done("Mean", 0, 0.9, "0111"), done("Sum", 3, 0.8, "011")], INPUTS)


def test_what_shares_neither_seed_nor_samples_with_the_best_is_left_out() -> None:
    best, elsewhere = done("Mean", 0, 0.9, "0111"), done("Sum", 1, 0.8, "0111")
    fewer = done("Mean", 0, 0.5, "011", ("text",), tested="others")  # a sample without text is no sample of this run
    assert paired([best, elsewhere, fewer], INPUTS) == {}


def test_the_front_is_what_nobody_beats() -> None:
    points = {"a": (0.9, 5.0), "b": (0.8, 1.0), "c": (0.8, 2.0), "d": (0.7, 1.0), "e": (0.9, 5.0), "f": (0.85, 3.0)}
    assert pareto(points) == {"a", "e", "b", "f"}  # equal points beat nobody
    assert pareto({}) == set()


def test_rows_that_were_tested_on_other_samples_are_not_paired() -> None:
    """As many samples are not the same samples: each input alone drops the rows that lack it."""
    runs = [
        done("Concat", 0, 0.9, "0111", tested="these"),
        done("Mean", 0, 0.5, "0011", tested="these"),
        done("Concat", 0, 0.4, "0011", ("text",), tested="others"),
    ]
    assert paired(runs, INPUTS).keys() == {"Mean"}
