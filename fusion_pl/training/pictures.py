"""Pictures for TensorBoard."""

from __future__ import annotations

from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

MOST_CELLS_LABELLED = 400


def confusion_picture(confusion: Int[Tensor, "C C"], classes: list[str], title: str) -> Figure:
    """Draw a confusion matrix: a row is a true class, a column a predicted one, a colour the share of its row."""
    counts = confusion.numpy()
    size = 2.5 + 0.4 * len(classes)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    if counts.size <= MOST_CELLS_LABELLED:
        for row, column in zip(*counts.nonzero(), strict=True):
            dark = counts[row, column] > counts[row].sum() / 2
            colour = "white" if dark else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    return figure
