"""Groups of rows, and the tests whether a model is worse on one of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, fisher_exact

from fusion_pl.evaluate import group_tests
from fusion_pl.evaluate.group_section import MIN_ROWS, group_section, measure_groups
from fusion_pl.evaluate.group_tests import group_p_value
from fusion_pl.evaluate.groups import Grouping, group_by_column, group_by_number
from fusion_pl.tables.read_table import read_table
from tests.evaluate.models import SPOILT


@pytest.mark.parametrize("seed", range(5))
def test_errors_of_0_and_1_have_the_p_value_of_fishers_exact_test(seed):
    rng = np.random.default_rng(seed)
    errors, in_group = (rng.random(60) < 0.3).astype(float), rng.random(60) < 0.4
    counts = [[int((errors[rows] == value).sum()) for value in (1, 0)] for rows in (in_group, ~in_group)]
    assert group_p_value(errors, in_group) == pytest.approx(fisher_exact(counts, alternative="greater").pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_other_errors_have_the_p_value_of_all_divisions(seed):
    """Of ten rows into a group of four and the others: 210 divisions."""
    rng = np.random.default_rng(seed)
    errors, in_group = rng.integers(0, 4, 10) / 3, np.arange(10) < 4
    sums = [sum(errors[list(rows)]) for rows in combinations(range(10), 4)]
    exact = np.mean(np.array(sums) >= errors[:4].sum() - 1e-9)
    assert group_p_value(errors, in_group) == pytest.approx(
        exact, abs=4 * np.sqrt(exact / group_tests.NUM_PERMUTATIONS)
    )


def test_the_p_value_of_rows_that_do_not_differ_is_1():
    assert group_p_value(np.zeros(9), np.arange(9) < 3) == 1
    assert group_p_value(np.arange(9) % 2.0, np.ones(9, bool)) == 1


def test_false_warnings_are_at_most_the_level(evaluation, monkeypatch):
    """Groups that are drawn at random, six and four of them, on the predictions of the model, which has many errors."""
    monkeypatch.setattr(group_tests, "NUM_PERMUTATIONS", 2_000)
    rng, warned, trials = np.random.default_rng(0), 0, 150
    for _ in range(trials):
        groupings = [
            Grouping(str(count), [str(code) for code in range(count)], rng.integers(count, size=len(evaluation)))
            for count in (6, 4)
        ]
        found = measure_groups(evaluation, groupings)
        warned += any(group.is_worse for groups in found.values() for group in groups)
    assert evaluation.errors.sum() > 20
    assert warned <= binom.ppf(0.999, trials, 0.05)


def test_intervals_and_means_of_a_group(evaluation):
    speaker = group_by_column(evaluation.data.table, "speaker", evaluation.rows)
    groups = measure_groups(evaluation, [speaker])["speaker"]
    for code, group in enumerate(groups):
        rows = speaker.codes == code
        assert group.score == pytest.approx(evaluation.correct.numpy()[rows].mean())
        assert group.other_score == pytest.approx(evaluation.correct.numpy()[~rows].mean())
        assert group.other_error == pytest.approx(evaluation.errors.numpy()[~rows].mean())
        assert group.interval[0] <= group.score <= group.interval[1] + 1e-9
        assert group.error_interval[0] - 1e-9 <= group.error <= group.error_interval[1] + 1e-9
    assert [group.name for group in groups if group.is_worse] == [SPOILT]


def test_small_groups_are_not_tested_but_named(evaluation):
    codes = np.where(np.arange(len(evaluation)) < MIN_ROWS - 1, 0, 1)
    section = group_section(evaluation, [Grouping("source", ["rare", "common"], codes)])
    rare, common = section.results["source"]
    assert rare["p_value"] is None
    assert common["p_value"] is not None
    assert "Of source, 1 group with 9 rows in all is too small to be tested: rare." in section.text
    assert section.tables[0].rows[0][-1] == "too few rows"


def test_without_groups_a_sentence_says_how_to_get_them(evaluation):
    assert "--groups" in group_section(evaluation, []).text


@pytest.mark.parametrize("seed", range(3))
def test_bins_of_numbers_have_about_equal_sizes(seed):
    values = np.random.default_rng(seed).normal(size=200)
    grouping = group_by_number("age", np.append(values, np.nan))
    assert np.bincount(grouping.codes).tolist() == [50, 50, 50, 50, 1]
    assert grouping.names[-1] == "(empty)"
    for code in range(3):
        assert values[grouping.codes[:-1] == code].max() < values[grouping.codes[:-1] == code + 1].min()


def test_bins_of_ties_are_not_empty():
    grouping = group_by_number("age", np.array([1.0] * 90 + [2.0] * 10))
    assert grouping.names == ["1", "2"]
    assert np.bincount(grouping.codes).tolist() == [90, 10]
    assert group_by_number("age", np.full(3, np.nan)).names == ["(empty)"]


def test_cells_are_groups_unless_they_are_many_numbers(tmp_path):
    cells = ["b", " a ", "", "a", "10", "9"]
    lines = [f"{cell},{row},{row % 3}" for row, cell in enumerate(cells * 3)]
    (tmp_path / "rows.csv").write_text("\n".join(["source,age,grade", *lines]))
    table = read_table(str(tmp_path / "rows.csv"))
    rows = np.arange(18)
    source = group_by_column(table, "source", rows)
    assert source.names == ["9", "10", "a", "b", "(empty)"]
    assert [source.names[code] for code in source.codes[:6]] == ["b", "a", "(empty)", "a", "10", "9"]
    assert group_by_column(table, "grade", rows).names == ["0", "1", "2"]
    assert len(group_by_column(table, "age", rows).names) == 4
    assert group_by_column(table, "source", rows[:2]).names == ["a", "b"]
