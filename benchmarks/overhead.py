"""Training by ``fusion-pl fit`` beside a plain PyTorch loop: same model, same ready-made batches, same steps.

``fit`` runs as a user gets it: progress bar, TensorBoard, checkpoints, learning rate and throughput monitors. Batches
are made beforehand, so that no loader hides what the framework costs. Both sides use the same optimizer and schedule
and the same settings of the memory allocator; start-up and validation are not counted.

    python -m benchmarks.overhead [--rounds 3] [--threads 1]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.measure import StepClock, compare, fit, show, take_turns, tell, trainer
from fusion_pl.data.base import FusionData
from fusion_pl.types import Batch

CLASSES = [str(digit) for digit in range(10)]
EPOCHS = 2
# case -> (encoders, batch size, steps an epoch, bar)
CASES = {
    "tiny, batch 64": ({"text": {}, "image": {}, "audio": {}}, 64, 40, 0.85),
    "tiny, batch 32": ({"text": {}, "image": {}, "audio": {}}, 32, 60, 0.85),
    "10 million parameters, batch 32": (
        {"text": {"dim": 512, "num_layers": 3}, "image": {"dim": 256}, "audio": {"dim": 512}}, 32, 20, 0.95),
}  # fmt: skip


class ReadyBatches(FusionData):
    """The same few random batches, over and over.

    Args:
        size: samples of a batch.
        steps: batches of an epoch.
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
        """Return nothing: there are no samples, only batches."""
        raise NotImplementedError(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        made = [_batch(self.batch_size, seed) for seed in range(4)]
        return DataLoader(dataset=[made[step % len(made)] for step in range(self.steps)], batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(dataset=[_batch(self.batch_size, seed) for seed in (4, 5)], batch_size=None)


def _batch(size: int, seed: int) -> Batch:
    """Keypad's shapes: 16 bytes, 32 × 32 pixels, a second of sound."""
    draw = torch.Generator().manual_seed(seed)
    everyone = torch.ones(size, dtype=torch.bool)
    inputs = {
        "text": {"ids": torch.randint(256, (size, 16), generator=draw), "mask": everyone[:, None].expand(size, 16)},
        "image": {"pixels": torch.randint(256, (size, 3, 32, 32), generator=draw, dtype=torch.uint8)},
        "audio": {"samples": torch.randn(size, 8000, generator=draw), "lengths": torch.full((size,), 8000)},
    }
    target = torch.randint(len(CLASSES), (size,), generator=draw)
    ids = [str(row) for row in range(size)]
    return Batch(inputs, dict.fromkeys(inputs, everyone), target, ids, [()] * size)


def plain(case: str) -> dict[str, float]:
    """Train with nothing but PyTorch around the model."""
    from fusion_pl import encoders
    from fusion_pl.fusion import Concat
    from fusion_pl.module import FusionClassifier
    from fusion_pl.training.hardware import keep_memory
    from fusion_pl.training.optimisation import WarmupCosine, parameter_groups

    keep_memory()
    options, size, steps, _ = CASES[case]
    torch.manual_seed(0)
    built = {name: getattr(encoders, f"Tiny{name.title()}")(**given) for name, given in options.items()}
    model = FusionClassifier(built, Concat, CLASSES).train()
    loader = ReadyBatches(size, steps).train_dataloader()
    optimizer = torch.optim.AdamW(parameter_groups([], model, 1.0), lr=1e-3, weight_decay=0.01, fused=True)
    schedule = WarmupCosine(optimizer, total_steps=EPOCHS * steps)
    clock = StepClock()
    for _ in range(EPOCHS):
        clock.start()
        for batch in loader:
            loss = cross_entropy(model(batch).logits, batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            clock.step(size)
    return clock.figures() | {"million parameters": sum(p.numel() for p in model.parameters()) / 1e6}


def ours(case: str) -> dict[str, float]:
    """Train the same by the command."""
    options, size, steps, _ = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(_config(options, size, steps, folder), encoding="utf-8")
        return fit(["--config", str(config)])


def _config(options: dict[str, dict[str, int]], size: int, steps: int, folder: str) -> str:
    encoders = "".join(
        f"    {name}: {{class_path: fusion_pl.encoders.Tiny{name.title()}, init_args: {given}}}\n"
        for name, given in options.items()
    )
    return f"""
model:
  encoders:
{encoders}
  fusion: {{class_path: fusion_pl.fusion.Concat}}
data: {{class_path: benchmarks.overhead.ReadyBatches, init_args: {{size: {size}, steps: {steps}}}}}
{trainer(folder, EPOCHS)}"""


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["plain", "fit"], help="one run in this process (used by the turns)")
    parser.add_argument("--case", choices=list(CASES), help="only this case")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.only:
        tell((plain if given.only == "plain" else ours)(given.case))
        return
    rows = []
    for case in [given.case] if given.case else CASES:
        print(case, flush=True)
        command = ["-m", "benchmarks.overhead", "--case", case, "--threads", str(given.threads), "--only"]
        found = take_turns({"plain": [*command, "plain"], "fit": [*command, "fit"]}, given.rounds)
        rows.append(compare(case, found["fit"], found["plain"], CASES[case][3]))
    show("overhead", ["case", "plain loop, samples/s", "fit, samples/s", "ratio (range)", "bar", "met"], rows)


if __name__ == "__main__":
    main()
