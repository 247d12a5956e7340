"""One run of a comparison: trained and tested as the command does it, then measured once more for the report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from fusion_pl import __version__
from fusion_pl.analysis.plan import Trial
from fusion_pl.analysis.result import Result
from fusion_pl.cli import FusionCLI, train
from fusion_pl.errors import sentence
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import build_model, read_checkpoint
from fusion_pl.types import Batch

RESULT, LOG = "result.json", "log.txt"
REPEATS = 5


def run_trial(trial: Trial, folder: Path, extra: Sequence[str]) -> Result:
    """Train, test, measure; write ``result.json`` beside the run's configuration, log and checkpoints.

    Args:
        trial: what to run.
        folder: of this trial.
        extra: further arguments of ``fusion-pl fit``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logger = {"save_dir": str(folder), "name": "", "default_hp_metric": False}
    config = trial.config | {"trainer": dict(trial.config.get("trainer") or {})}
    config["trainer"]["logger"] = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": logger}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    arguments = ["--config", str(folder / "config.yaml"), *extra]
    common: dict[str, Any] = {
        "fusion": trial.fusion.rpartition(".")[2],
        "class_path": trial.fusion,
        "inputs": trial.inputs,
        "seed": trial.seed,
        "version": __version__,
        "config": trial.key,
        "command": shlex.join(["fusion-pl", "fit", *arguments]),
    }
    _forget_peak()
    with _logged(folder / LOG):
        try:
            found = _measured([*arguments, "--trainer.enable_progress_bar", "false"])
            result = Result(**common, status="done", **found)
        except (Exception, SystemExit) as error:  # one failing head must not stop the others; its row says why
            result = Result(**common, status="failed", reason=sentence(error) or f"{type(error).__name__}: {error}")
            if sentence(error) is None:
                _print_traceback()
    partial = folder / f"{RESULT}.partial"
    partial.write_text(json.dumps(result.to_dict(), indent=1), encoding="utf-8")
    partial.replace(folder / RESULT)
    return result


def _measured(arguments: list[str]) -> dict[str, Any]:
    cli = train("fit", arguments)
    log_dir = Path(str(cli.trainer.log_dir))
    fitted = json.loads((log_dir / "metrics.json").read_text(encoding="utf-8"))
    cli.trainer.test(
        cli.model, datamodule=cli.datamodule, ckpt_path=fitted["checkpoint"], weights_only=True, verbose=False
    )
    tested = json.loads((log_dir / "metrics.json").read_text(encoding="utf-8"))
    (log_dir / "metrics.json").write_text(json.dumps(fitted, indent=2) + "\n", encoding="utf-8")
    model = build_model(read_checkpoint(fitted["checkpoint"]), fitted["checkpoint"], trust=[_package(cli)])
    model = model.to(cli.trainer.strategy.root_device).eval()
    right, subsets = accuracy_by_inputs(model, _batches(cli))
    ids = "\n".join(name for batch in _batches(cli) for name in batch.ids)
    return {
        "validation": fitted["metrics"]["val/accuracy"],
        "test": tested["metrics"],
        "correct": right,
        "tested": hashlib.sha256(ids.encode()).hexdigest()[:12],
        "subsets": subsets,
        "seconds": fitted["seconds"],
        "parameters": sum(p.numel() for p in cli.model.parameters() if p.requires_grad),
        "head_parameters": sum(p.numel() for p in model.fusion.parameters()),
        "memory_mb": _peak(),
        **_costs(model, next(_batches(cli))),
    }


def _package(cli: FusionCLI) -> str:
    return type(cli.model.fusion).__module__.partition(".")[0]  # the user named it in this very command


def _batches(cli: FusionCLI) -> Iterator[Batch]:
    cli.datamodule.setup("test")
    for batch in cli.datamodule.test_dataloader():
        yield cli.trainer.strategy.batch_to_device(batch)


@torch.inference_mode()
def accuracy_by_inputs(model: FusionClassifier, batches: Iterator[Batch]) -> tuple[str, dict[str, float]]:
    """Test every subset of the inputs, each sample with what it has of it; one pass through the encoders.

    Returns:
        For all inputs "1" or "0" a sample, right or wrong; and subset -> accuracy over the samples that have any of it.
    """
    names = list(model.encoders)
    subsets = [one for size in range(1, len(names) + 1) for one in combinations(names, size)]
    right: dict[tuple[str, ...], int] = dict.fromkeys(subsets, 0)
    seen = dict.fromkeys(subsets, 0)
    marks = ""
    for batch in batches:
        encoded = model.encode(batch)
        for one in subsets:
            has = torch.stack([batch.present[name] for name in one]).any(0)
            hit = (model.fuse(encoded, only=one).logits.argmax(-1) == batch.target) & has
            right[one] += int(hit.sum())
            seen[one] += int(has.sum())
        marks += "".join("01"[int(mark)] for mark in hit.tolist())  # the last subset is all inputs
    return marks, {"+".join(one): right[one] / seen[one] for one in subsets if seen[one]}


@torch.inference_mode()
def _costs(model: FusionClassifier, batch: Batch) -> dict[str, Any]:
    with FlopCounterMode(display=False) as counter:
        model(batch)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        model(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    size = len(batch.ids)
    return {
        "flops": counter.get_total_flops() // size,
        "latency_ms": 1000 * statistics.median(seconds),
        "batch_size": size,
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


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _forget_peak() -> None:
    """Begin to look for the highest memory anew, where the system can: one process runs many trials."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return None
