"""Metrics by group, with a warning for groups on which the model is worse than chance allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion_pl.analysis.page import Table
from fusion_pl.analysis.statistics import accuracy_interval, bootstrap_interval, holm_correction
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.group_tests import group_p_value
from fusion_pl.evaluate.groups import Grouping
from fusion_pl.evaluate.section import ALPHA, EvaluationSection, interval_text, p_value_text, percent
from fusion_pl.messages import join_names

MIN_ROWS = 10  # of a group that is tested
MAX_GROUPS = 20  # of a column whose smaller groups are shown, too
TEXT = (
    "A group is compared with all other rows. The p-value is that of a one-sided permutation test: the probability "
    "that as many rows, drawn at random, have a mean {error} at least as large as that of the group. It is corrected "
    "for the number of groups ({count}) by Holm's method: if the model were equally good on all, a warning would "
    "have a probability of at most {alpha} %. Groups of fewer than {minimum} rows are not tested. A group without a "
    "warning may still be worse, above all if it has few rows. Columns with many different numbers are divided at "
    "their quartiles."
)


@dataclass(frozen=True)
class Group:
    """A group of rows and its metrics.

    Attributes:
        name: name of the group.
        rows: number of rows.
        score: mean of ``is_correct``.
        interval: 95 % interval of the score.
        error: mean of ``sample_errors``.
        error_interval: 95 % interval of the error.
        loss: mean negative log-likelihood.
        p_value: p-value, corrected for the number of groups; None if the group has too few rows.
        other_score: score of all other rows; NaN without others.
        other_error: error of all other rows; NaN without others.
    """

    name: str
    rows: int
    score: float
    interval: tuple[float, float]
    error: float
    error_interval: tuple[float, float]
    loss: float
    p_value: float | None
    other_score: float
    other_error: float

    @property
    def is_worse(self) -> bool:
        """Whether the group is worse than chance allows."""
        return self.p_value is not None and self.p_value <= ALPHA


def group_section(evaluation: Evaluation, all_groupings: Iterable[Grouping]) -> EvaluationSection:
    """Return the section of the metrics by group."""
    groups = measure_groups(evaluation, list(all_groupings))
    tables = [_table(evaluation, name, members) for name, members in groups.items()]
    tested = sum(group.p_value is not None for members in groups.values() for group in members)
    text = TEXT.format(
        error=evaluation.task.error.replace("_", " "), count=tested, alpha=round(100 * ALPHA), minimum=MIN_ROWS
    )
    warnings = [
        _warning(evaluation, name, group) for name, members in groups.items() for group in members if group.is_worse
    ]
    small = [_small_text(name, members) for name, members in groups.items()]
    results: dict[str, Any] = {
        name: [vars(group) | {"is_worse": group.is_worse} for group in members] for name, members in groups.items()
    }
    if not tables:
        text = "There are no groups: give columns of the table with --groups, such as --groups speaker,source."
    return EvaluationSection(
        "Groups", " ".join([text, *filter(None, small)]), tables, warnings=warnings, key="groups", results=results
    )


def measure_groups(evaluation: Evaluation, all_groupings: Sequence[Grouping]) -> dict[str, list[Group]]:
    """Return the groups of each grouping; the p-values of all of them are corrected together."""
    errors = evaluation.errors.numpy()
    p_values = {}
    for index, grouping in enumerate(all_groupings):
        for code in range(len(grouping.names)):
            in_group = grouping.codes == code
            if MIN_ROWS <= in_group.sum() < len(errors):
                p_values[f"{index} {code}"] = group_p_value(errors, in_group)
    corrected = holm_correction(p_values)
    return {
        grouping.name: [
            _measure_group(evaluation, name, grouping.codes == code, corrected.get(f"{index} {code}"))
            for code, name in enumerate(grouping.names)
        ]
        for index, grouping in enumerate(all_groupings)
    }


def _measure_group(evaluation: Evaluation, name: str, in_group: NDArray[np.bool_], p_value: float | None) -> Group:
    correct, errors, losses = (values.numpy() for values in (evaluation.correct, evaluation.errors, evaluation.losses))
    return Group(
        name=name,
        rows=int(in_group.sum()),
        score=float(correct[in_group].mean()),
        interval=accuracy_interval(correct[in_group][None].astype(np.int64)),
        error=float(errors[in_group].mean()),
        error_interval=bootstrap_interval(errors[in_group][None]),
        loss=float(losses[in_group].mean()),
        p_value=p_value,
        other_score=float(correct[~in_group].mean()) if not in_group.all() else float("nan"),
        other_error=float(errors[~in_group].mean()) if not in_group.all() else float("nan"),
    )


def _table(evaluation: Evaluation, name: str, groups: Sequence[Group]) -> Table:
    score, error = (text.replace("_", " ") for text in (evaluation.task.score, evaluation.task.error))
    has_error = evaluation.task.error != "error_rate"
    shown = [group for group in groups if group.rows >= MIN_ROWS or len(groups) <= MAX_GROUPS]
    header = (
        "group",
        "rows",
        f"{score} in %",
        "95 % interval",
        *([error, "95 % interval"] * has_error),
        "loss",
        "p-value",
    )
    lines = [
        (
            group.name,
            f"{group.rows:,}",
            percent(group.score),
            interval_text(group.interval),
            *([f"{group.error:.3f}", interval_text(group.error_interval, 1.0, 3)] * has_error),
            f"{group.loss:.3f}",
            "too few rows" if group.rows < MIN_ROWS else p_value_text(group.p_value),
        )
        for group in shown
    ]
    worse = [index for index, group in enumerate(shown) if group.is_worse]
    return Table(header, lines, caption=name, highlighted=worse)


def _small_text(name: str, groups: Sequence[Group]) -> str:
    """Return a sentence about the groups that are too small to be tested; empty if there are none."""
    small = [group for group in groups if group.rows < MIN_ROWS]
    if not small:
        return ""
    rows = sum(group.rows for group in small)
    names = join_names(group.name for group in small)
    count, verb = ("1 group", "is") if len(small) == 1 else (f"{len(small)} groups", "are")
    return f"Of {name}, {count} with {rows} rows in all {verb} too small to be tested: {names}."


def _warning(evaluation: Evaluation, name: str, group: Group) -> str:
    """Return a sentence with the tested error; an error rate is given as the score, which is 1 - this error."""
    assert group.p_value is not None
    score, error = (text.replace("_", " ") for text in (evaluation.task.score, evaluation.task.error))
    if evaluation.task.error == "error_rate":
        measured = f"{score} {percent(group.score)} % (95 % interval {interval_text(group.interval)})"
        others = f"{percent(group.other_score)} %"
    else:
        measured = f"{error} {group.error:.3f} (95 % interval {interval_text(group.error_interval, 1.0, 3)})"
        others = f"{group.other_error:.3f}"
    p_value = p_value_text(group.p_value)
    equals = "" if p_value.startswith("<") else "= "
    return (
        f"the model is worse on the group {group.name} of {name}: {measured} on {group.rows:,} rows, {others} on all "
        f"others; p {equals}{p_value}, corrected for the number of groups"
    )
