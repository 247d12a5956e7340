"""Forward and backward pass of every head, compared with the time of its matrix products alone.

B = 256 samples of three inputs, 768 channels, 197 + 128 + 249 tokens, ten classes, bf16 autocast, on a GPU, eager and
compiled. ``--tiny`` is a smoke test on a CPU with small inputs.

    python -m benchmarks.heads [--heads Concat CrossAttention] [--modes eager compiled] [--tiny]

The bound is the floating-point operations of both passes (by torch's counter, which covers matrix products and
attention) divided by the rate of one large bf16 matrix product. Elementwise heads are limited by memory bandwidth and
stay far above it.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import fusion_pl.fusion
from fusion_pl.analysis.costs import count_flops, median_milliseconds
from fusion_pl.fusion import Fusion
from fusion_pl.types import Encoded

HEADS = [name for name in fusion_pl.fusion.__all__ if name != "Fusion"]
NUM_CLASSES = 10


class Shape(NamedTuple):
    """Shape of the inputs: samples, channels, and tokens per input."""

    batch_size: int
    dim: int
    tokens: dict[str, int]


LARGE = Shape(256, 768, {"image": 197, "text": 128, "audio": 249})
SMALL = Shape(4, 32, {"image": 9, "text": 5, "audio": 7})


def random_inputs(shape: Shape, device: torch.device) -> dict[str, Encoded]:
    """Return random inputs: texts and sounds of different lengths, and every eighth sample without an image."""
    torch.manual_seed(0)
    inputs = {}
    for name, count in shape.tokens.items():
        lengths = torch.randint(count // 2, count + 1, (shape.batch_size,), device=device)
        if name == "image":
            lengths = torch.where(torch.arange(shape.batch_size, device=device) % 8 == 7, 0, count)
        mask = torch.arange(count, device=device) < lengths[:, None]
        tokens = torch.randn(shape.batch_size, count, shape.dim, device=device) * mask.unsqueeze(-1)
        embedding = tokens.sum(1) / lengths.clamp(min=1)[:, None]
        inputs[name] = Encoded(tokens.requires_grad_(), mask, embedding.detach().requires_grad_())
    return inputs


def matmul_rate(device: torch.device, side: int) -> float:
    """Return the operations per millisecond of one large bf16 matrix product."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_milliseconds(lambda: left @ right)


def measure(name: str, mode: str, shape: Shape, rate: float, device: torch.device) -> list[str]:
    """Return a table row: ms, peak memory in MB, the bound in ms, and the ratio of the time to the bound."""
    inputs = random_inputs(shape, device)
    head: Fusion = getattr(fusion_pl.fusion, name)(dict.fromkeys(shape.tokens, shape.dim), NUM_CLASSES).to(device)
    torch.compiler.reset()
    run = torch.compile(head) if mode == "compiled" else head

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = run(inputs).logits
        logits.float().logsumexp(-1).sum().backward()

    if mode == "eager":
        BOUNDS[name] = count_flops(step) / rate
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    time = median_milliseconds(step)
    memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if device.type == "cuda" else ""
    bound = BOUNDS.get(name)
    return [name, mode, f"{time:.2f}", memory, *([f"{bound:.3f}", f"{time / bound:.1f}"] if bound else ["", ""])]


BOUNDS: dict[str, float] = {}  # ms by head, counted in eager mode: a compiled head hides its operations


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--tiny", action="store_true", help="smoke test with small inputs on the CPU")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("skipped: there is no CUDA GPU (--tiny runs a smoke test on a CPU)")
    device = torch.device("cpu" if args.tiny else "cuda")
    rate = matmul_rate(device, 256 if args.tiny else 8192)
    table = Table("head", "mode", "ms", "peak MB", "bound ms", "ratio to bound")
    console = Console(width=100)
    for name in args.heads:
        for mode in args.modes:
            try:
                row = measure(name, mode, SMALL if args.tiny else LARGE, rate, device)
            except RuntimeError as error:  # out of memory, or not supported by the compiler
                row = [name, mode, str(error).splitlines()[0][:60]]
            table.add_row(*row)
            console.print(" ".join(row), highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
