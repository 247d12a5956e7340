"""Write the metrics of a run to ``metrics.json``."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from fusion_pl.files import atomic_write
from fusion_pl.plain_data import replace_non_finite
from fusion_pl.training.best import BestCheckpoint, find_checkpoint_callback
from fusion_pl.training.calibrate import FitCalibration
from fusion_pl.training.calibration_report import describe_bins, describe_calibration, read_bins
from fusion_pl.training.console import print_results
from fusion_pl.training.decision_report import describe_decisions
from fusion_pl.training.figures import plot_reliability
from fusion_pl.training.loggers import chart_name
from fusion_pl.training.run_files import run_folder
from fusion_pl.training.stage_metrics import evaluation_stage, metrics_of_stage
from fusion_pl.training.states import InvalidStateError, check_number

PACKAGES = ("fusion-pl", "lightning", "torch", "torchmetrics", "torchvision", "torchaudio", "transformers")


class WriteResults(Callback):
    """Write and print the results of ``fit``, ``validate`` and ``test``.

    The results of ``fit`` are the metrics of the best checkpoint, or of the last validation if there is none.
    """

    def __init__(self) -> None:
        self.best: dict[str, Any] = {}
        self.latest: dict[str, Any] = {}
        self.best_step: int | None = None  # global step of the best checkpoint
        self.latest_step: int | None = None  # global step of the latest validation

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation result, so that a resumed run reports the best result of all epochs."""
        return {"best": self.best, "step": self.best_step, "validated": self.latest_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best validation result of the resumed run."""
        self.best = _validate_result(state_dict.get("best"))
        step, validated = state_dict.get("step"), state_dict.get("validated")
        self.best_step = step if isinstance(step, int) else None
        self.latest_step = validated if isinstance(validated, int) else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the timer."""
        self.start_time = time.monotonic()

    def _reset_outcomes(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics_of_stage(trainer, pl_module).reset_outcomes()

    on_validation_start = on_test_start = _reset_outcomes

    def _compute_outcomes(self, trainer: Trainer, pl_module: Any) -> None:
        metrics = metrics_of_stage(trainer, pl_module)
        self.outcomes = metrics.outcomes.compute().cpu()  # on every process, because it synchronizes
        self.samples = {evaluation_stage(trainer): int(metrics.samples.compute())}
        self.calibration = metrics.calibration.compute()
        self.reliability = metrics.calibration.bins("+".join(pl_module.encoders))
        self.decisions: dict[str, Any] = {}
        if trainer.testing and pl_module.outputs.update_called:
            self.decisions = describe_decisions(pl_module, pl_module.outputs.gather())

    on_validation_epoch_end = on_test_epoch_end = _compute_outcomes

    def _add_result(self, trainer: Trainer, pl_module: Any) -> None:
        """Store the validation result and the step in ``fit``; write the result in ``validate`` and ``test``."""
        if trainer.sanity_checking:
            return
        prefix = f"{evaluation_stage(trainer)}/"
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        defined = {name: value for name, value in metrics.items() if not math.isnan(value)}  # NaN = no samples
        per_class = pl_module.task.per_class(self.outcomes, pl_module.classes)
        result = {"metrics": defined, "per_class": per_class, "samples": self.samples}
        inputs = "+".join(pl_module.encoders)
        result["calibration"] = describe_calibration(pl_module.calibration, self.calibration, inputs)
        if trainer.state.fn == "fit":
            self.reliability = next(c.reliability for c in trainer.callbacks if isinstance(c, FitCalibration))  # type: ignore[attr-defined]
        result["calibration"]["reliability"] = describe_bins(self.reliability)
        by_inputs = result["calibration"].get("by_inputs", {})
        result["samples_by_metric"] = {
            f"{prefix}{pl_module.task.score}/{name}": scores["before"]["samples"] for name, scores in by_inputs.items()
        }
        if trainer.state.fn != "fit":
            self._write(trainer, result | self.decisions)
            return
        self.latest = result | {"epoch": trainer.current_epoch}
        self.latest_step = trainer.global_step

    on_validation_end = on_test_end = _add_result

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the best validation result in the checkpoint; for the best checkpoint, it is the latest result."""
        self._update_best_result(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation result of the best checkpoint."""
        callback = self._update_best_result(trainer)
        if not self.best:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        train = {"train": len(data.samples("train"))} if getattr(data, "class_counts", None) else {}
        result = self.best | {"samples": train | self.best["samples"], "epochs": trainer.current_epoch}
        self._write(trainer, result, callback.best_model_path if callback else None)

    def _update_best_result(self, trainer: Trainer) -> BestCheckpoint | None:
        """Set the best result to the latest result if a new best checkpoint was written, and return the callback."""
        callback = find_checkpoint_callback(trainer)
        step = self.latest_step if callback is None or callback.best_step is None else callback.best_step
        if self.latest and (not self.best or step != self.best_step):
            self.best, self.best_step = self.latest, step
        return callback

    def _write(self, trainer: Trainer, result: dict[str, Any], checkpoint: str | None = None) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        seed, device = os.environ.get("PL_GLOBAL_SEED"), trainer.strategy.root_device
        content = {
            "command": trainer.state.fn.value if trainer.state.fn else None,
            **result,
            "seed": int(seed) if seed is not None else None,
            "checkpoint": checkpoint or trainer.ckpt_path,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "seconds": round(time.monotonic() - self.start_time, 2),
        }
        path = folder / "metrics.json" if folder else None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(replace_non_finite(content), indent=2, default=str) + "\n")
            step = self.best_step if trainer.state.fn == "fit" else trainer.global_step
            _plot_calibration(trainer, result, path.with_name("calibration.png"), step)
        print_results(content, path)


def _plot_calibration(trainer: Trainer, result: dict[str, Any], path: Path, step: int | None) -> None:
    """Draw the reliability of a result once, for a file and for TensorBoard; nothing without samples."""
    stage = "test" if trainer.state.fn == "test" else "val"
    figure = plot_reliability(read_bins(result["calibration"].get("reliability", {})), stage)
    if figure is None:
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).save(path)
    if isinstance(trainer.logger, TensorBoardLogger):
        trainer.logger.experiment.add_image(chart_name(f"{stage}/calibration"), pixels, step, dataformats="HWC")


def _validate_result(result: Any) -> dict[str, Any]:
    """Return a result from a checkpoint if it has the expected structure, otherwise an empty dictionary."""
    try:
        read_bins(result.get("calibration", {}).get("reliability", {}))
        return {
            "metrics": {
                str(name): float(check_number(value, name, allow_infinite=True))
                for name, value in result["metrics"].items()
            },
            "per_class": {
                str(name): {str(key): check_number(value, key) for key, value in row.items()}
                for name, row in result["per_class"].items()
            },
            "samples": {str(name): check_number(count, name) for name, count in result["samples"].items()},
            "epoch": check_number(result["epoch"], "epoch"),
            "calibration": dict(result.get("calibration", {"method": "none"})),
        }
    except (AttributeError, KeyError, TypeError, ValueError, InvalidStateError):
        return {}
