"""The demo data with several labels: what each input shows, and what it allows."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from fusion_pl.data import street

SUBSETS = [names for size in range(4) for names in itertools.combinations(street.INPUTS, size)]


@pytest.mark.parametrize("inputs", SUBSETS)
def test_the_ceiling_is_the_product_over_hidden_labels(inputs):
    """Labels are independent, so that the best guess of each label that is not shown is that it is absent."""
    hidden = [label for label, shown in street.SHOWN_IN.items() if not set(shown) & set(inputs)]
    assert street.best_exact_match(inputs) == float(Fraction(3, 5) ** len(hidden))


def test_every_input_has_a_label_that_no_other_shows():
    for name in street.INPUTS:
        assert any(shown == (name,) for shown in street.SHOWN_IN.values())


def test_labels_are_as_frequent_as_the_ceilings_assume():
    labels = [street.generate_sample(row, np.random.default_rng([1, row])).label.split("|") for row in range(1000)]
    counts = np.array([[name in row for name in street.LABELS] for row in labels])
    assert counts.mean(0) == pytest.approx([0.4] * 6, abs=4 * np.sqrt(0.24 / 1000))
    pairs = np.corrcoef(counts.T)[~np.eye(6, dtype=bool)]
    assert np.abs(pairs).max() < 4 / np.sqrt(1000)


def test_an_input_depends_only_on_the_labels_that_it_shows():
    """The same random numbers give the same caption, whatever the labels that only other inputs show."""
    makers = {"text": street._write_caption, "image": street._draw_image, "audio": street._record}
    for name, make in makers.items():
        shown = {label for label, inputs in street.SHOWN_IN.items() if name in inputs}
        others = set(street.LABELS) - shown
        for present in ({*shown}, set()):
            one, other = (make(labels, np.random.default_rng(3)) for labels in (present, present | others))
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("label", street.LABELS)
def test_a_label_changes_the_inputs_that_show_it(label):
    makers = {"text": street._write_caption, "image": street._draw_image, "audio": street._record}
    for name in street.SHOWN_IN[label]:
        one, other = (makers[name](labels, np.random.default_rng(3)) for labels in ({label}, set()))
        assert not np.array_equal(np.asarray(one), np.asarray(other))
