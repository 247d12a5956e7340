"""DistilBERT, ViT-B and Wav2Vec2-base sizes on a GPU: ``fusion-pl fit`` beside the bare loop, eager and compiled.

Untrained, ``CrossAttention``, batch 64, bf16-mixed, ready-made batches (64 tokens, 224 pixels, 2 s of 16 kHz). With
``--tiny`` the networks are a few thousand parameters and everything runs on a CPU, which only shows that it runs.

    python -m benchmarks.gpu [--rounds 3] [--tiny]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.measure import Figures, StepClock, compare, fit, show, take_turns, tell
from benchmarks.overhead import CLASSES, ReadyBatches
from fusion_pl.types import Batch

BAR, SKIP = 0.95, 10
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class ReadyInputs(ReadyBatches):
    """The same few random batches for the three pretrained kinds.

    Args:
        size: samples of a batch.
        steps: batches of an epoch.
        tokens: of a text.
        edge: of a picture, in pixels.
        seconds: of sound at 16 kHz.
    """

    def __init__(self, size: int, steps: int, tokens: int = 64, edge: int = 224, seconds: float = 2.0) -> None:
        super().__init__(size, steps)
        self.tokens, self.edge, self.length = tokens, edge, int(seconds * 16_000)

    def train_dataloader(self) -> DataLoader[Batch]:
        made = [self._made(seed) for seed in range(4)]
        return DataLoader(
            dataset=[made[step % len(made)] for step in range(self.steps)],
            batch_size=None,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(dataset=[self._made(4)], batch_size=None)

    def _made(self, seed: int) -> Batch:
        draw, size = torch.Generator().manual_seed(seed), self.batch_size
        everyone = torch.ones(size, dtype=torch.bool)
        inputs = {
            "text": {
                "input_ids": torch.randint(1000, (size, self.tokens), generator=draw),
                "attention_mask": everyone[:, None].repeat(1, self.tokens),
            },
            "image": {
                "pixel_values": torch.randint(256, (size, 3, self.edge, self.edge), generator=draw, dtype=torch.uint8)
            },
            "audio": {
                "values": torch.randn(size, self.length, generator=draw),
                "mask": everyone[:, None].repeat(1, self.length),
            },
        }
        target = torch.randint(len(CLASSES), (size,), generator=draw)
        return Batch(inputs, dict.fromkeys(inputs, everyone), target, [str(r) for r in range(size)], [()] * size)


def write_models(folder: Path, tiny: bool) -> dict[str, dict]:
    """Write the three configurations and what their processors need; return the encoders as in a YAML."""
    from transformers import BertTokenizer, DistilBertConfig, ViTConfig, Wav2Vec2Config, Wav2Vec2FeatureExtractor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(1000))]
    for name in ("text", "image", "audio"):
        (folder / name).mkdir()
    (folder / "text" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "text" / "vocab.txt")).save_pretrained(folder / "text")
    small = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2} if tiny else {}
    DistilBertConfig(**small).save_pretrained(folder / "text")
    ViTConfig(**(TINY | {"image_size": 32, "patch_size": 8} if tiny else {})).save_pretrained(folder / "image")
    narrow = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    # Masking whole spans of time is for pre-training; in the bare loop as well as here it would cost a copy to the CPU.
    Wav2Vec2Config(**(TINY | narrow if tiny else {}), apply_spec_augment=False).save_pretrained(folder / "audio")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "audio")
    return {
        name: {
            "class_path": f"fusion_pl.encoders.{name.title()}Encoder",
            "init_args": {"pretrained": str(folder / name), "weights": False},
        }
        for name in ("text", "image", "audio")
    }


def shape(tiny: bool) -> dict[str, float]:
    """Return the batches' sizes."""
    return {"size": 4, "steps": 14, "tokens": 8, "edge": 32, "seconds": 0.5} if tiny else {"size": 64, "steps": 60}


def plain(tiny: bool, compiled: bool) -> Figures:
    """Train with nothing but PyTorch around the model, in bfloat16 autocast."""
    from fusion_pl import encoders, fusion
    from fusion_pl.module import FusionClassifier

    device = torch.device("cpu" if tiny else "cuda")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        configs = write_models(Path(name), tiny)
        built = {key: getattr(encoders, f"{key.title()}Encoder")(**one["init_args"]) for key, one in configs.items()}
    model = FusionClassifier(built, fusion.CrossAttention, CLASSES).to(device).train()
    if compiled:
        compile_parts(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    clock = StepClock(SKIP)
    for batch in ReadyInputs(**shape(tiny)).train_dataloader():
        there = _to(batch, device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = cross_entropy(model(there).logits.float(), there.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step(len(batch.ids))
    return clock.figures() | _memory()


def _to(batch: Batch, device: torch.device) -> Batch:
    inputs = {
        name: {key: value.to(device, non_blocking=True) for key, value in tensors.items()}
        for name, tensors in batch.inputs.items()
    }
    present = {name: value.to(device, non_blocking=True) for name, value in batch.present.items()}
    return batch._replace(inputs=inputs, present=present, target=batch.target.to(device, non_blocking=True))


def compile_parts(model: nn.Module) -> None:
    """Compile each encoder and the head in place; what joins them is a handful of small operations."""
    for part in (*model.encoders.values(), model.fusion):
        part.compile()


def ours(tiny: bool, compiled: bool) -> Figures:
    """Train by the command; ``compiled`` compiles encoders and head when training starts."""
    if compiled:
        from fusion_pl.module import FusionClassifier

        FusionClassifier.on_fit_start = compile_parts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "config.yaml"
        whole = {
            "model": {
                "encoders": write_models(folder, tiny),
                "fusion": {"class_path": "fusion_pl.fusion.CrossAttention"},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
            },
            "data": {"class_path": "benchmarks.gpu.ReadyInputs", "init_args": shape(tiny)},
            "trainer": {
                "max_epochs": 1,
                "precision": "bf16-mixed",
                "accelerator": "cpu" if tiny else "gpu",
                "logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": {"save_dir": name, "name": "", "default_hp_metric": False},
                },
            },
        }
        config.write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
        return fit(["--config", str(config)], SKIP) | _memory()


def _memory() -> Figures:
    with contextlib.suppress(RuntimeError, AssertionError):
        return {"GPU MB": torch.cuda.max_memory_allocated() / 2**20}
    return {}


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU")
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--only", choices=["plain", "fit"], help="one run in this process (used by the turns)")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit("skipped: there is no CUDA GPU (--tiny shows on a CPU that the code runs)")
    if given.tiny:
        torch.set_num_threads(1)
    if given.only:
        tell((plain if given.only == "plain" else ours)(given.tiny, given.modes == ["compiled"]))
        return
    rows = []
    for mode in given.modes:
        command = ["-m", "benchmarks.gpu", *(["--tiny"] if given.tiny else []), "--modes", mode, "--only"]
        found = take_turns({"plain": [*command, "plain"], "fit": [*command, "fit"]}, given.rounds)
        rows.append(compare(f"{mode}: samples/s", found["fit"], found["plain"], BAR))
        key = "peak MB" if given.tiny else "GPU MB"
        rows.append([*compare(f"{mode}: {key}", found["fit"], found["plain"], 0.0, key)[:4], "", ""])
    show("gpu", ["case", "bare loop", "fit", "ratio (range)", "bar", "met"], rows)


if __name__ == "__main__":
    main()
