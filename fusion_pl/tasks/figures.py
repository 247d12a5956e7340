"""Figures of a task's predictions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from fusion_pl.messages import escape_unprintable

MAX_PLOTTED_CLASSES = 60  # a larger confusion matrix is not legible
MAX_LABELLED_CLASSES = 20  # a larger confusion matrix has no counts in its cells


def plot_confusion_matrix(confusion: Int[Tensor, "C C"], classes: list[str], title: str) -> Figure | None:
    """Plot a confusion matrix; the colour of a cell is its share of the row. None if there are too many classes.

    Args:
        confusion: counts with one row per true class and one column per predicted class.
        classes: names of the classes.
        title: title of the figure.
    """
    if len(classes) > MAX_PLOTTED_CLASSES:
        return None
    counts = confusion.numpy()
    size = 2.5 + 0.4 * len(classes)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(axis=1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    names = [escape_unprintable(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # a class name may contain $
    axes.set_yticks(range(len(names)), names, parse_math=False)
    if len(classes) <= MAX_LABELLED_CLASSES:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if counts[row, column] > counts[row].sum() / 2 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    return figure


def plot_labels(per_class: Mapping[str, Mapping[str, float]], title: str) -> Figure | None:
    """Plot precision, recall and F1 of each label as bars; None if there are too many labels.

    Args:
        per_class: label -> its precision, recall, F1 and number of samples.
        title: title of the figure.
    """
    if len(per_class) > MAX_PLOTTED_CLASSES:
        return None
    figure = Figure(figsize=(6, 1.5 + 0.5 * len(per_class)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(per_class))
    for offset, metric in zip((-0.27, 0.0, 0.27), ("precision", "recall", "f1"), strict=True):
        axes.barh(rows + offset, [100 * values[metric] for values in per_class.values()], height=0.25, label=metric)
    names = [f"{escape_unprintable(name)} (n = {values['samples']})" for name, values in per_class.items()]
    axes.set_yticks(rows, names, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="in %", xlim=(0, 100))
    axes.set_title(title, parse_math=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
