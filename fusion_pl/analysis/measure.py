"""Train and test a model like ``fusion-pl fit`` and ``test``, and measure its accuracies and costs for the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from fusion_pl.analysis.costs import measure_costs
from fusion_pl.analysis.recorder import SampleRecorder
from fusion_pl.cli.run import run_trainer
from fusion_pl.data.collate import Collate
from fusion_pl.training.results import WriteResults
from fusion_pl.training.stage_metrics import proper_subsets, scores_by_inputs
from fusion_pl.training.tensorboard import TensorBoardFigures
from fusion_pl.types import Encoded


def train_and_test(arguments: list[str]) -> dict[str, Any]:
    """Run ``fusion-pl fit`` with ``arguments``, test the model, and return the measured fields of a ``RunResult``."""
    recorder = SampleRecorder()
    cli = run_trainer("fit", arguments, [recorder])
    trainer, model, task = cli.trainer, cli.model, cli.model.task
    report = json.loads((Path(str(trainer.log_dir)) / "metrics.json").read_text(encoding="utf-8"))
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    # The test must not overwrite the result files and figures of the training.
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, (WriteResults, TensorBoardFigures))]
    (metrics,) = trainer.test(
        model, datamodule=cli.datamodule, ckpt_path=report["checkpoint"], weights_only=True, verbose=False
    )
    names = list(model.encoders)
    subsets = scores_by_inputs(metrics, f"test/{task.score}", names)
    assert recorder.first_batch is not None
    batch = recorder.first_batch
    if any(isinstance(value, Encoded) for value in batch.inputs.values()):  # the encoders are to be measured, too
        samples: Any = cli.datamodule.samples("test")
        batch = Collate(cli.datamodule.processors)([samples[index] for index in range(len(batch.ids))])
    batch = apply_to_collection(batch, Tensor, Tensor.clone)  # autograd cannot use inference tensors
    return {
        "score": task.score,
        "metric": task.monitor,
        "mode": task.mode,
        "validation_score": report["metrics"][f"val/{task.score}"],
        "validation_metric": report["metrics"][f"val/{task.monitor}"],
        "validation_samples": len(recorder.validation.ids),
        "validation_hash": recorder.validation.samples_hash,
        "test": {name: value for name, value in metrics.items() if not name.startswith(f"test/{task.score}/")},
        "correct": "".join(recorder.correct),
        "ids": tuple(recorder.test.ids),
        "test_hash": recorder.test.samples_hash,
        "subsets": {subset: value for subset, value in subsets.items() if not math.isnan(value)},
        "subset_samples": {
            "+".join(subset): recorder.test.count_samples_with_any(subset) for subset in [*proper_subsets(names), names]
        },
        "seconds": report["seconds"],
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "head_parameters": sum(p.numel() for p in model.fusion.parameters()),
        **measure_costs(model.to(trainer.strategy.root_device), trainer.strategy.batch_to_device(batch)),
    }
