"""Compute cost of a trained model: operations, milliseconds, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fusion_pl.module import FusionClassifier
from fusion_pl.types import Batch

MIN_SECONDS = 0.3  # per timed function


def measure_costs(model: FusionClassifier, batch: Batch) -> dict[str, Any]:
    """Measure the forward pass and the training step of a batch: the fields ``flops`` to ``memory_mb`` of a result.

    The model and the batch, which has targets, are on the same device.
    """

    def loss() -> Tensor:
        return model.compute_loss(batch)[0]

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]

    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    model.cache = None  # the work of the encoders is measured, too
    model.eval()
    flops = count_flops(lambda: model(batch))
    with torch.inference_mode():
        latency = milliseconds(lambda: model(batch))
    model.train()
    return {
        "flops": flops // len(batch.ids),
        "latency_ms": latency,
        "step_ms": milliseconds(step),
        "memory_mb": (training_memory(model, loss) if peak is None else peak) / 2**20,
        "batch_size": len(batch.ids),
    }


def count_flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call, with gradients on: without them, the counter fails on views."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        call()
    return int(counter.get_total_flops())


def _lstm_flops(inputs: Sequence[int], *weights: Sequence[int]) -> int:
    """Return the operations of an LSTM's matrix products for a batch of sequences, from the shapes."""
    return 2 * inputs[0] * inputs[1] * sum(math.prod(shape) for shape in weights if len(shape) == 2)


KERNELS: dict[Any, Callable[..., int]] = {  # fused kernels that torch's counter lacks -> operations by argument shapes
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),  # type: ignore[no-untyped-call]
    torch.ops.aten.mkldnn_rnn_layer: lambda *shapes, **_: _lstm_flops(shapes[0], *shapes[1:3]),
    torch.ops.aten._cudnn_rnn: lambda *shapes, **_: _lstm_flops(shapes[0], *shapes[1]),
}


def training_memory(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes that are alive between forward and backward: weights, gradients, saved activations.

    The peak memory of the process would include earlier runs, because memory is not returned.
    """
    storages: dict[int, int] = {}
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a graph that holds its own results is never freed

    for tensor in [*model.parameters(), *model.buffers()]:
        record(tensor)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = forward()
    del loss  # all recorded tensors are alive until here, so that no address is used twice
    return sum(storages.values()) + gradients


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, after a warm-up."""
    from torch.utils.benchmark import Timer  # prints a warning where CUDA is installed without a GPU

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=MIN_SECONDS).median
