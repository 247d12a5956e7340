"""The model as a function of tensors, which ``torch.export`` traces."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fusion_pl.data.collate import process_values
from fusion_pl.messages import error_reason, is_failure
from fusion_pl.module import FusionClassifier
from fusion_pl.types import Encoded, UserError

Arguments = tuple[dict[str, dict[str, Tensor]], dict[str, Bool[Tensor, " B"]]]


class ExportedModel(nn.Module):
    """Compute the predictions of a batch, all of whose rows have tensors for all inputs.

    Args:
        model: a trained classifier.
    """

    def __init__(self, model: FusionClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs: Mapping[str, dict[str, Tensor]], present: Mapping[str, Bool[Tensor, " B"]]
    ) -> dict[str, Tensor]:
        """Return the outputs of B samples.

        Args:
            inputs: name of the input -> arguments of its encoder; any valid values in rows of missing inputs.
            present: name of the input -> presence mask.

        Returns:
            ``logits`` (B, C); calibrated ``probabilities`` (B, C); ``decision``, the index of the class (B,) or 1 for
            each predicted label (B, C); and, if the fusion head returns them, ``weights`` of the inputs (B, M).
        """
        model = self.model
        fused = model.fuse(model.encode_all(inputs, present))
        probabilities = model.task.probabilities(model.calibrate(fused.logits, present))
        decision = model.task.decide(probabilities)
        outputs = {"logits": fused.logits.float(), "probabilities": probabilities, "decision": decision}
        return outputs if fused.weights is None else outputs | {"weights": fused.weights.float()}


def trace(model: FusionClassifier) -> torch.export.ExportedProgram:
    """Return the model as a graph with variable batch size and lengths.

    Raises:
        UserError: if a part of the model depends on values in a way that a graph cannot represent.
    """
    arguments, shapes = example_arguments(model)
    graph = ExportedModel(model).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(graph, arguments, dynamic_shapes=shapes, strict=False)
    except BaseException as error:  # encoders and heads of users, and torch, raise many types
        if not is_failure(error):
            raise
        reason = error_reason(error.__cause__ or error)
        raise UserError(
            f"the model cannot be exported, because torch.export cannot trace it ({reason}): export a model with "
            "encoders and a fusion head of docs/export.md"
        ) from error


def example_arguments(model: FusionClassifier) -> tuple[Arguments, Any]:
    """Return arguments of ``ExportedModel``, and for each of their axes whether its size is variable.

    The first axis, of the samples, is variable. Another one is if examples of an input differ in its size.

    Raises:
        UserError: if an input is read from features, which have no processor.
    """
    inputs: dict[str, dict[str, Tensor]] = {}
    shapes: dict[str, dict[str, dict[int, Any]]] = {}
    for name, processor in model.processors.items():
        shortest, longest = (
            _process(processor, name, [value] * 2) for value in (processor.examples()[0], processor.examples()[-1])
        )
        inputs[name] = longest
        shapes[name] = {
            key: {0: torch.export.Dim.DYNAMIC}
            | {
                axis: torch.export.Dim.DYNAMIC
                for axis in range(1, tensor.dim())
                if tensor.shape[axis] != shortest[key].shape[axis]
            }
            for key, tensor in longest.items()
        }
    present = {name: torch.tensor([True, False]) for name in inputs}
    return (inputs, present), (shapes, {name: {0: torch.export.Dim.DYNAMIC} for name in inputs})


def other_arguments(model: FusionClassifier) -> list[Arguments]:
    """Return arguments of the shortest examples, with which a graph is checked.

    One sample with all inputs; and a sample per input that has this input only, with one more that has all.
    """
    found = []
    for only in ([], list(model.processors)):
        rows = len(only) + 1
        inputs, present = {}, {}
        for name, processor in model.processors.items():
            inputs[name] = _process(processor, name, [processor.examples()[0]] * rows)
            present[name] = torch.tensor([*(other == name for other in only), True])
        found.append((inputs, present))
    return found


def _process(processor: Any, name: str, values: list[Any]) -> dict[str, Tensor]:
    processed = process_values(processor, name, values, [name])
    if isinstance(processed, Encoded):
        raise UserError(f"the input {name!r} has features of its encoder only: export a model with the encoder itself")
    return processed
