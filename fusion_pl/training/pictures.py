"""Pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from fusion_pl.messages import printable
from fusion_pl.metrics import subsets

MOST_CELLS_LABELLED = 400


def confusion_picture(confusion: Int[Tensor, "C C"], classes: list[str], title: str) -> Figure:
    """Draw a confusion matrix: a row is a true class, a column a predicted one, a colour the share of its row."""
    counts = confusion.numpy()
    size = 2.5 + 0.4 * len(classes)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    names = [printable(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # a $ in a name is a $
    axes.set_yticks(range(len(names)), names, parse_math=False)
    if counts.size <= MOST_CELLS_LABELLED:
        for row, column in zip(*counts.nonzero(), strict=True):
            dark = counts[row, column] > counts[row].sum() / 2
            colour = "white" if dark else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    return figure


def missing_picture(accuracies: Mapping[str, float], names: Sequence[str], title: str) -> Figure | None:
    r"""Draw the expected accuracy against the share q of missing cells: a line for each input, and one for all at once.

    Where cells of input m go missing at random, a sample is classified with all inputs at probability 1 - q and without
    m at q, so the expectation is the straight line :math:`(1 - q)\, a_{all} + q\, a_{-m}`. Where those of every input
    do, it is :math:`\sum_S q^{M - |S|} (1 - q)^{|S|} a_S / (1 - q^M)` over the choices S of at least one input: samples
    that lose all are left out. Both are exact where every sample has all inputs.

    Args:
        accuracies: inputs joined by ``+`` in the order of ``names`` -> accuracy with only these, 0 to 1.
        names: all inputs of the model.
        title: above the picture.

    Returns:
        The picture, or None where no choice of fewer inputs was measured.
    """
    every = {one: accuracies.get("+".join(one)) for one in subsets(names)}
    whole = every[tuple(names)]
    rests = {lost: every.get(tuple(name for name in names if name != lost)) for lost in names}
    known = {lost: rest for lost, rest in rests.items() if rest is not None}
    if whole is None or not known:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    share = np.linspace(0, 1, 101)
    for lost, rest in known.items():
        axes.plot(100 * share, 100 * ((1 - share) * whole + share * rest), label=f"{lost} missing")
    if len(names) > 2 and None not in every.values():
        # One factor 1 - q less than in the formula, above and below: at q = 1, where both are 0, the limit is left.
        weights = [share ** (len(names) - len(one)) * (1 - share) ** (len(one) - 1) for one in every]
        mean = sum(weight * (value or 0.0) for weight, value in zip(weights, every.values(), strict=True))
        axes.plot(100 * share, 100 * mean / sum(weights), color="black", linestyle="--", label="any missing")
    axes.set(xlabel="share of missing cells in %", ylabel="accuracy in %")
    axes.set_title(title, parse_math=False)
    for text in axes.legend().get_texts():
        text.set_parse_math(False)
    return figure
