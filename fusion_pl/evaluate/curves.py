"""Sections about all predictions: per class, precision and recall, calibration, and risk by doubt."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics.functional.classification import binary_average_precision, binary_precision_recall_curve

from fusion_pl.analysis.page import Table
from fusion_pl.evaluate.evaluation import Evaluation
from fusion_pl.evaluate.section import EvaluationSection, make_pictures, percent
from fusion_pl.training.calibration_report import reliability_bins
from fusion_pl.training.decision_report import describe_decisions
from fusion_pl.training.figures import plot_reliability, plot_risk_coverage
from fusion_pl.uncertainty.calibration import calibration_scores

MAX_CURVES = 10  # in one picture; of more classes, the picture has their common curve


def class_section(evaluation: Evaluation) -> EvaluationSection:
    """Return precision, recall and F1 of each class, and the confusion matrix or the bars of all labels."""
    task, classes = evaluation.task, evaluation.classes
    metric = task.outcomes(len(classes))
    metric.update(evaluation.probabilities, evaluation.target)
    outcomes = metric.compute()
    per_class = task.per_class(outcomes, classes)
    columns = [name for name in next(iter(per_class.values())) if name != "samples"]
    lines = [
        (name, f"{values['samples']:,}", *(f"{values[column]:.3f}" for column in columns))
        for name, values in per_class.items()
    ]
    table = Table(("class", "rows", *(column.replace("_", " ") for column in columns)), lines)
    caption = "Rows: true class; columns: predicted class." if task.exclusive_classes else "Precision, recall and F1."
    pictures = make_pictures(("classes", caption, task.plot(outcomes, classes, "")))
    results = {"per_class": per_class, "outcomes": outcomes.tolist()}
    return EvaluationSection("Classes", "", [table], pictures, key="classes", results=results)


def precision_recall_section(evaluation: Evaluation) -> EvaluationSection:
    """Return precision against recall of each class, against all other classes, and its average precision."""
    events = class_events(evaluation)
    found = {name: event for name, event in events.items() if event[1].any()}
    precision = {name: float(binary_average_precision(*event)) for name, event in found.items()}
    lines = [
        (name, f"{int(events[name][1].sum()):,}", f"{precision[name]:.3f}" if name in precision else "no rows")
        for name in events
    ]
    table = Table(("class", "rows", "average precision"), lines)
    if len(found) > MAX_CURVES:
        probabilities, has = (torch.cat(values) for values in zip(*found.values(), strict=True))
        found = {"all classes": (probabilities, has)}
    text = (
        "Each class against all others, by its probability; unknown labels are left out. Average precision is the area "
        "under the curve; by chance, it is the share of the rows that have the class."
    )
    pictures = make_pictures(("precision-recall", "Precision against recall.", _plot_precision_recall(found)))
    return EvaluationSection(
        "Precision and recall",
        text,
        [table],
        pictures,
        key="precision_recall",
        results={"average_precision": precision},
    )


def class_events(evaluation: Evaluation) -> dict[str, tuple[Tensor, Bool[Tensor, " K"]]]:
    """Return for each class the probabilities, and whether the rows have it, of the rows for which this is known."""
    target = evaluation.target
    if evaluation.task.exclusive_classes:
        target = one_hot(target, len(evaluation.classes))
    return {
        name: (probabilities[has >= 0], has[has >= 0] == 1)
        for name, probabilities, has in zip(
            evaluation.classes, evaluation.probabilities.unbind(1), target.unbind(1), strict=True
        )
    }


def _plot_precision_recall(events: dict[str, tuple[Tensor, Tensor]]) -> Figure | None:
    if not events:
        return None
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, event in events.items():
        precision, recall, _ = binary_precision_recall_curve(event[0], event[1].long())
        axes.plot(100 * recall.numpy(), 100 * precision.numpy(), label=name, drawstyle="steps-post")
    axes.set(xlabel="recall in %", ylabel="precision in %", ylim=(0, 102))
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)
    return figure


def calibration_section(evaluation: Evaluation) -> EvaluationSection:
    """Return calibration error, Brier score and NLL, before and after the calibration of the checkpoint."""
    task, target = evaluation.task, evaluation.target
    logits = {"before": evaluation.outputs.logits}
    calibration = evaluation.predictor.model.calibration
    if calibration is not None:
        logits["after"] = evaluation.logits
    scores = {moment: calibration_scores(task, values, target) for moment, values in logits.items()}
    bins = reliability_bins(task, logits, target)
    lines = [
        (moment, f"{percent(values['ece'])} %", f"{values['brier']:.4f}", f"{values['nll']:.4f}")
        for moment, values in scores.items()
    ]
    table = Table(("calibration", "expected calibration error", "Brier score", "negative log-likelihood"), lines)
    events = "predicted classes" if task.exclusive_classes else "labels"
    text = (
        f"Whether {events} with a probability of 80 % are right in 80 % of the rows. The expected calibration error "
        "has 15 bins with equal numbers of rows. Before: the model without the calibration that fit chose on "
        "validation; after: with it, as predict uses it."
    )
    if calibration is None:
        text += " The checkpoint has no calibration."
    elif calibration.reason:
        text += f" With all inputs, the checkpoint has none: {calibration.reason}."
    caption = "Share of true predictions against their mean probability, per bin."
    pictures = make_pictures(("calibration", caption, plot_reliability(bins, "")))
    return EvaluationSection("Calibration", text, [table], pictures, key="calibration", results=scores)


def doubt_section(evaluation: Evaluation) -> EvaluationSection:
    """Return the risk-coverage curve of each score of doubt, and the coverage of prediction sets."""
    described = describe_decisions(evaluation.predictor.model, evaluation.outputs)
    score = evaluation.task.score.replace("_", " ").capitalize()
    doubts: dict[str, Any] = described["doubt"]
    shares = next(iter(doubts.values()))["accuracy_of_share"]
    header = ("doubt", "AURC in %", *(f"surest {percent(float(share), 0)} %" for share in shares))
    lines = [
        (name, percent(values["aurc"], 2), *(percent(share) for share in values["accuracy_of_share"].values()))
        for name, values in doubts.items()
    ]
    tables = [Table(header, lines, caption=f"{score} in % of the rows with the least doubt")]
    if sets := described["prediction_sets"]:
        rows = [
            (f"{percent(float(asked), 0)} %", f"{percent(values['coverage'])} %", f"{values['mean_size']:.2f}")
            for asked, values in sets.items()
        ]
        tables.append(Table(("coverage asked", "realised", "classes per set"), rows, caption="Prediction sets"))
    text = (
        "If the model abstains from the rows with the most doubt, how often is it wrong on the others? AURC is the "
        "mean of this risk over all shares of rows. A set contains the right class, or all labels, with the asked "
        "probability."
    )
    caption = "Wrong predictions among the rows with the least doubt, against their share of all rows."
    wrong = ~evaluation.correct
    pictures = make_pictures(("doubt", caption, plot_risk_coverage(evaluation.doubts, wrong, "")))
    return EvaluationSection("Doubt", text, tables, pictures, key="doubt", results=described)
