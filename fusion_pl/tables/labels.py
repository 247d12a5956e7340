"""Columns of labels, which the task converts to targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fusion_pl.messages import did_you_mean, join_names, truncate
from fusion_pl.tables.arrow_cells import is_text
from fusion_pl.tables.checks import check_text_column, row_problems
from fusion_pl.tables.table import Problem, Table
from fusion_pl.tasks import LabelColumn, MultiLabel, Task
from fusion_pl.tasks.base import Targets
from fusion_pl.types import UserError

MAX_DECIMAL_CLASSES = 20  # more classes that are decimal numbers are quantities
MAX_ROWS_OF_TYPO = 2  # of a class that may be a misspelt label of another class
JOINED_SHARE = 0.25  # of the classes that look like several names, from which on a sentence tells it
SEPARATOR = "\x1f"  # between the items of a list, which are joined to find distinct lists


def check_label_option(names: Sequence[str], classes: Sequence[str] | None, task: Task) -> None:
    """Raise a ``UserError`` if the task does not read so many label columns, or ``data.classes`` does not fit."""
    if classes is not None and len(set(classes)) != len(classes):
        raise UserError(f"classes contains {Counter(classes).most_common(1)[0][0]!r} more than once")
    several = len(names) > 1
    if not names or (several and not task.several_columns):
        expected = "at least one column" if not names else "one column"
        fix = "; for one column of 1 and 0 per label, give --model.task MultiLabel" * several
        raise UserError(f"data.label is {list(names)}, but {type(task).__name__} reads {expected}{fix}")
    if len(set(names)) < len(names):
        raise UserError(f"data.label contains {Counter(names).most_common(1)[0][0]!r} more than once")
    if several and classes is not None and set(classes) != set(names):
        raise UserError(
            f"data.classes is {list(classes)}, but with several label columns the classes are their names: leave it out"
        )


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
    for column, is_invalid in zip(columns, task.find_invalid(columns, classes), strict=True):

        def describe(row: int, column: LabelColumn = column) -> str:
            code = int(column.codes[row])
            return task.explain_invalid(column.cells[code] if code >= 0 else None, classes, len(columns) > 1)

        yield from row_problems(table, np.flatnonzero(is_invalid), column.name, describe, column.codes)


def find_untrained_classes(
    table: Table, column: str, task: Task, targets: Targets, counts: Mapping[str, int]
) -> Iterator[Problem]:
    """Find classes without a training sample.

    Args:
        table: the table.
        column: label column, for the messages.
        task: the task.
        targets: target of each row.
        counts: class -> number of its training samples.
    """
    trained = [name for name, count in counts.items() if count]
    for index, name in enumerate(counts):
        if name not in trained:
            rows = np.flatnonzero(task.has_class(targets, index))
            first = f" (its first row is row {table.row_numbers[rows[0]]})" if rows.size else ""
            hint = did_you_mean(name, trained) if rows.size else ""
            yield Problem(f"the class {name!r} has no training sample{first}{hint}", column=column)


def unsuitable_labels(
    table: Table, columns: Sequence[str], classes: Sequence[str], has_problems: bool
) -> list[Problem]:
    """Return a problem if the inferred classes are like quantities, or, if there are other problems, like ids.

    Args:
        table: the table.
        columns: label columns.
        classes: the inferred classes.
        has_problems: whether splits or classes lack rows.
    """
    is_quantity = (
        len(classes) > MAX_DECIMAL_CLASSES and all(map(_is_number, classes)) and any("." in c for c in classes)
    )
    if not is_quantity and not (has_problems and len(classes) * 2 > len(table)):
        return []
    others = join_names(repr(name) for name in table.columns if name not in columns)
    kind = "like quantities" if is_quantity else "like ids or numbers"
    text = (
        f"the label column {columns[0]!r} has {len(classes)} different values in {len(table)} rows, {kind}: give a "
        f"column of classes with data.label (the other columns are {others}); fusion-pl predicts one class per row "
        "(MultiClass), several labels (MultiLabel) or ordered classes (Ordinal), so put numbers into classes, such as "
        "low and high"
    )
    return [Problem(f"{text}, or list them in data.classes" if is_quantity else text)]


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def describe_joined_labels(classes: Sequence[str]) -> str:
    """Return a sentence if many classes look like several names in one cell, which ``MultiLabel`` reads; else nothing.

    Many are at least a quarter. Such a class is a list, or joined by ``|``, and one of its names is in other classes;
    or, since names may contain these characters, it is joined by ``;`` or ``,``, each of its names is a class, too, and
    they are no numbers, as in decimal fractions.

    Args:
        classes: names of the classes, inferred from the labels.

    Example:
        >>> describe_joined_labels(["crime", "drama", "crime|drama"]).partition(":")[0]
        "1 of the 3 different labels looks like several names per cell, such as 'crime|drama'"
        >>> describe_joined_labels(["yes", "no", "yes|no|perhaps", "either", "or", "both", "none"])
        ''
        >>> describe_joined_labels(["yes", "no", "yes, please"])
        ''
    """
    for separator in ("|", ";", ","):
        task = MultiLabel(separator)
        names = {name: set(task.read_names(name) or []) for name in classes}
        if separator == "|":
            uses = Counter(part for parts in names.values() for part in parts)
            joined = [name for name, parts in names.items() if len(parts) > 1 and any(uses[one] > 1 for one in parts)]
        else:
            known = {name.strip() for name in classes if not _is_number(name.replace(",", "."))}
            joined = [name for name, parts in names.items() if len(parts) > 1 and parts <= known]
        if joined and len(joined) >= JOINED_SHARE * len(classes):
            option = "" if separator == "|" else f" --model.task.separator {separator!r}"
            verb = "looks" if len(joined) == 1 else "look"
            return (
                f"{len(joined)} of the {len(classes)} different labels {verb} like several names per cell, such as "
                f"{truncate(joined[0])!r}: give --model.task MultiLabel{option} (in Python "
                f"task=MultiLabel({repr(separator) if option else ''})), or, if each is one class, list them in "
                "data.classes"
            )
    return ""


def replace_label_problems(problems: list[Problem], columns: Sequence[str], reason: str) -> list[Problem]:
    """Return the problems with those of the label columns, if there are any, replaced by their common reason."""
    others = [problem for problem in problems if problem.column not in columns]
    return problems if len(others) == len(problems) else [Problem(reason, column=columns[0]), *others]


def find_misspelt_classes(classes: Sequence[str], counts: Sequence[int]) -> dict[str, str]:
    """Return a dictionary from each class that may be a typing error to a message.

    Such a class differs from a larger one in case or spaces only; or it has one or two rows, and its name is similar to
    that of a larger class. Of the latter, names with digits are left out, since numbered classes are similar.

    Args:
        classes: names of the classes, inferred from the labels.
        counts: number of rows per class.

    Example:
        >>> find_misspelt_classes(["Cat", "Catt", "Dog"], [50, 1, 2]).keys()
        dict_keys(['Catt'])
    """
    messages = {}
    spelling: dict[str, str] = {}  # name without case and spaces -> largest class
    for name, count in sorted(zip(classes, counts, strict=True), key=lambda item: -item[1]):
        if (other := spelling.setdefault("".join(name.casefold().split()), name)) != name and count > 0:
            rows = "1 row" if count == 1 else f"{count} rows"
            messages[name] = (
                f"the class {name!r} has {rows}, and differs from {other!r} in case or spaces only: write both in the "
                "same way"
            )
    larger = [name for name, count in zip(classes, counts, strict=True) if count > MAX_ROWS_OF_TYPO]
    for name, count in zip(classes, counts, strict=True):
        if (
            name not in messages
            and 0 < count <= MAX_ROWS_OF_TYPO
            and not any(map(str.isdigit, name))
            and (hint := did_you_mean(name, larger))
        ):
            rows = "1 row" if count == 1 else f"{count} rows"
            fix = "Correct the label, or give data.classes to refuse others"
            messages[name] = f"the class {name!r} has {rows}{hint} {fix}"
    return messages
