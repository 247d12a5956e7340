"""The curve of accuracy against missing cells, against what is drawn by lot."""

from __future__ import annotations

import random

import pytest
import torch

from fusion_pl.training.figures import plot_missing_inputs, plot_risk_coverage

NAMES = ("text", "image", "audio")
ACCURACIES = {
    "text": 0.3, "image": 0.5, "audio": 0.4, "text+image": 0.7, "text+audio": 0.6, "image+audio": 0.8,
    "text+image+audio": 0.95,
}  # fmt: skip


def lines(figure):
    assert figure is not None
    return {str(line.get_label()): dict(zip(*line.get_data(), strict=True)) for line in figure.axes[0].lines}


def test_a_missing_input_takes_a_straight_line():
    found = lines(plot_missing_inputs({"text": 0.4, "image": 0.7, "text+image": 0.9}, ("text", "image"), "Mean"))
    assert set(found) == {"text missing", "image missing"}
    assert [found["text missing"][share] for share in (0, 50, 100)] == pytest.approx([90, 80, 70])
    assert [found["image missing"][share] for share in (0, 50, 100)] == pytest.approx([90, 65, 40])


@pytest.mark.parametrize("share", [0, 20, 70, 100])
def test_any_missing_is_the_mean_over_samples_drawn_by_lot(share):
    curve = lines(plot_missing_inputs(ACCURACIES, NAMES, "Mean"))["any missing"]
    draw = random.Random(0)
    sampled = []
    while len(sampled) < 20_000:
        some = [name for name in NAMES if 100 * draw.random() >= min(share, 99)]  # at 100 nothing would be left
        if some:
            sampled.append(ACCURACIES["+".join(some)])
    assert curve[share] == pytest.approx(100 * sum(sampled) / len(sampled), abs=0.7)


def test_what_was_not_measured_is_not_drawn():
    assert plot_missing_inputs({"text+image": 0.9}, ("text", "image"), "Mean") is None
    assert plot_missing_inputs({"text": 0.9}, ("text",), "Mean") is None
    figure = plot_missing_inputs({"text+image+audio": 0.9, "text+image": 0.8}, NAMES, "Mean")
    assert set(lines(figure)) == {"audio missing"}


def test_the_risk_is_of_predictions_which_may_be_several_labels():
    figure = plot_risk_coverage({"entropy": torch.tensor([0.1, 0.2])}, torch.tensor([False, True]), "Mean")
    assert figure.axes[0].get_ylabel() == "wrong predictions in %"
