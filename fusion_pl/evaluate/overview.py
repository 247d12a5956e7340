"""The first section of the page: what was evaluated, and all warnings."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_pl import __version__
from fusion_pl.analysis.statistics import accuracy_interval
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.rows import LabelledRows
from fusion_pl.evaluate.section import EvaluationSection, interval_text, percent


def overview_section(
    evaluation: Evaluation, selected: LabelledRows, split: str, sections: Sequence[EvaluationSection]
) -> EvaluationSection:
    """Return the section with the warnings of all other sections.

    Args:
        evaluation: the predictions.
        selected: the labelled rows.
        split: name of the split.
        sections: the other sections.
    """
    task, score = evaluation.task, float(evaluation.correct.double().mean())
    interval = accuracy_interval(evaluation.correct.long().numpy()[None])
    rows = "all rows" if split == "all" else f"the split {split}"
    text = (
        f"{len(evaluation):,} of the {selected.total:,} rows of {rows} of {evaluation.data.manifest} with "
        f"{type(task).__name__} and {len(evaluation.classes)} classes: {task.score.replace('_', ' ')} "
        f"{percent(score)} % (95 % interval {interval_text(interval)}). fusion-pl {__version__}."
    )
    warnings = list(selected.warnings)
    if evaluation.failed:
        row, message = next(iter(evaluation.failed.items()))
        sample = evaluation.data.table.sample_id(row)
        count = "1 row" if len(evaluation.failed) == 1 else f"{len(evaluation.failed):,} rows"
        warnings.append(f"{count} could not be predicted; the first, {sample}: {message}")
    warnings += [warning for section in sections for warning in section.warnings]
    results = {
        "fusion_pl": __version__,
        "checkpoint": evaluation.name,
        "manifest": evaluation.data.manifest,
        "split": split,
        "task": type(task).__name__,
        "classes": evaluation.classes,
        "rows": len(evaluation),
        "rows_of_split": selected.total,
        "failed": len(evaluation.failed),
        "warnings": warnings,
    }
    return EvaluationSection("Overview", text, key="overview", results=results, warnings=warnings)
