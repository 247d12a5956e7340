"""What a trained head costs: operations, milliseconds, memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fusion_pl.module import FusionClassifier
from fusion_pl.types import Batch

REPEATS = 5


def costs_of(model: FusionClassifier, batch: Batch) -> dict[str, Any]:
    """Measure what a forward and a step of a batch cost: the fields ``flops`` to ``memory_mb`` of a ``Result``.

    Args:
        model: on the device of the batch.
        batch: with its targets.
    """

    def loss() -> Tensor:
        return model.compute_loss(batch)[0]

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
        "memory_mb": (held(model, loss) if highest is None else highest) / 2**20,
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


def held(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that are alive between forward and backward: weights, gradients, what the backward pass needs.

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
