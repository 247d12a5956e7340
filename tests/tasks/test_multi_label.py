"""Reading labels, choosing thresholds and measuring, against slow restatements and torchmetrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multilabel_auroc,
    multilabel_average_precision,
    multilabel_exact_match,
    multilabel_f1_score,
)

from fusion_pl.data import ManifestData
from fusion_pl.tables.labels import read_label_column
from fusion_pl.tables.read_table import read_table
from fusion_pl.tasks import MultiClass, MultiLabel
from fusion_pl.tasks.multi_label_metrics import best_thresholds
from fusion_pl.types import UserError

CLASSES = ["crime", "drama", "war"]


def read(path, content, task=None, names=("tags",), classes=None):
    """Return the classes and the targets of a table."""
    path.write_text(content)
    table, task = read_table(str(path)), task or MultiLabel()
    columns = [read_label_column(table, name) for name in names]
    classes = classes or task.infer_classes(columns)
    return classes, task.read_targets(columns, classes).tolist()


@pytest.mark.parametrize(
    "cells",
    [
        ["drama|crime", " drama ", "war|drama|war", "", "[]"],
        ['["drama", "crime"]', "['drama']", '[war, "drama"]', "", "[]"],
    ],
)
@pytest.mark.parametrize(("empty", "value"), [("none", 0), ("unknown", -1)])
def test_cells_of_names_and_of_lists(cells, empty, value, tmp_path):
    rows = "\n".join('"' + cell.replace('"', '""') + '",x' for cell in cells)
    classes, targets = read(tmp_path / "a.csv", f"tags,text\n{rows}\n", MultiLabel(empty=empty))
    assert classes == CLASSES
    assert targets == [[1, 1, 0], [0, 1, 0], [0, 1, 1], [value] * 3, [0, 0, 0]]


def test_columns_of_lists(tmp_path):
    rows = [["drama", "crime"], ["drama"], ["war", "drama"], None, []]
    content = "".join(json.dumps({"tags": tags, "text": "x"}) + "\n" for tags in rows)
    classes, targets = read(tmp_path / "a.jsonl", content, MultiLabel(empty="unknown"))
    assert classes == CLASSES
    assert targets == [[1, 1, 0], [0, 1, 0], [0, 1, 1], [-1] * 3, [0, 0, 0]]


def test_columns_of_numbers_one_per_label(tmp_path):
    content = "war,drama,crime,text\n1,0,0,x\n0,1.0,1,x\n,0,true,x\n"
    names = ("war", "drama", "crime")
    assert read(tmp_path / "a.csv", content, names=names) == (list(names), [[1, 0, 0], [0, 1, 1], [-1, 0, 1]])
    assert read(tmp_path / "a.csv", content, names=names, classes=CLASSES)[1] == [[0, 0, 1], [1, 1, 0], [1, 0, -1]]


def data_of(tmp_path, content, **options):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    data = ManifestData(str(path), num_workers=0, **{"task": MultiLabel(), "label": "tags"} | options)
    data.processors = {}
    return data


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        (
            "tags,text\ndrama|crme,x\n",
            {"classes": CLASSES},
            r"row 2, column 'tags': 'crme' is not one .* mean crime",
        ),
        ('tags,text\n"[drama",x\n', {"classes": CLASSES}, r"row 2, column 'tags': '\[drama' is not a list of labels"),
        ("a,b,text\n1,maybe,x\n", {"label": ["a", "b"]}, r"row 2, column 'b': 'maybe' is neither 1 nor 0"),
        ("a,text\n1,x\n", {"label": ["a", "b"]}, "there is no column 'b' for the label"),
        ("tags,text\na|b,x\n", {"classes": ["a", "b"], "task": MultiClass()}, "give --model.task MultiLabel"),
    ],
)
def test_mistakes_in_labels_have_row_and_column(content, options, text, tmp_path):
    with pytest.raises(UserError, match=text):
        data_of(tmp_path, content, **options).setup("fit")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"label": ["a", "b"], "task": MultiClass()}, "MultiClass reads one column"),
        ({"label": ["a", "a"]}, "contains 'a' more than once"),
        ({"label": ["a", "b"], "classes": ["a", "c"]}, "with several label columns the classes are their names"),
        ({"sampling": "class_balanced"}, "which MultiLabel lacks"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, text):
    with pytest.raises(UserError, match=text):
        ManifestData("rows.csv", **{"task": MultiLabel()} | options)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"separator": " "}, "separator"),
        ({"threshold": 1.0}, "probability above 0"),
    ],
)
def test_invalid_arguments_are_named(arguments, text):
    with pytest.raises(UserError, match=text):
        MultiLabel(**arguments)


def test_drawn_splits_train_every_label_and_leave_out_rows_without_known_labels(tmp_path):
    cells = ["common"] * 30 + ["common|rare", "rare|common", "[]", "", ""]
    content = "tags,text\n" + "".join(f"{cell},text {row}\n" for row, cell in enumerate(cells))
    for seed in range(20):
        data = data_of(tmp_path, content, task=MultiLabel(empty="unknown"), seed=seed)
        used = np.concatenate(list(data._splits.used_rows.values()))
        assert sorted(used.tolist()) == list(range(33))
        assert data.classes == ["common", "rare"]
        assert min(data.class_counts) > 0
        rows = data.targets[data._splits.used_rows["train"]]
        assert data.absent_counts == [int((rows[:, 0] == 0).sum()), int((rows[:, 1] == 0).sum())]


def predictions(unknown=0.2, rows=200):
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(rows, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.05])).long()
    noise = torch.rand(rows, 3, generator=generator)
    probabilities = (0.3 * labels + 0.7 * noise).mul(20).round().div(20)  # with equal probabilities
    labels[torch.rand(rows, 3, generator=generator) < unknown] = -1
    return probabilities, labels


def test_chosen_thresholds_have_the_largest_f1():
    probabilities, labels = predictions()

    def f1(c, threshold):
        known = labels[:, c] >= 0
        decided, true = probabilities[known, c] >= threshold, labels[known, c] == 1
        return 2 * (decided & true).sum() / (decided.sum() + true.sum())

    for c, threshold in enumerate(best_thresholds(probabilities, labels).tolist()):
        best = max(f1(c, candidate) for candidate in probabilities[:, c].unique().tolist())
        assert f1(c, threshold) == best
    assert best_thresholds(probabilities, torch.zeros_like(labels)).tolist() == [0.5] * 3


def measure(task, parts, in_training=False):
    task.set_num_classes(3)
    task.start_validation(in_training)
    metrics = task.metrics(3, "")
    for probabilities, labels in parts:
        metrics.update(probabilities, labels)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_metrics_without_unknown_labels_are_those_of_torchmetrics():
    probabilities, labels = predictions(unknown=0.0)
    found = measure(MultiLabel(threshold=0.4), zip(probabilities.split(70), labels.split(70), strict=True))
    given = {"num_labels": 3, "threshold": 0.399999}  # torchmetrics predicts labels above the threshold
    expected = {
        "average_precision": multilabel_average_precision(probabilities, labels, 3),
        "auroc": multilabel_auroc(probabilities, labels, 3),
        "f1": multilabel_f1_score(probabilities, labels, **given, average="macro"),
        "f1_micro": multilabel_f1_score(probabilities, labels, **given, average="micro"),
        "exact_match": multilabel_exact_match(probabilities, labels, **given),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)


def test_unknown_labels_count_in_no_metric_and_no_loss():
    probabilities, labels = predictions()
    other = torch.where(labels < 0, 1 - probabilities, probabilities)
    assert measure(MultiLabel(), [(probabilities, labels)]) == measure(MultiLabel(), [(other, labels)])
    task = MultiLabel()
    task.set_num_classes(3)
    for first, second in zip(
        task.sum_losses(probabilities.logit(1e-3), labels), task.sum_losses(other.logit(1e-3), labels), strict=True
    ):
        torch.testing.assert_close(first, second)
    assert torch.equal(task.is_correct(probabilities.logit(), labels), task.is_correct(other.logit(), labels))


def test_thresholds_are_chosen_in_validations_of_a_training_only():
    probabilities, labels = predictions()
    task = MultiLabel(threshold="validation")
    before = measure(task, [(probabilities, labels)])
    assert task.thresholds.tolist() == [0.5] * 3
    after = measure(task, [(probabilities, labels)], in_training=True)
    torch.testing.assert_close(task.training_thresholds, best_thresholds(probabilities, labels))
    assert task.thresholds.tolist() == [0.5] * 3  # of calibrated probabilities
    task.choose_thresholds(probabilities, labels)
    assert torch.equal(task.thresholds, task.training_thresholds)
    assert after["f1"] > before["f1"]
    assert after["average_precision"] == before["average_precision"]
    right = (task.decide(probabilities) == labels) | (labels < 0)
    assert after["exact_match"] == pytest.approx(right.all(-1).float().mean().item())


def test_the_metrics_share_their_predictions():
    task = MultiLabel()
    task.set_num_classes(3)
    metrics = task.metrics(3, "")
    metrics.update(*predictions())
    assert len(metrics.compute_groups) == 1
