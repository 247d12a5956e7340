"""Figures of missing inputs, calibration and doubt, for TensorBoard and for the report of ``fusion-pl compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from fusion_pl.metrics import calibration_error, subsets
from fusion_pl.uncertainty.doubt import area_under_risk_coverage, risk_coverage


def plot_missing_inputs(
    accuracies: Mapping[str, float], inputs: Sequence[str], title: str, score: str = "accuracy"
) -> Figure | None:
    r"""Plot the expected accuracy, or another score, against the share q of missing cells.

    The figure has one line per input, whose cells are missing, and one line for missing cells of all inputs. Return
    None if no accuracy without one of the inputs was measured.

    If cells of input m are missing at random, a sample is classified with all inputs with probability 1 - q and
    without m with probability q, so the expectation is :math:`(1 - q)\, a_{all} + q\, a_{-m}`. If cells of every
    input are missing at random, it is :math:`\sum_S q^{M - |S|} (1 - q)^{|S|} a_S / (1 - q^M)` over the non-empty
    subsets S; samples without any input are excluded. Both are exact if every measured sample has all inputs.

    Args:
        accuracies: input names joined by ``+`` in the order of ``inputs`` -> accuracy with only these, 0 to 1.
        inputs: names of all inputs of the model.
        title: title of the figure.
        score: name of the score, such as ``exact_match``.
    """
    by_subset = {subset: accuracies.get("+".join(subset)) for subset in subsets(inputs)}
    with_all = by_subset[tuple(inputs)]
    without = {name: by_subset.get(tuple(other for other in inputs if other != name)) for name in inputs}
    measured = {name: accuracy for name, accuracy in without.items() if accuracy is not None}
    if with_all is None or not measured:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    share = np.linspace(0, 1, 101)
    for name, accuracy in measured.items():
        axes.plot(100 * share, 100 * ((1 - share) * with_all + share * accuracy), label=f"{name} missing")
    if len(inputs) > 2 and None not in by_subset.values():
        # Numerator and denominator are divided by 1 - q, so that the result for q = 1 is the limit instead of 0 / 0.
        weights = [share ** (len(inputs) - len(subset)) * (1 - share) ** (len(subset) - 1) for subset in by_subset]
        mean = sum(weight * (value or 0.0) for weight, value in zip(weights, by_subset.values(), strict=True))
        axes.plot(100 * share, 100 * mean / sum(weights), color="black", linestyle="--", label="any missing")
    axes.set(xlabel="share of missing cells in %", ylabel=f"{score.replace('_', ' ')} in %")
    axes.set_title(title, parse_math=False)
    for text in axes.legend().get_texts():
        text.set_parse_math(False)
    return figure


def plot_reliability(bins: Mapping[str, tuple[Tensor, Tensor, Tensor]], title: str) -> Figure | None:
    """Plot the share of true predictions against their mean probability, in bins of equal size; None without samples.

    Args:
        bins: ``before`` and ``after`` calibration -> mean probability, share and number of samples of each bin.
        title: title of the figure.
    """
    measured = {moment: values for moment, values in bins.items() if len(values[0])}
    if not measured:
        return None
    figure = Figure(figsize=(4.5, 4.5), dpi=120)
    axes = figure.add_axes((0.15, 0.12, 0.8, 0.8))  # a layout engine takes as long as the drawing, in every run
    axes.plot([0, 100], [0, 100], color="grey", linewidth=1)
    for moment, (confidences, shares, sizes) in measured.items():
        error = float(calibration_error(confidences, shares, sizes))
        axes.plot(
            100 * confidences.cpu().numpy(), 100 * shares.cpu().numpy(), marker="o", label=f"{moment}: ECE {error:.1%}"
        )
    axes.set(xlabel="predicted probability in %", ylabel="true predictions in %")
    axes.set_title(title, parse_math=False)
    axes.legend()
    return figure


def plot_risk_coverage(doubts: Mapping[str, Tensor], wrong: Tensor, title: str) -> Figure:
    """Plot the share of wrong predictions among the samples with the least doubt against their share of all samples.

    Args:
        doubts: name -> scores of doubt.
        wrong: whether each prediction is wrong.
        title: title of the figure.
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    coverage = 100 * np.arange(1, len(wrong) + 1) / len(wrong)
    for name, values in doubts.items():
        area = area_under_risk_coverage(values, wrong)
        axes.plot(coverage, 100 * risk_coverage(values, wrong).numpy(), label=f"{name}: AURC {100 * area:.2f} %")
    axes.set(xlabel="samples with a label in %", ylabel="wrong predictions in %")
    axes.set_title(title, parse_math=False)
    axes.legend()
    return figure
