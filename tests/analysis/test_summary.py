"""Rows, their ranking and the paired test, against hand-computed values."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest

from fusion_pl.analysis.result import run_label
from fusion_pl.analysis.summary import (
    group_by_label,
    measured_subsets,
    paired_p_values,
    score_on_same_samples,
    summarise,
)
from fusion_pl.types import UserError
from tests.analysis.runs import INPUTS, done, failed


def test_labels() -> None:
    names = ("text", "image", "sound")
    run = done("Mean", 0, 0.5, "01", names)
    labels = [run_label(replace(run, inputs=some), names) for some in (names, ("text",), ("text", "sound"))]
    assert labels == ["Mean", "text alone", "text + sound"]


def test_labels_that_two_heads_share_are_extended() -> None:
    mine = replace(done("Mean", 0, 0.5, "01"), class_path="mine.Mean")
    some = [done(name, 0, 0.5, "01", ("text",)) for name in ("Max", "Sum")]
    names = list(group_by_label([done("Mean", 0, 0.6, "01"), mine, done("Max", 0, 0.5, "01"), *some], INPUTS))
    assert names == ["fusion_pl.fusion.Mean", "mine.Mean", "Max", "text alone (Max)", "text alone (Sum)"]


def test_duplicate_seeds_are_refused() -> None:
    with pytest.raises(UserError, match="Mean has two results with seed 4"):
        summarise([done("Mean", 4, 0.5, "01"), done("Mean", 4, 0.6, "01")], INPUTS)


def test_mean_and_standard_deviation() -> None:
    runs = [done("Mean", seed, share, correct) for seed, share, correct in ((0, 0.5, "0111"), (1, 0.9, "0001"))]
    (row,) = summarise([*runs, failed("Mean", 2, "broke")], INPUTS).rows
    assert (list(row.runs), row.failed, row.batch_size) == ([0, 1], {2: "broke"}, 8)
    assert (row.test_set_sizes, row.validation_set_sizes) == ([4], [50])
    assert row.validation_score is not None
    assert row.test_score is not None
    validation, test = row.validation_score, row.test_score
    assert (validation.mean, validation.std) == pytest.approx((0.7, statistics.stdev([0.5, 0.9])))
    assert (test.mean, test.std, test.count) == pytest.approx((0.5, np.std([0.75, 0.25], ddof=1), 2))
    assert row.costs["seconds"] == pytest.approx(10.5)
    assert row.subsets == pytest.approx({"text": 0.4, "image": 0.4, "text+image": 0.5})
    assert measured_subsets([row], INPUTS) == ["text", "image", "text+image"]


def test_one_seed_has_no_standard_deviation() -> None:
    (row,) = summarise([done("Mean", 0, 0.5, "0111")], INPUTS).rows
    assert row.test_score is not None
    assert (row.test_score.std, row.test_score.count) == (0, 1)


def test_rows_are_ranked_by_validation_not_by_test() -> None:
    runs = [failed("Block", 0, "broke"), done("Sum", 0, 0.6, "1111"), done("Mean", 0, 0.8, "0001")]
    summary = summarise(runs, INPUTS)
    assert [row.label for row in summary.rows] == ["Mean", "Sum", "Block"]
    assert summary.best is not None
    assert summary.best.label == "Mean"


def test_ties_are_ranked_by_parameters() -> None:
    rows = summarise([done("AAAA", 0, 0.6, "1111"), done("B", 0, 0.6, "0001")], INPUTS).ranked
    assert [row.label for row in rows] == ["B", "AAAA"]


def test_no_best_row_if_all_runs_failed() -> None:
    for runs in ([failed("Block", 0, "broke")], []):
        summary = summarise(runs, INPUTS)
        assert (summary.best, summary.ranked, paired_p_values(summary.ranked)) == (None, [], {})


def test_rows_on_other_samples_are_not_ranked() -> None:
    """Text alone is correct on all six samples that have text; a head is correct on 18 of all 24."""
    six = {"ids": tuple("abcdef"), "test_hash": "six", "validation_hash": "six", "validation_samples": 6}
    all_of_them = {"ids": tuple("abcdefghijklmnopqrstuvwx"), "test_hash": "all"}
    runs = [
        done("Concat", 0, 1.0, "1" * 6, ("text",), **six),
        done("Mean", 0, 0.7, "0" * 6 + "1" * 18, **all_of_them),
        done("Sum", 0, 0.6, "1" * 12 + "0" * 12, **all_of_them),
        done("Concat", 0, 0.9, "1" * 24, ("image",), **all_of_them, validation_hash="other validation samples"),
    ]
    summary = summarise(runs, INPUTS)
    assert [row.label for row in summary.ranked] == ["Mean", "Sum"]
    assert [row.label for row in summary.unranked] == ["text alone", "image alone"]
    assert summary.best is summary.ranked[0]
    assert paired_p_values(summary.ranked).keys() == {"Sum"}
    text, image = summary.unranked
    assert [score_on_same_samples(row, text) for row in summary.ranked[:2]] == [0, 1]
    assert score_on_same_samples(text, image) is None  # it was not tested on all of them


def test_a_single_input_can_be_best_if_every_sample_has_it() -> None:
    summary = summarise([done("Mean", 0, 0.7, "0111"), done("Concat", 0, 0.8, "0111", ("text",))], INPUTS)
    assert summary.best is not None
    assert (summary.best.label, summary.unranked) == ("text alone", [])


def test_single_inputs_are_ranked_only_on_the_same_samples() -> None:
    text, image = done("Concat", 0, 0.9, "0111", ("text",)), done("Concat", 0, 0.8, "0111", ("image",))
    assert [row.label for row in summarise([text, image], INPUTS).ranked] == ["text alone", "image alone"]
    assert summarise([text, replace(image, test_hash="others")], INPUTS).best is None


def test_rows_whose_seeds_have_different_samples_are_not_ranked() -> None:
    """As with a data class whose splits depend on the seed of the run."""
    runs = [done("Mean", seed, 0.9, "0111", test_hash=f"split {seed}") for seed in (0, 1)]
    summary = summarise([*runs, done("Sum", 0, 0.8, "0111", test_hash="split 0")], INPUTS)
    assert [row.label for row in summary.ranked] == ["Sum"]
    (row,) = summary.unranked
    assert (row.split_hashes, row.test_score_interval) == (None, None)


def signed_rank(differences: list[int]) -> float:
    """Exact two-sided p-value: the share of all sign assignments with a statistic at least as extreme."""
    sizes = [abs(one) for one in differences if one]
    order = sorted(sizes)
    ranks = [statistics.fmean(rank for rank, one in enumerate(order, 1) if one == size) for size in sizes]
    middle = sum(ranks) / 2
    statistic = abs(sum(rank for rank, one in zip(ranks, filter(None, differences), strict=True) if one > 0) - middle)
    signs = itertools.product((0, 1), repeat=len(sizes))
    sums = [abs(sum(rank for rank, sign in zip(ranks, some, strict=True) if sign) - middle) for some in signs]
    return sum(one >= statistic - 1e-9 for one in sums) / len(sums)


def test_the_paired_test_is_per_sample_over_common_seeds() -> None:
    best = ["1111110111", "1111111101"]
    worse = ["0011010111", "0101011101"]
    runs = [done("Best", seed, 0.9, marks) for seed, marks in enumerate(best)]
    runs += [done("Worse", seed, 0.5, marks) for seed, marks in enumerate(worse)]
    runs.append(done("Worse", 7, 0.5, "0000000000"))  # ignored: only one of the two has this seed
    counts = [[sum(map(int, marks)) for marks in zip(*seeds, strict=True)] for seeds in (best, worse)]
    differences = [one - other for one, other in zip(*counts, strict=True)]
    assert paired_p_values(summarise(runs, INPUTS).ranked) == pytest.approx({"Worse": signed_rank(differences)})


def test_p_values_of_clear_and_of_no_differences() -> None:
    good = "1" * 360 + "0" * 40
    bad = "0" * 80 + "1" * 280 + "0" * 40
    alike = "0" * 6 + "1" * 359 + "0" * 35  # differs from good on 11 samples, 6 to 5
    runs = [
        done("Good", 0, 0.9, good),
        done("Bad", 0, 0.7, bad),
        done("Same", 0, 0.8, good),
        done("Alike", 0, 0.8, alike),
    ]
    p_values = paired_p_values(summarise(runs, INPUTS).ranked)
    assert p_values.keys() == {"Bad", "Same", "Alike"}
    assert p_values["Bad"] < 1e-6
    assert p_values["Same"] == 1
    assert p_values["Alike"] > 0.05


def test_rows_without_a_common_seed_have_no_p_value_p_values() -> None:
    runs = [done("Mean", 0, 0.9, "0111"), done("Sum", 1, 0.8, "0111")]
    assert paired_p_values(summarise(runs, INPUTS).ranked) == {}


def test_rows_with_as_many_but_other_samples_are_not_ranked() -> None:
    runs = [
        done("Concat", 0, 0.9, "0111", test_hash="these"),
        done("Mean", 0, 0.5, "0011", test_hash="these"),
        done("Concat", 0, 0.4, "0011", ("text",), test_hash="others"),
    ]
    summary = summarise(runs, INPUTS)
    assert [row.label for row in summary.unranked] == ["text alone"]
    assert paired_p_values(summary.ranked).keys() == {"Mean"}
