"""Checks of the arguments of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

import fusion_pl.fusion
from fusion_pl.config import config_of
from fusion_pl.data.base import FusionData
from fusion_pl.encoders.base import Encoder
from fusion_pl.fusion.base import Fusion
from fusion_pl.messages import join_names
from fusion_pl.processors import Processor
from fusion_pl.tasks import Task
from fusion_pl.types import UserError


def check_inputs(encoders: Mapping[str, Encoder]) -> None:
    """Raise a ``UserError`` for an invalid name of an input, or an encoder whose processor cannot open its input."""
    if not encoders:
        raise UserError("model.encoders is empty: give at least one input name with its encoder")
    for name, encoder in encoders.items():
        if not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"an input cannot be named {name!r}: choose a name without a dot that is no attribute of nn.ModuleDict"
            )
        if not isinstance(encoder.processor, Processor):
            raise UserError(
                f"the processor of {name!r}, {type(encoder.processor).__name__}, cannot open its input: derive the "
                "class from TextProcessor, ImageProcessor, AudioProcessor or Processor of fusion_pl.processors"
            )


def check_classes(classes: Sequence[str]) -> None:
    """Raise a ``UserError`` if there are fewer than two classes."""
    if len(classes) < 2:
        raise UserError(f"a classifier needs at least two classes, and the data has {len(classes)}: {classes}")


def check_same_task(task: Task, data: object) -> None:
    """Raise a ``UserError`` if a data module reads labels for another task than that of the model."""
    if isinstance(data, FusionData) and config_of(data.task) != config_of(task):
        raise UserError(
            f"the model has the task {type(task).__name__}, and the data {type(data.task).__name__} or other arguments "
            "of it: build both with the same task, such as FusionClassifier(…, task=data.task)"
        )


def check_head(head: type[Fusion], task: Task) -> None:
    """Raise a ``UserError`` if a fusion head does not fit a task; the message contains heads that do."""
    if not fits(head, type(task)):
        known = (getattr(fusion_pl.fusion, name) for name in fusion_pl.fusion.__all__)
        fitting = join_names(cls.__name__ for cls in known if cls is not Fusion and fits(cls, type(task)))
        raise UserError(
            f"the fusion head {head.__name__} takes the softmax of one logit per class, which {type(task).__name__} "
            f"does not have: give model.fusion one of {fitting}"
        )


def fits(head: type[Fusion], task: type[Task]) -> bool:
    """Return whether a fusion head fits a task."""
    return not head.needs_softmax or task.uses_softmax or (head.several_labels and not task.exclusive_classes)
