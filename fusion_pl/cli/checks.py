"""Build what a configuration names, and tell a wrong argument in one sentence before anything slow is done."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.data.base import FusionData
from fusion_pl.data.manifest import ManifestData
from fusion_pl.encoders.base import Encoder
from fusion_pl.messages import join_names, short
from fusion_pl.module import FusionClassifier
from fusion_pl.training.stage_metrics import StageMetrics
from fusion_pl.types import UserError

# What Lightning takes without a word, and divides by or compares with later.
AT_LEAST = {
    "trainer.check_val_every_n_epoch": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.min_epochs": 0,
    "trainer.min_steps": 0,
    "trainer.log_every_n_steps": 0,
    "trainer.gradient_clip_val": 0,
    "early_stopping.patience": 0,
    "model.pretrained_lr_factor": 0,
}
WRONG: tuple[type[Exception], ...] = (
    ValueError,
    MisconfigurationException,
)  # what libraries raise for an argument out of its range


@contextmanager
def told_by(what: str, given: Mapping[str, Any], *more: type[Exception]) -> Iterator[None]:
    """Take what a constructor refuses for a mistake in the configuration, since its arguments come from there.

    Args:
        what: is built.
        given: its arguments.
        more: exceptions by which it refuses one, besides ``ValueError``.
    """
    try:
        yield
    except UserError:
        raise
    except (*WRONG, *more) as error:
        said = " ".join(str(error).split())
        named = any(re.search(rf"\b{name}\b", said) for name in given)
        blamed = [f"{name}={value!r}" for name, value in given.items() if not named and repr(value) in said]
        raise UserError(f"{what}{f'({blamed[0]})' if blamed else ''}: {said}") from error


def build(cls: type, *args: Any, **kwargs: Any) -> Any:
    """Build a part that a configuration names, as jsonargparse's instantiators do."""
    with told_by(cls.__name__, kwargs):
        return cls(*args, **kwargs)


def check_optimizer(model: FusionClassifier) -> None:
    """Build the optimizer and its schedule once for parameters that nobody needs: else training would start first.

    Raises:
        UserError: where one of them refuses its arguments.
    """
    groups = [{"params": [nn.Parameter(torch.zeros(1, 1))]}, {"params": [nn.Parameter(torch.zeros(1))]}]
    with told_by("model.optimizer", {}, TypeError):
        optimizer = model.optimizer(groups)
    with told_by("model.lr_scheduler", {}, TypeError):
        model.lr_scheduler(optimizer)


def check_monitor(option: str, wanted: str | None, model: FusionClassifier) -> None:
    """Refuse a metric that no run logs: Lightning would find out after the first epoch.

    Args:
        option: that names it.
        wanted: the metric.
        model: whose metrics they are.

    Raises:
        UserError: says which there are.
    """
    stage_metrics = model.stage_metrics["val"]
    assert isinstance(stage_metrics, StageMetrics)
    measured = map(str, stage_metrics.classification.keys(keep_base=False))
    known = ["val/loss", *measured, "train/loss", "train/loss_step", "train/accuracy"]
    if wanted is not None and wanted not in known and not wanted.startswith(("val/weight/", "val/layer_weight/")):
        close: list[str] = difflib.get_close_matches(wanted, known, n=1)
        did = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise UserError(f"{option}: no run measures {wanted!r}; {did}")


def check_numbers(config: Namespace) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        UserError: names the option.
    """
    for option, least in AT_LEAST.items():
        given = config[option]
        if isinstance(given, (int, float)) and given < least:
            raise UserError(f"{option} is {given}, expected at least {least}")
    if config.trainer.val_check_interval == 0:
        raise UserError("trainer.val_check_interval is 0, expected a share of an epoch, or a number of batches")


def check_folders(folders: Iterable[tuple[str, Any]]) -> None:
    """Refuse an address in place of a folder, and a folder that a file stands in the way of.

    Args:
        folders: option -> what it was given.

    Raises:
        UserError: names the option, and the file.
    """
    for option, given in folders:
        if "://" in str(given):
            raise UserError(f"{option}: {given} is an address, expected a folder of this machine")
        if isinstance(given, (str, Path)):
            for place in (Path(given), *Path(given).parents):
                if place.is_file():
                    raise UserError(f"{option}: {place} is a file, expected a folder")


def folders_of(config: Namespace) -> Iterator[tuple[str, Any]]:
    """Yield every option of a run that names a folder to write to."""
    yield "--cache", config.cache
    yield "--checkpoint.dirpath", config.checkpoint.dirpath
    yield "--trainer.default_root_dir", config.trainer.default_root_dir
    if isinstance(config.trainer.logger, Namespace):
        yield "--trainer.logger.save_dir", config.trainer.logger.init_args.get("save_dir")


def check_model(model: FusionClassifier, path: str, data: FusionData) -> dict[str, Any]:
    """Refuse a checkpoint of another model in a sentence, instead of a list of tensors that do not fit; return it.

    Encoders of which it holds all weights do not load their pretrained ones first.
    """
    checkpoint = read_checkpoint(path)
    saved, wanted = (_outline(config) for config in (checkpoint["fusion_pl"], model.config()))
    for key, value in wanted.items():
        if saved[key] != value:
            if key == "classes":
                raise UserError(f"{path} was trained with other classes: {_other_classes(saved[key], value, data)}")
            raise UserError(
                f"{path} was trained with other {key} ({saved[key]}) than this configuration asks for ({value}): "
                "give the config.yaml that lies beside its run's logs"
            )
    weights = checkpoint["state_dict"]
    for name, encoder in model.encoders.items():
        if isinstance(encoder, Encoder) and all(
            f"encoders.{name}.{tensor}" in weights for tensor in encoder.state_dict()
        ):
            encoder.has_weights = True
    return checkpoint


def _other_classes(saved: list[str], wanted: list[str], data: FusionData) -> str:
    """Say which classes are new, missing or in another order, where the first of a new one is, and what helps."""
    before, now = set(saved), set(wanted)
    new, missing = [name for name in wanted if name not in before], [name for name in saved if name not in now]
    parts = [
        f"{join_names(repr(short(name)) for name in names)} {'is' if len(names) == 1 else 'are'} {word}"
        for names, word in ((new, "new"), (missing, "missing"))
        if names
    ] or ["they are in another order"]
    helps = "train anew with fusion-pl fit"
    if isinstance(data, ManifestData):
        if new and data.configured_classes is None:
            labels = [(cell or "").strip() for cell in data.table.columns[data.label]]
            row = data.table.row_numbers[labels.index(new[0])]
            parts[0] += f" ({data.manifest}, row {row}, column {data.label!r})"
            helps = f"correct the label or remove the row, or {helps}"
        if missing or not new or data.configured_classes is not None:
            helps = f"set data.classes to [{join_names(repr(short(name)) for name in saved)}], or {helps}"
    return f"{', '.join(parts)}; {helps}"


def _outline(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "classes": config["classes"],
        "encoders": {name: part["class_path"] for name, part in config["encoders"].items()},
        "fusion": config["fusion"]["class_path"],
    }
