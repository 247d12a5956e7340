"""Columns of labels, which the task converts to targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fusion_pl.data.arrow_cells import is_text
from fusion_pl.data.checks import check_text_column, row_problems
from fusion_pl.data.table import Problem, Table
from fusion_pl.messages import did_you_mean
from fusion_pl.tasks import LabelColumn, Task

MAX_ROWS_OF_TYPO = 2  # of a class that may be a misspelt label of another class
SEPARATOR = "\x1f"  # between the items of a list, which are joined to find distinct lists


def check_label_columns(table: Table, names: Sequence[str], task: Task) -> Iterator[Problem]:
    """Check that the label columns exist and hold text or numbers, or lists of them if the task reads lists."""
    purpose, advice = "the label", "give another column with --data.label"
    for name in names:
        if name not in table.columns or not is_list(table, name):
            yield from check_text_column(table, name, purpose, advice)
        elif task.exclusive_classes:
            fix = "for several labels per row, give --model.task MultiLabel (in Python task=MultiLabel())"
            yield Problem(f"it holds lists, but {type(task).__name__} reads one class per row: {fix}", column=name)


def has_label_columns(table: Table, names: Sequence[str], task: Task) -> bool:
    """Return whether ``check_label_columns`` finds no problem."""
    return not any(True for _ in check_label_columns(table, names, task))


def read_label_column(table: Table, name: str) -> LabelColumn:
    """Return the distinct cells of a label column, and which of them each row has."""
    if not is_list(table, name):
        codes, cells = table.factorize(name)
        return LabelColumn(name, codes, list(cells))
    codes, texts = _join_lists(table, name).factorize(name)
    return LabelColumn(name, codes, [tuple(text.split(SEPARATOR)) if text else () for text in texts])


def _join_lists(table: Table, name: str) -> Table:
    """Return a table with the items of each list joined to a text; a null item is an empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = table.data[name].cast(pa.list_(pa.string())).combine_chunks().take(pa.array(np.arange(len(table))))
    filled = pa.ListArray.from_arrays(lists.offsets, pc.fill_null(lists.values, ""), mask=lists.is_null())
    return table.select([]).append({name: pc.binary_join(filled, SEPARATOR)})


def is_list(table: Table, name: str) -> bool:
    """Return whether the cells of a column are lists of text or numbers."""
    from pyarrow import types

    kind = table.data[name].type
    return bool(types.is_list(kind) or types.is_large_list(kind)) and is_text(kind.value_type)


def check_labels(table: Table, columns: Sequence[LabelColumn], classes: Sequence[str], task: Task) -> Iterator[Problem]:
    """Find labels that are empty or not one of the classes."""
    for column in columns:

        def describe(row: int, column: LabelColumn = column) -> str:
            code = int(column.codes[row])
            return task.explain_invalid(column.cells[code] if code >= 0 else None, classes)

        yield from row_problems(table, np.flatnonzero(task.find_invalid(column, classes)), column.name, describe)


def find_misspelt_classes(classes: Sequence[str], counts: Sequence[int]) -> dict[str, str]:
    """Return a dictionary from each class that may be a typing error to a message.

    Such a class has one or two rows, and its name is similar to that of a larger class. Names with digits are left
    out, since numbered classes are similar.

    Args:
        classes: names of the classes, inferred from the labels.
        counts: number of rows per class.

    Example:
        >>> find_misspelt_classes(["Cat", "Catt", "Dog"], [50, 1, 2]).keys()
        dict_keys(['Catt'])
    """
    larger = [name for name, count in zip(classes, counts, strict=True) if count > MAX_ROWS_OF_TYPO]
    messages = {}
    for name, count in zip(classes, counts, strict=True):
        if 0 < count <= MAX_ROWS_OF_TYPO and not any(map(str.isdigit, name)) and (hint := did_you_mean(name, larger)):
            rows = "1 row" if count == 1 else f"{count} rows"
            fix = "Correct the label, or give data.classes to refuse others"
            messages[name] = f"the class {name!r} has {rows}{hint} {fix}"
    return messages
