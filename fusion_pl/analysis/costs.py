"""Measure the costs of a trained model: floating-point operations, latency and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fusion_pl.module import FusionClassifier
from fusion_pl.training.loss import total_loss
from fusion_pl.types import Batch

MIN_TIMING_SECONDS = 0.3  # minimum duration of each timing


def measure_costs(model: FusionClassifier, batch: Batch) -> dict[str, Any]:
    """Measure a forward pass and a training step, and return the fields ``flops`` to ``memory_mb`` of a ``RunResult``.

    Args:
        model: the trained model.
        batch: batch with targets, on the same device as the model.
    """

    def loss() -> Tensor:
        return total_loss(model.compute_losses(batch)[0])

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]

    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    model.eval()
    flops = count_flops(lambda: model(batch))
    with torch.inference_mode():
        latency = median_milliseconds(lambda: model(batch))
    model.train()
    return {
        "flops": flops // len(batch.ids),
        "latency_ms": latency,
        "step_ms": median_milliseconds(step),
        "memory_mb": (training_memory_bytes(model, loss) if peak is None else peak) / 2**20,
        "batch_size": len(batch.ids),
    }


def count_flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of a call; gradients must be enabled, or the counter fails on views."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        call()
    return int(counter.get_total_flops())


def _lstm_flops(input_shape: Sequence[int], *weight_shapes: Sequence[int]) -> int:
    """Return the floating-point operations of an LSTM's matrix products for a batch of sequences."""
    return 2 * input_shape[0] * input_shape[1] * sum(math.prod(shape) for shape in weight_shapes if len(shape) == 2)


FLOP_FORMULAS: dict[Any, Callable[..., int]] = {  # kernels that FlopCounterMode lacks -> operations by shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),  # type: ignore[no-untyped-call]
    torch.ops.aten.mkldnn_rnn_layer: lambda *shapes, **_: _lstm_flops(shapes[0], *shapes[1:3]),
    torch.ops.aten._cudnn_rnn: lambda *shapes, **_: _lstm_flops(shapes[0], *shapes[1]),
}


def training_memory_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes allocated between forward and backward pass: parameters, buffers, gradients, saved activations.

    The peak memory of the process is not used, because it includes earlier runs.
    """
    storages: dict[int, int] = {}
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a graph that references its own outputs is never freed

    for tensor in [*model.parameters(), *model.buffers()]:
        record(tensor)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = forward()
    del loss  # keeps all recorded tensors alive until here, so that no address is reused
    return sum(storages.values()) + gradients


def median_milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call in milliseconds, after a warm-up."""
    from torch.utils.benchmark import Timer  # its import warns if CUDA is installed without a GPU

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=MIN_TIMING_SECONDS).median
