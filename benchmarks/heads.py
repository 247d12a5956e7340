"""Every head, forward and backward, beside the time that its matrix products alone would take on the same machine.

B = 256 samples of three inputs, 768 channels, 197 + 128 + 249 tokens, ten classes, bf16 autocast, on a GPU, eager and
compiled. With ``--tiny`` everything is small and runs on a CPU, which only shows that it runs.

    python -m benchmarks.heads [--heads Concat CrossAttention] [--modes eager compiled] [--tiny]

The bound is the floating-point operations of both passes (torch's counter, which sees matrix products and attention)
over the rate of one large bf16 matrix product. Heads that are mostly elementwise stay far above it: memory limits them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import fusion_pl.fusion
from fusion_pl.fusion import Fusion
from fusion_pl.types import Encoded

HEADS = [name for name in fusion_pl.fusion.__all__ if name != "Fusion"]
CLASSES, ROUNDS = 10, 10


class Shape(NamedTuple):
    """Of the inputs: samples, channels, and the tokens of each input."""

    size: int
    dim: int
    tokens: dict[str, int]


LARGE = Shape(256, 768, {"image": 197, "text": 128, "audio": 249})
SMALL = Shape(4, 32, {"image": 9, "text": 5, "audio": 7})


def encoded(shape: Shape, device: torch.device) -> dict[str, Encoded]:
    """Draw inputs; texts and sounds of several lengths, and every eighth sample without a picture."""
    torch.manual_seed(0)
    found = {}
    for name, count in shape.tokens.items():
        lengths = torch.randint(count // 2, count + 1, (shape.size,), device=device)
        if name == "image":
            lengths = torch.where(torch.arange(shape.size, device=device) % 8 == 7, 0, count)
        mask = torch.arange(count, device=device) < lengths[:, None]
        tokens = torch.randn(shape.size, count, shape.dim, device=device) * mask.unsqueeze(-1)
        embedding = tokens.sum(1) / lengths.clamp(min=1)[:, None]
        found[name] = Encoded(tokens.requires_grad_(), mask, embedding.detach().requires_grad_())
    return found


def milliseconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median time of a call, after three to warm up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    found = []
    for _ in range(3 + rounds):
        wait()
        started = time.perf_counter()
        call()
        wait()
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found[3:])


def product_rate(device: torch.device, side: int) -> float:
    """Return the operations a millisecond of one large bf16 matrix product."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / milliseconds(lambda: left @ right)


def measured(name: str, mode: str, shape: Shape, rate: float, device: torch.device) -> list[str]:
    """Return a row of the table: ms, peak memory in MB, the bound in ms, and how many times the bound it took."""
    inputs = encoded(shape, device)
    head: Fusion = getattr(fusion_pl.fusion, name)(dict.fromkeys(shape.tokens, shape.dim), CLASSES).to(device)
    torch.compiler.reset()
    run = torch.compile(head) if mode == "compiled" else head

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = run(inputs).logits
        logits.float().logsumexp(-1).sum().backward()

    if mode == "eager":
        with FlopCounterMode(display=False) as counter:
            step()
        BOUNDS[name] = counter.get_total_flops() / rate
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = milliseconds(step)
    memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if device.type == "cuda" else ""
    bound = BOUNDS.get(name)
    return [name, mode, f"{taken:.2f}", memory, *([f"{bound:.3f}", f"{taken / bound:.1f}"] if bound else ["", ""])]


BOUNDS: dict[str, float] = {}  # by head: counted once, eagerly, since a compiled head hides its operations


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--tiny", action="store_true", help="small inputs on the CPU")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit("skipped: there is no CUDA GPU (--tiny shows on a CPU that the code runs)")
    device = torch.device("cpu" if given.tiny else "cuda")
    rate = product_rate(device, 256 if given.tiny else 8192)
    table = Table("head", "mode", "ms", "peak MB", "bound ms", "times the bound")
    console = Console(width=100)
    for name in given.heads:
        for mode in given.modes:
            try:
                row = measured(name, mode, SMALL if given.tiny else LARGE, rate, device)
            except (
                RuntimeError
            ) as error:  # out of memory, or what the compiler cannot do: a row, and on with the others
                row = [name, mode, str(error).splitlines()[0][:60]]
            table.add_row(*row)
            console.print(" ".join(row), highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
