"""One run of a comparison: trained and tested as the command does it, then measured once more for the report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from fusion_pl import __version__
from fusion_pl.analysis.costs import costs_of
from fusion_pl.analysis.folder import RESULT, folder_of
from fusion_pl.analysis.plan import Trial
from fusion_pl.analysis.result import Result
from fusion_pl.analysis.samples import SeenSamples
from fusion_pl.cli.errors import user_message
from fusion_pl.cli.run import train
from fusion_pl.cli.runs import LOGGER
from fusion_pl.training.results import WriteResults
from fusion_pl.training.stage_metrics import accuracy_by_inputs, fewer
from fusion_pl.training.tensorboard import TensorBoardFigures

LOG = "log.txt"
CACHE = "cache"  # folder of what frozen encoders return
CACHE_LIMIT = 20.0  # GiB; --cache_limit of the user counts more


def run_trial(trial: Trial, output: Path, extra: Sequence[str]) -> Result:
    """Train, test, measure; write ``result.json`` beside the run's configuration, log and checkpoints.

    Args:
        trial: what to run.
        output: folder of the comparison.
        extra: further arguments of ``fusion-pl fit``.
    """
    folder = folder_of(output, trial)
    folder.mkdir(parents=True, exist_ok=True)
    logger = LOGGER | {"init_args": LOGGER["init_args"] | {"save_dir": str(folder)}}
    config = _cache(output, trial.config, extra) | trial.config
    config["trainer"] = (trial.config.get("trainer") or {}) | {"logger": logger}
    if config.get("checkpoint"):  # in a folder that all runs shared each would replace those of the one before
        config["checkpoint"] = config["checkpoint"] | {"dirpath": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    arguments = ["--config", str(folder / "config.yaml"), *extra]
    common = outline(trial) | {"command": shlex.join(["fusion-pl", "fit", *arguments])}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # one process runs many trials
    with _logged(folder / LOG):
        try:
            found = _measured([*arguments, "--trainer.enable_progress_bar", "false"])
            result = Result(**common, status="done", **found)
        except (Exception, SystemExit) as error:  # one failing head must not stop the others; its row says why
            result = Result(**common, status="failed", reason=user_message(error) or f"{type(error).__name__}: {error}")
            if user_message(error) is None:
                traceback.print_exc()
    result.write(folder / RESULT)
    return result


def _cache(output: Path, config: Mapping[str, Any], extra: Sequence[str]) -> dict[str, Any]:
    """Keep what frozen encoders return, for all heads, unless the user keeps it elsewhere, or not at all."""
    if "cache" in config or any(word.partition("=")[0] == "--cache" for word in extra):
        return {}
    return {"cache": str(output / CACHE), "cache_limit": CACHE_LIMIT}


def outline(trial: Trial) -> dict[str, Any]:
    """Return the fields of a ``Result`` that are known before the run."""
    return {
        "fusion": trial.fusion.rpartition(".")[2],
        "class_path": trial.fusion,
        "inputs": trial.inputs,
        "seed": trial.seed,
        "version": __version__,
        "config": trial.key,
    }


def _measured(arguments: list[str]) -> dict[str, Any]:
    seen = SeenSamples()
    cli = train("fit", arguments, [seen])
    trainer, model = cli.trainer, cli.model
    fitted = json.loads((Path(str(trainer.log_dir)) / "metrics.json").read_text(encoding="utf-8"))
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    # the results of fit stay
    callbacks[:] = [one for one in callbacks if not isinstance(one, (WriteResults, TensorBoardFigures))]
    (tested,) = trainer.test(
        model, datamodule=cli.datamodule, ckpt_path=fitted["checkpoint"], weights_only=True, verbose=False
    )
    names = list(model.encoders)
    subsets = accuracy_by_inputs(tested, "test", names)
    assert seen.first is not None
    batch = apply_to_collection(seen.first, Tensor, Tensor.clone)  # the test's cannot take part in a backward
    return {
        "validation": fitted["metrics"]["val/accuracy"],
        "validation_samples": len(seen.validated.ids),
        "validated": seen.validated.hash,
        "test": {key: value for key, value in tested.items() if not key.startswith("test/accuracy/")},
        "correct": "".join(seen.correct),
        "ids": tuple(seen.tested.ids),
        "tested": seen.tested.hash,
        "subsets": {key: value for key, value in subsets.items() if not math.isnan(value)},
        "subset_samples": {"+".join(some): seen.tested.having(some) for some in [*fewer(names), names]},
        "seconds": fitted["seconds"],
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "head_parameters": sum(p.numel() for p in model.fusion.parameters()),
        **costs_of(model.to(trainer.strategy.root_device), trainer.strategy.batch_to_device(batch)),
    }


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send everything that is printed, by other libraries and workers too, to a file."""
    with path.open("w", encoding="utf-8") as file:
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            for descriptor, number in zip(kept, (1, 2), strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
