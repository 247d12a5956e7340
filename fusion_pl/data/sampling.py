"""Which samples an epoch of training has, and in which order: weighted sampling, and batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fusion_pl.data.rows import InputColumn
from fusion_pl.processors.base import OPEN_ERRORS, Processor
from fusion_pl.tables.checks import Rows, check_text_column, map_in_threads, parse_number, row_problems
from fusion_pl.tables.table import Problem, Table

POOL_BATCHES = 400  # number of random batches that are sorted by length together; more: less padding, less random
LENGTH_NOISE = 0.02  # relative noise of the lengths, so that the batches differ in each epoch


@dataclass(frozen=True)
class Sampling:
    """How the samples of an epoch are drawn.

    Attributes:
        weights: weight of each sample, in proportion to which it is drawn, with replacement; None = every sample once.
        lengths: length of each sample, in any unit, for batches of similar length; None = batches of any lengths.
        shards: index of the shard of each sample, from 0, to draw all samples of a few shards before those of others;
            None = samples in any order.
        window: number of shards whose samples are mixed.
    """

    weights: NDArray[np.float64] | None = None
    lengths: NDArray[np.float64] | None = None
    shards: NDArray[np.int64] | None = None
    window: int = 1

    def draw(self, size: int, total: int, batch_size: int, rng: Generator) -> NDArray[np.int64]:
        """Draw the samples of an epoch.

        Args:
            size: number of samples of the data set.
            total: number of samples to draw; ``size``, or more if the processes get equally many samples. Without
                weights the first samples of the epoch are repeated.
            batch_size: number of samples per step of all processes.
            rng: random generator.

        Returns:
            Index of each drawn sample; consecutive ``batch_size`` samples are a step.
        """
        if self.weights is None:
            rows = np.resize(self._order_by_window(rng.permutation(size), rng), total)
        else:
            rows = self._order_by_window(rng.choice(size, total, p=self.weights / self.weights.sum()), rng)
        return rows if self.lengths is None else rows[_order_by_length(self.lengths[rows], batch_size, rng)]

    def _order_by_window(self, rows: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
        """Return rows in random order so that those of a window of shards follow one another."""
        if self.shards is None:
            return rows
        windows = rng.permutation(self.shards.max() + 1) // self.window
        return rows[np.argsort(windows[self.shards[rows]], kind="stable")]


def _order_by_length(lengths: NDArray[np.float64], batch_size: int, rng: Generator) -> NDArray[np.int64]:
    """Return an order in which each batch has similar lengths, and the batches are in random order.

    The samples, which are in random order, are sorted within pools of ``POOL_BATCHES`` batches. Only the last batch may
    be smaller; its samples are consecutive ones of the last pool.
    """
    size, pool_size = len(lengths), POOL_BATCHES * batch_size
    noisy = lengths * rng.uniform(1 - LENGTH_NOISE, 1 + LENGTH_NOISE, size)
    ascending = np.lexsort((noisy, np.arange(size) // pool_size))
    last_pool = max(size - 1, 0) // pool_size * pool_size
    rest = size % batch_size
    start = last_pool + batch_size * int(rng.integers((size - last_pool) // batch_size + 1))
    batches = np.delete(ascending, np.s_[start : start + rest]).reshape(-1, batch_size)
    return np.concatenate([rng.permutation(batches).ravel(), ascending[start : start + rest]])


def class_balanced_weights(targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return weights with which every class is equally likely: one divided by the number of samples of the class."""
    return 1 / np.bincount(targets)[targets]


def read_weights(table: Table, column: str) -> NDArray[np.float64]:
    """Return the number in each cell of a column; NaN if a cell is empty, not a number, negative or infinite."""
    codes, texts = table.factorize(column)
    return np.array([*map(_parse_weight, texts), np.nan])[codes]


def _parse_weight(text: str) -> float:
    weight = parse_number(text)
    return weight if weight >= 0 else np.nan


def check_weights(table: Table, column: str, rows: Rows) -> Iterator[Problem]:
    """Find training rows without a valid weight."""
    if problems := list(check_text_column(table, column, "the sample weights")):
        yield from problems
        return
    weights = read_weights(table, column)[rows]

    def describe(row: int) -> str:
        cell = table.cell(column, row)
        problem = f"the weight is {cell!r}" if cell else "the weight is empty"
        return f"{problem}, expected a number of 0 or more; 0 leaves the row out of training"

    yield from row_problems(table, rows[np.isnan(weights)], column, describe)
    if rows.size and not np.nansum(weights):
        yield Problem("no train row has a weight above 0", column=column)


def relative_lengths(columns: Sequence[InputColumn], size: int) -> NDArray[np.float64]:
    """Return the length of each of ``size`` samples: the sum over its inputs of length / mean length of the input."""
    total = np.zeros(size)
    for column in columns:
        lengths = _input_lengths(column, size)
        if lengths.any():
            total += lengths / lengths[lengths > 0].mean()
    return total


def _input_lengths(column: InputColumn, size: int) -> NDArray[np.float64]:
    """Return the length of each cell, 0 if it is missing or unreadable; the headers of files are read in threads."""

    def length(index: int) -> float:
        with suppress(*OPEN_ERRORS):  # the loader reports a file that cannot be read
            cell = column.cells[index]
            return 0.0 if cell is None else column.open_local(cell, column.processor.estimate_length)
        return 0.0

    if type(column.processor).estimate_length is Processor.estimate_length:  # always 0: download no file for it
        return np.zeros(size)
    if column.processor.reads_files:
        return np.array(map_in_threads(length, range(size), f"Lengths of {column.input}"))
    return np.fromiter(map(length, range(size)), np.float64, size)
