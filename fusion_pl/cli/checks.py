"""Checks of a configuration before training. Each error is one sentence that contains the wrong option."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.config import config_of
from fusion_pl.data.base import FusionData
from fusion_pl.data.manifest import ManifestData
from fusion_pl.encoders.base import Encoder
from fusion_pl.files import cache_folder
from fusion_pl.messages import did_you_mean, join_names, truncate
from fusion_pl.module import FusionClassifier
from fusion_pl.tasks import MultiClass, Task
from fusion_pl.training.stage_metrics import StageMetrics
from fusion_pl.types import Encoded, UserError

# Smallest allowed values of options that Lightning does not check.
MIN_VALUES = {
    "trainer.check_val_every_n_epoch": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.min_epochs": 0,
    "trainer.min_steps": 0,
    "trainer.log_every_n_steps": 0,
    "trainer.gradient_clip_val": 0,
    "early_stopping.patience": 0,
    "model.pretrained_lr_factor": 0,
}


PREFIXES = ("val/layer_weight/", "train/loss/")  # of metrics whose names depend on encoders and losses
# Callback -> its option to read the metric at the end of an epoch instead of after a validation.
MONITORS = {"early_stopping": "check_on_train_epoch_end", "checkpoint": "save_on_train_epoch_end"}
AUTO = "auto"  # value of an option that is chosen by the task or the machine


def task_class(config: Namespace) -> type[Task]:
    """Return the class of the task in a parsed configuration."""
    cls: Any = pydoc.locate(config.model.task.class_path) if config.model.task else MultiClass
    assert isinstance(cls, type)
    return cls


def choose_monitor(config: Namespace) -> None:
    """Set ``checkpoint.monitor`` and ``checkpoint.mode``, where they are ``auto``, to those of the task."""
    task = task_class(config)
    if config.checkpoint.monitor == AUTO:
        config.checkpoint.monitor = f"val/{task.monitor}"
    if config.checkpoint.mode == AUTO:
        monitor = str(config.checkpoint.monitor)
        is_minimised = task.mode == "min" if monitor == f"val/{task.monitor}" else "loss" in monitor
        config.checkpoint.mode = "min" if is_minimised else "max"


@contextmanager
def convert_constructor_errors(
    name: str, arguments: Mapping[str, Any], *error_types: type[Exception]
) -> Iterator[None]:
    """Convert an error that a constructor raises for wrong arguments to a ``UserError``.

    Args:
        name: name of the class or option, for the message.
        arguments: keyword arguments of the constructor.
        error_types: exceptions that the constructor raises for wrong arguments, besides ``ValueError``.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, MisconfigurationException, *error_types) as error:  # type: ignore[misc]
        message = " ".join(str(error).split())
        is_named = any(re.search(rf"\b{argument}\b", message) for argument in arguments)
        suspects = [f"({key}={value!r})" for key, value in arguments.items() if not is_named and repr(value) in message]
        raise UserError(f"{name}{''.join(suspects[:1])}: {message}") from error


def build(cls: type, *args: Any, **kwargs: Any) -> Any:
    """Construct a class of the configuration; jsonargparse calls this function for every class."""
    with convert_constructor_errors(cls.__name__, kwargs):
        return cls(*args, **kwargs)


def check_optimizer(model: FusionClassifier) -> None:
    """Raise an error for wrong arguments of optimizer or scheduler, by constructing both for dummy parameters."""
    groups = [{"params": [nn.Parameter(torch.zeros(1, 1))]}, {"params": [nn.Parameter(torch.zeros(1))]}]
    with convert_constructor_errors("model.optimizer", {}, TypeError):
        optimizer = model.optimizer(groups)
    with convert_constructor_errors("model.lr_scheduler", {}, TypeError):
        model.lr_scheduler(optimizer)


def check_monitors(config: Namespace, model: FusionClassifier) -> None:
    """Raise an error for a monitored metric that is not logged in time; Lightning raises it only after an epoch."""
    stage_metrics = model.stage_metrics["val"]
    assert isinstance(stage_metrics, StageMetrics)
    known = ["val/loss", *map(str, stage_metrics.predictions.keys(keep_base=False))]
    known += ["train/loss", f"train/{model.task.score}"]
    for name, at_epoch_end in MONITORS.items():
        option, metric = f"--{name}.monitor", config[name].monitor
        if metric is None:
            continue
        if metric.startswith("val/weight/") and _has_weights(model):
            known += [f"val/weight/{name}" for name in model.dims]
        if metric not in known and not metric.startswith(PREFIXES):
            hint = did_you_mean(metric, known) or f"; there are {', '.join(known)}"
            raise UserError(f"{option}: no run measures {metric!r}{hint}")
        if metric.startswith("train/") and not config[name][at_epoch_end]:
            raise UserError(
                f"{option}: {metric!r} is known at the end of an epoch, after its validation: give "
                f"--{name}.{at_epoch_end} true, or a metric of the validation, such as val/loss"
            )


