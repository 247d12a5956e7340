"""From what a checkpoint says to the model that it holds."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fusion_pl.checkpoint.budget import Budget
from fusion_pl.encoders.base import Encoder
from fusion_pl.fusion.base import Fusion
from fusion_pl.messages import is_failure, reason
from fusion_pl.module import FusionClassifier
from fusion_pl.recipe import Recipe, class_of
from fusion_pl.types import UserError


def build_model(checkpoint: dict[str, Any], path: str | Path, trust: Collection[str] = ()) -> FusionClassifier:
    """Build the model that a checkpoint describes and give it the checkpoint's weights.

    Args:
        checkpoint: what ``read_checkpoint`` returned.
        path: where it came from, for messages.
        trust: packages besides fusion_pl whose encoders and heads may run.

    Raises:
        UserError: where the recipe asks for code that is not trusted, or does not fit the weights.
    """
    recipe = checkpoint["fusion_pl"]
    weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("deciders.")}
    head = class_of(recipe["fusion"]["class_path"], Fusion, trust)  # type: ignore[type-abstract]
    parts = {
        name: class_of(part["class_path"], Encoder, trust)  # type: ignore[type-abstract]
        for name, part in recipe["encoders"].items()
    }
    try:
        with Budget(list(weights.values())):
            encoders = {
                name: _encoder(part, recipe["encoders"][name], recipe["files"].get(name, {}))
                for name, part in parts.items()
            }
            model = FusionClassifier(
                encoders,
                lambda dims, num_classes: head(dims, num_classes, **recipe["fusion"]["init_args"]),
                recipe["classes"],
                missing=recipe["missing"],
            )
        model.load_state_dict(weights)
    except BaseException as error:  # constructors fail in many ways on arguments that somebody else wrote
        if not is_failure(error):
            raise
        raise UserError(
            f"{path} does not hold together ({reason(error)}): it is damaged, or from another version"
        ) from error
    return model


def _encoder(part: type[Encoder], recipe: Recipe, files: dict[str, bytes]) -> Encoder:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return part.from_files(recipe["init_args"], folder)
