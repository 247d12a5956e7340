"""What a run leaves behind: ``metrics.json``, the same as a table, confusion and hyper-parameters in TensorBoard."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusion_pl.files import atomic_write
from fusion_pl.messages import printable
from fusion_pl.metrics import per_class
from fusion_pl.training.best import BestCheckpoint
from fusion_pl.training.folder import run_folder
from fusion_pl.training.pictures import confusion_picture, missing_picture
from fusion_pl.training.states import Unfit, number

PACKAGES = ("fusion-pl", "lightning", "torch", "torchmetrics", "torchvision", "torchaudio", "transformers")
MOST_CLASSES_DRAWN = 60  # a larger confusion matrix cannot be read as a picture


class WriteResults(Callback):
    """Write and print the results of ``fit``, ``validate`` and ``test``; draw confusions, and what missing inputs cost.

    ``fit`` reports the validation that the best checkpoint was chosen by.

    Args:
        hyper_parameters: the run's configuration, shown in TensorBoard beside the best metric.
    """

    def __init__(self, hyper_parameters: dict[str, Any] | None = None) -> None:
        self.hyper_parameters = hyper_parameters or {}
        self.best: dict[str, Any] = {}
        self.latest: dict[str, Any] = {}
        self.step: int | None = None  # of the best, as the best checkpoint counts it
        self.validated: int | None = None
        self.started = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Carry the best validation so far, so that a run that goes on reports the best of all."""
        return {"best": self.best, "step": self.step, "validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best validation of the run that goes on."""
        self.best = _sound(state_dict.get("best"))
        step, validated = state_dict.get("step"), state_dict.get("validated")
        self.step = step if isinstance(step, int) else None
        self.validated = validated if isinstance(validated, int) else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validation's mistakes by class."""
        self._confusion(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the test's mistakes by class."""
        self._confusion(trainer, pl_module, "test")

    def _confusion(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        stage_metrics: Any = module.stage_metrics
        confusion = stage_metrics[stage].confusion
        matrix = confusion.compute().cpu()  # by every process: it waits for the others
        if trainer.sanity_checking:
            confusion.reset()
            return
        self.per_class = per_class(matrix, module.classes)  # type: ignore[arg-type]
        self.samples = {stage: int(matrix.sum())}
        logger = trainer.logger
        if trainer.is_global_zero and isinstance(logger, TensorBoardLogger) and len(matrix) <= MOST_CLASSES_DRAWN:
            picture = confusion_picture(matrix, module.classes, stage)  # type: ignore[arg-type]
            logger.experiment.add_figure(f"{stage}/confusion", picture, trainer.global_step)
        confusion.reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember a validation of ``fit``, and at which step it was; report one of ``validate``."""
        if trainer.sanity_checking:
            return
        result = self._result(trainer, "val/")
        _draw_missing(trainer, pl_module, "val", result["metrics"])
        if trainer.state.fn != "fit":
            self._report(trainer, result)
            return
        self.latest = result | {"epoch": trainer.current_epoch}
        self.validated = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the validation that the best checkpoint is chosen by, in this checkpoint already."""
        self._follow(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _follow(self, trainer: Trainer) -> Any:
        """Take the latest validation for the best where a new best checkpoint was written since."""
        chosen = next((one for one in trainer.checkpoint_callbacks if isinstance(one, BestCheckpoint)), None)
        step = self.validated if chosen is None else chosen.best_step
        if self.latest and (not self.best or step != self.step):
            self.best, self.step = self.latest, step
        return chosen

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report a test."""
        result = self._result(trainer, "test/")
        _draw_missing(trainer, pl_module, "test", result["metrics"])
        self._report(trainer, result)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the validation that the best checkpoint was chosen by."""
        chosen = self._follow(trainer)
        if not self.best:
            return
        monitor, best = getattr(chosen, "monitor", None), self.best
        counts = getattr(trainer.datamodule, "class_counts", None)  # type: ignore[attr-defined]
        train = {"train": sum(counts)} if counts else {}
        self._report(
            trainer,
            best | {"samples": train | best["samples"], "epochs": trainer.current_epoch},
            checkpoint=getattr(chosen, "best_model_path", "") or None,
        )
        logger = trainer.logger
        if trainer.is_global_zero and isinstance(logger, TensorBoardLogger) and monitor in best["metrics"]:
            logger.log_hyperparams(self.hyper_parameters, {f"best/{monitor}": best["metrics"][monitor]})
            logger.save()

    def _result(self, trainer: Trainer, prefix: str) -> dict[str, Any]:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        known = {k: v for k, v in metrics.items() if not math.isnan(v)}  # NaN: of inputs that no sample has
        return {"metrics": known, "per_class": self.per_class, "samples": self.samples}

    def _report(self, trainer: Trainer, result: dict[str, Any], checkpoint: str | None = None) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        seed = os.environ.get("PL_GLOBAL_SEED")
        written = {
            "subcommand": trainer.state.fn.value if trainer.state.fn else None,
            **result,
            "seed": int(seed) if seed is not None else None,
            "checkpoint": checkpoint or trainer.ckpt_path,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": _device(trainer),
            "seconds": round(time.monotonic() - self.started, 2),
        }
        path = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "metrics.json"
            with atomic_write(path) as file:
                file.write(json.dumps(written, indent=2, default=str) + "\n")
        _print(written, path)


def accuracy_by_inputs(metrics: Mapping[str, float], stage: str, names: list[str]) -> dict[str, float]:
    """Return the measured accuracy of each choice of inputs, joined by ``+``, all of them included."""
    prefix = f"{stage}/accuracy/"
    found = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    return found | {"+".join(names): metrics[f"{stage}/accuracy"]}


def _sound(best: Any) -> dict[str, Any]:
    """Return the best validation that a checkpoint carries, or none where it is not what ``_result`` makes."""
    try:
        return {
            "metrics": {
                str(name): float(number(value, name, infinite=True)) for name, value in best["metrics"].items()
            },
            "per_class": {
                str(name): {str(key): number(value, key) for key, value in row.items()}
                for name, row in best["per_class"].items()
            },
            "samples": {str(name): number(count, name) for name, count in best["samples"].items()},
            "epoch": number(best["epoch"], "epoch"),
        }
    except (AttributeError, KeyError, TypeError, Unfit):
        return {}


def _draw_missing(trainer: Trainer, module: LightningModule, stage: str, metrics: dict[str, float]) -> None:
    names, logger = list(module.encoders), trainer.logger  # type: ignore[arg-type]
    if not (trainer.is_global_zero and isinstance(logger, TensorBoardLogger)):
        return
    picture = missing_picture(accuracy_by_inputs(metrics, stage, names), names, stage)
    if picture is not None:
        logger.experiment.add_figure(f"{stage}/missing", picture, trainer.global_step)


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _print(result: dict[str, Any], path: Path | None) -> None:
    samples = ", ".join(f"{count} {split}" for split, count in result["samples"].items())
    console = Console()
    console.print(f"{result['subcommand']}: {samples} samples, {result['seconds']:.0f} s", highlight=False)
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result["metrics"].items():
        table.add_row(Text(printable(name)), f"{value:.4f}")
    if len(result["per_class"]) <= MOST_CLASSES_DRAWN:
        table.add_section()
        for name, row in result["per_class"].items():
            table.add_row(
                Text(printable(f"F1 of {name} (n = {row['samples']})")), f"{row['f1']:.4f}"
            )  # a name is no markup
    console.print(table)
    # A path keeps in one piece, to be copied, and is no markup.
    for name, file in (("results", path), ("checkpoint", result["checkpoint"])):
        if file:
            console.print(Text(f"{name}: {printable(str(file))}"), soft_wrap=True)