def _has_weights(model: FusionClassifier) -> bool:
    """Return whether the fusion head returns input weights, by applying it to zeros."""
    encoded = {
        name: Encoded(torch.zeros(1, 1, dim), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dim))
        for name, dim in model.dims.items()
    }
    model.fusion.eval()  # without dropout, which would change the random numbers of the run
    with torch.no_grad():
        weights = model.fuse(encoded).weights
    model.fusion.train()
    return weights is not None


def check_options(config: Namespace) -> None:
    """Raise an error for a number below its minimum, and for an output folder that is a URL or lies below a file."""
    for option, minimum in MIN_VALUES.items():
        value = config[option]
        if isinstance(value, (int, float)) and value < minimum:
            raise UserError(f"{option} is {value}, expected at least {minimum}")
    if config.trainer.val_check_interval == 0:
        raise UserError("trainer.val_check_interval is 0, expected a share of an epoch, or a number of batches")
    folders = {
        "--cache": cache_folder() if config.cache == AUTO else config.cache,
        "--checkpoint.dirpath": config.checkpoint.dirpath,
        "--trainer.default_root_dir": config.trainer.default_root_dir,
    }
    if isinstance(config.trainer.logger, Namespace):
        folders["--trainer.logger.save_dir"] = config.trainer.logger.init_args.get("save_dir")
    for option, folder in folders.items():
        if "://" in str(folder):
            raise UserError(f"{option}: {folder} is an address, expected a folder of this machine")
        for path in (Path(folder), *Path(folder).parents) if folder else ():
            if path.is_file():
                raise UserError(f"{option}: {path} is a file, expected a folder")


def read_matching_checkpoint(model: FusionClassifier, path: str, data: FusionData) -> dict[str, Any]:
    """Read a checkpoint, and check that it has the same classes, encoders and fusion head as ``model``.

    An encoder does not load pretrained weights later if the checkpoint contains all of its weights.
    """
    checkpoint = read_checkpoint(path)
    saved, current = (_architecture(config) for config in (checkpoint["fusion_pl"], model.config()))
    for key, value in current.items():
        if saved[key] != value:
            if key == "classes":
                raise UserError(
                    f"{path} was trained with other classes: {_describe_class_differences(saved[key], value, data)}"
                )
            part = {"task": "another task", "encoders": "other encoders", "fusion": "another fusion head"}[key]
            raise UserError(
                f"{path} was trained with {part} ({_describe_part(saved[key])}) than this configuration asks for "
                f"({_describe_part(value)}): use the config.yaml in the folder of that run"
            )
    weights = checkpoint["state_dict"]
    for name, encoder in model.encoders.items():
        assert isinstance(encoder, Encoder)
        encoder.has_weights |= all(f"encoders.{name}.{tensor}" in weights for tensor in encoder.state_dict())
    return checkpoint


def _describe_part(value: str | dict[str, str]) -> str:
    """Return a class path, of which the name is enough for a class of fusion-pl; or those of several inputs."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_describe_part(path)}" for name, path in value.items())
    return value.rpartition(".")[2] if value.startswith("fusion_pl.") else value


def _describe_class_differences(saved: list[str], current: list[str], data: FusionData) -> str:
    """Return a description of new, missing or reordered classes, with the first row of a new class, and a fix."""
    before, now = set(saved), set(current)
    new, missing = [name for name in current if name not in before], [name for name in saved if name not in now]
    parts = [
        f"{join_names(repr(truncate(name)) for name in names)} {'is' if len(names) == 1 else 'are'} {word}"
        for names, word in ((new, "new"), (missing, "missing"))
        if names
    ] or ["they are in another order"]
    fix = "train again with fusion-pl fit"
    if isinstance(data, ManifestData):
        if new and data.configured_classes is None:
            row = int(np.flatnonzero(data.task.has_class(data.targets, current.index(new[0])))[0])
            place = f"row {data.table.row_numbers[row]}, column {data.label_columns[0]!r}"
            parts[0] += f" ({data.manifest}, {place})"
            fix = f"correct the label or remove the row, or {fix}"
        if missing or not new or data.configured_classes is not None:
            fix = f"set data.classes to [{join_names(repr(truncate(name)) for name in saved)}], or {fix}"
    return f"{', '.join(parts)}; {fix}"


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": config.get("task", config_of(MultiClass()))["class_path"],  # older checkpoints have no task
        "classes": config["classes"],
        "encoders": {name: part["class_path"] for name, part in config["encoders"].items()},
        "fusion": config["fusion"]["class_path"],
    }
