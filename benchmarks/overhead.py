"""Training by ``fusion-pl fit`` and by a plain PyTorch loop: same model, same prepared batches, same steps.

``fit`` runs with its defaults: progress bar, TensorBoard, checkpoints, learning rate and throughput monitors. Batches
are prepared in advance, so that loading does not hide the overhead. Both use the same optimizer, schedule and memory
allocator settings; start-up and validation are not counted.

    python -m benchmarks.overhead [--rounds 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.measure import StepTimer, fit, print_table, ratio_row, run_alternating, send, trainer_yaml
from fusion_pl.data.base import FusionData
from fusion_pl.types import Batch

CLASSES = [str(digit) for digit in range(10)]
EPOCHS = 2
# case -> (encoders, batch size, steps per epoch, target ratio)
CASES = {
    "tiny, batch 64": ({"text": {}, "image": {}, "audio": {}}, 64, 40, 0.85),
    "tiny, batch 32": ({"text": {}, "image": {}, "audio": {}}, 32, 60, 0.85),
    "10 million parameters, batch 32": (
        {"text": {"dim": 512, "num_layers": 3}, "image": {"dim": 256}, "audio": {"dim": 512}}, 32, 20, 0.95),
}  # fmt: skip


class RandomBatches(FusionData):
    """The same four random batches, repeated.

    Args:
        size: samples per batch.
        steps: batches per epoch.
    """

    def __init__(self, size: int, steps: int) -> None:
        super().__init__(batch_size=size)
        self.steps = steps

    @property
    def classes(self) -> list[str]:
        return CLASSES

    @property
    def class_counts(self) -> list[int]:
        return [self.batch_size * self.steps // len(CLASSES)] * len(CLASSES)

    def samples(self, split):
        """Not supported: there are only batches."""
        raise NotImplementedError(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        batches = [random_batch(self.batch_size, seed) for seed in range(4)]
        return DataLoader(dataset=[batches[step % len(batches)] for step in range(self.steps)], batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(dataset=[random_batch(self.batch_size, seed) for seed in (4, 5)], batch_size=None)


def random_batch(size: int, seed: int) -> Batch:
    """Return a batch with the shapes of Keypad: 16 bytes, 32 × 32 pixels, one second of audio."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.ones(size, dtype=torch.bool)
    inputs = {
        "text": {"ids": torch.randint(256, (size, 16), generator=generator), "mask": present[:, None].expand(size, 16)},
        "image": {"pixels": torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)},
        "audio": {"samples": torch.randn(size, 8000, generator=generator), "lengths": torch.full((size,), 8000)},
    }
    target = torch.randint(len(CLASSES), (size,), generator=generator)
    ids = [str(row) for row in range(size)]
    return Batch(inputs, dict.fromkeys(inputs, present), target, ids, [()] * size)


def plain(case: str) -> dict[str, float]:
    """Train the model in a plain PyTorch loop."""
    from fusion_pl import encoders
    from fusion_pl.fusion import Concat
    from fusion_pl.module import FusionClassifier
    from fusion_pl.training.hardware import reuse_freed_memory
    from fusion_pl.training.optimisation import WarmupCosine, parameter_groups

    reuse_freed_memory()
    options, size, steps, _ = CASES[case]
    torch.manual_seed(0)
    modules = {name: getattr(encoders, f"Tiny{name.title()}")(**init) for name, init in options.items()}
    model = FusionClassifier(modules, Concat, CLASSES).train()
    loader = RandomBatches(size, steps).train_dataloader()
    optimizer = torch.optim.AdamW(parameter_groups([], model, 1.0), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = WarmupCosine(optimizer, total_steps=EPOCHS * steps)
    timer = StepTimer()
    for _ in range(EPOCHS):
        timer.start_epoch()
        for batch in loader:
            loss = cross_entropy(model(batch).logits, batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            timer.step(size)
    return timer.measurements() | {"million parameters": sum(p.numel() for p in model.parameters()) / 1e6}


def fusion_pl_fit(case: str) -> dict[str, float]:
    """Train the same model with ``fusion-pl fit``."""
    options, size, steps, _ = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(_config(options, size, steps, folder), encoding="utf-8")
        return fit(["--config", str(config)])


def _config(options: dict[str, dict[str, int]], size: int, steps: int, folder: str) -> str:
    encoders = "".join(
        f"    {name}: {{class_path: fusion_pl.encoders.Tiny{name.title()}, init_args: {init}}}\n"
        for name, init in options.items()
    )
    return f"""
model:
  encoders:
{encoders}
  fusion: {{class_path: fusion_pl.fusion.Concat}}
data: {{class_path: benchmarks.overhead.RandomBatches, init_args: {{size: {size}, steps: {steps}}}}}
{trainer_yaml(folder, EPOCHS)}"""


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["plain", "fit"], help="one run in this process (internal)")
    parser.add_argument("--case", choices=list(CASES), help="only this case")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        send((plain if args.only == "plain" else fusion_pl_fit)(args.case))
        return
    rows = []
    for case in [args.case] if args.case else CASES:
        print(case, flush=True)
        command = ["-m", "benchmarks.overhead", "--case", case, "--threads", str(args.threads), "--only"]
        results = run_alternating({"plain": [*command, "plain"], "fit": [*command, "fit"]}, args.rounds)
        rows.append(ratio_row(case, results["fit"], results["plain"], CASES[case][3]))
    header = ["case", "plain loop, samples/s", "fit, samples/s", "ratio (range)", "target", "met"]
    print_table("overhead", header, rows)


if __name__ == "__main__":
    main()
