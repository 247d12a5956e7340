"""One run of a comparison: trained and tested as the command does it, then measured once more for the report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shlex
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fusion_pl import __version__
from fusion_pl.analysis.plan import Trial
from fusion_pl.analysis.result import Result
from fusion_pl.cli import train
from fusion_pl.errors import sentence
from fusion_pl.module import FusionClassifier
from fusion_pl.runs import LOGGER
from fusion_pl.training.results import WriteResults, accuracy_by_inputs
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
    logger = LOGGER | {"init_args": LOGGER["init_args"] | {"save_dir": str(folder)}}
    # What frozen encoders return for one head all others read, unless the user keeps it elsewhere, or not at all.
    config = {"cache": str(folder.parent.parent / "cache")} | trial.config
    config["trainer"] = (trial.config.get("trainer") or {}) | {"logger": logger}
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
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # one process runs many trials
    with _logged(folder / LOG):
        try:
            found = _measured([*arguments, "--trainer.enable_progress_bar", "false"])
            result = Result(**common, status="done", **found)
        except (Exception, SystemExit) as error:  # one failing head must not stop the others; its row says why
            result = Result(**common, status="failed", reason=sentence(error) or f"{type(error).__name__}: {error}")
            if sentence(error) is None:
                traceback.print_exc()
    result.write(folder / RESULT)
    return result


def _measured(arguments: list[str]) -> dict[str, Any]:
    cli = train("fit", arguments)
    trainer, model = cli.trainer, cli.model
    fitted = json.loads((Path(str(trainer.log_dir)) / "metrics.json").read_text(encoding="utf-8"))
    seen = _Seen()
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [one for one in callbacks if not isinstance(one, WriteResults)] + [seen]  # fit's report stays
    (tested,) = trainer.test(
        model, datamodule=cli.datamodule, ckpt_path=fitted["checkpoint"], weights_only=True, verbose=False
    )
    subsets = accuracy_by_inputs(tested, "test", list(model.encoders))
    assert seen.first is not None
    batch = apply_to_collection(seen.first, Tensor, Tensor.clone)  # the test's cannot take part in a backward
    return {
        "validation": fitted["metrics"]["val/accuracy"],
        "test": {key: value for key, value in tested.items() if not key.startswith("test/accuracy/")},
        "correct": "".join(seen.correct),
        "tested": hashlib.sha256("\n".join(seen.ids).encode()).hexdigest()[:12],
        "subsets": {key: value for key, value in subsets.items() if not math.isnan(value)},
        "seconds": fitted["seconds"],
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "head_parameters": sum(p.numel() for p in model.fusion.parameters()),
        **_costs(model.to(trainer.strategy.root_device), trainer.strategy.batch_to_device(batch)),
    }


class _Seen(Callback):
    """What was tested: ids, which of them were right, and the first batch, to measure costs with."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.correct: list[str] = []
        self.first: Batch | None = None

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Batch, *index: int
    ) -> None:
        """Note a batch."""
        del trainer, pl_module, index
        assert batch.target is not None
        self.first = self.first or batch
        self.ids += batch.ids
        self.correct += ["01"[int(right)] for right in outputs.argmax(-1).eq(batch.target).tolist()]


def _costs(model: FusionClassifier, batch: Batch) -> dict[str, Any]:
    def loss() -> Tensor:
        return model.objective(batch)[0]

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]

    highest = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    model.cache = None  # it is the encoders' work, too, that is measured here
    model.eval()
    flops = count_flops(lambda: model(batch))
    with torch.inference_mode():
        latency = _milliseconds(lambda: model(batch))
    model.train()
    return {
        "flops": flops // len(batch.ids),
        "latency_ms": latency,
        "step_ms": _milliseconds(step),
        "memory_mb": (_held(model, loss) if highest is None else highest) / 2**20,
        "batch_size": len(batch.ids),
    }


def count_flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call, with gradients on: without, torch stumbles over some views."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        call()
    return int(counter.get_total_flops())


def _recurrent(read: Sequence[int], *weights: Sequence[int]) -> int:
    """Return the operations of an LSTM's matrices for a batch of sequences, from the shapes."""
    return 2 * read[0] * read[1] * sum(math.prod(one) for one in weights if len(one) == 2)


KERNELS: dict[Any, Callable[..., int]] = {  # fused ones that torch's counter does not know, by what they are given
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),  # type: ignore[no-untyped-call]
    torch.ops.aten.mkldnn_rnn_layer: lambda *shapes, **_: _recurrent(shapes[0], *shapes[1:3]),
    torch.ops.aten._cudnn_rnn: lambda *shapes, **_: _recurrent(shapes[0], *shapes[1]),
}


def _held(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return bytes that are alive between forward and backward: weights, gradients, what the backward pass needs.

    The process's own peak would tell of the runs before this one, whose memory it keeps.
    """
    storages: dict[int, int] = {}
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the graph must not hold its own results, or it is never freed

    for part in [*model.parameters(), *model.buffers()]:
        note(part)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()
    del loss  # until here everything noted was alive, so that no address came twice
    return sum(storages.values()) + gradients


def _milliseconds(call: Callable[[], object]) -> float:
    """Return the median over a few calls, after one to warm up."""
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])


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
