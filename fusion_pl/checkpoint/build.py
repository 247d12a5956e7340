"""Build the model that a checkpoint describes."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from traceback import walk_tb
from typing import Any

from fusion_pl.checkpoint.budget import MemoryBudget
from fusion_pl.config import config_of, import_class
from fusion_pl.encoders.base import Encoder
from fusion_pl.fusion.base import Fusion
from fusion_pl.messages import error_reason, is_failure
from fusion_pl.module import FusionClassifier
from fusion_pl.tasks import MultiClass, Task
from fusion_pl.types import UserError
from fusion_pl.uncertainty.calibration import read_calibration
from fusion_pl.uncertainty.outliers import read_detectors
from fusion_pl.uncertainty.validation_scores import read_validation_scores


def build_model(checkpoint: dict[str, Any], path: str | Path, trust: Collection[str] = ()) -> FusionClassifier:
    """Build the model that a checkpoint describes, and load its weights.

    Args:
        checkpoint: result of ``read_checkpoint``.
        path: path of the checkpoint, for messages.
        trust: packages besides fusion_pl whose encoders and fusion heads may run.

    Raises:
        UserError: if the config contains the class path of code that is not trusted, or does not match the weights.
    """
    config = checkpoint["fusion_pl"]
    weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("auxiliary_heads.")}
    head = import_class(config["fusion"]["class_path"], Fusion, trust)  # type: ignore[type-abstract]
    task_config = config.get("task") or config_of(MultiClass())  # older checkpoints have no task
    task = import_class(task_config["class_path"], Task, trust)  # type: ignore[type-abstract]
    encoders = {
        name: import_class(encoder_config["class_path"], Encoder, trust)  # type: ignore[type-abstract]
        for name, encoder_config in config["encoders"].items()
    }
    try:
        with MemoryBudget(list(weights.values())):
            model = FusionClassifier(
                {name: _build_encoder(cls, name, config) for name, cls in encoders.items()},
                lambda dims, num_classes: head(dims, num_classes, **config["fusion"]["init_args"]),
                config["classes"],
                missing=config["missing"],
                task=task(**task_config["init_args"]),
            )
        model.load_state_dict(weights)
        model.calibration = read_calibration(config, list(encoders), model.task)
        model.validation_scores = read_validation_scores(config)
        model.outlier_detectors = read_detectors(config, model.dims)
    except BaseException as error:  # constructors may raise anything on wrong arguments
        if not is_failure(error) or (not isinstance(error, UserError) and _is_raised_by_trusted_package(error, trust)):
            raise
        raise UserError(_error_message(error, path)) from error
    return model


def _is_raised_by_trusted_package(error: BaseException, trust: Collection[str]) -> bool:
    """Return whether a trusted package raised an error; such errors keep their traceback."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.partition(".")[0] in set(trust) - {"fusion_pl"} for name in names)


def _error_message(error: BaseException, path: str | Path) -> str:
    if isinstance(error, UserError):
        return f"{path} is inconsistent: {error}"
    if isinstance(error, ImportError):
        return f"{path} cannot be used here: {error_reason(error)}: install the missing package, and try again"
    if isinstance(error, MemoryError):
        return f"there is not enough memory to build the model of {path}: end other programs"
    if isinstance(error, OSError) and error.errno is not None:
        name = f" ({error.filename})" if error.filename else ""
        return f"{path} cannot be unpacked: {error.strerror}{name}: check the folder for temporary files and its disk"
    return f"{path} is inconsistent ({error_reason(error)}): it is damaged, or from another version"


def _build_encoder(cls: type[Encoder], name: str, config: dict[str, Any]) -> Encoder:
    with tempfile.TemporaryDirectory() as folder:
        for file, content in config["files"].get(name, {}).items():
            (Path(folder) / file).write_bytes(content)
        return cls.from_files(config["encoders"][name]["init_args"], folder)
