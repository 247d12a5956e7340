"""DistilBERT, ViT-B and Wav2Vec2-base sizes on a GPU: ``fusion-pl fit`` and a plain loop, eager and compiled.

Untrained, ``CrossAttention``, batch 64, bf16-mixed, prepared batches (64 tokens, 224 pixels, 2 s of 16 kHz). With
``--tiny`` the networks have a few thousand parameters and run on a CPU, as a smoke test.

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

from benchmarks.measure import Measurements, StepTimer, fit, print_table, ratio_row, run_alternating, send
from benchmarks.overhead import CLASSES, RandomBatches
from fusion_pl.types import Batch

TARGET, SKIP = 0.95, 10
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class PretrainedBatches(RandomBatches):
    """The same four random batches for the three pretrained encoders, repeated.

    Args:
        size: samples per batch.
        steps: batches per epoch.
        tokens: per text.
        image_size: in pixels.
        seconds: of audio at 16 kHz.
    """

    def __init__(self, size: int, steps: int, tokens: int = 64, image_size: int = 224, seconds: float = 2.0) -> None:
        super().__init__(size, steps)
        self.tokens, self.image_size, self.length = tokens, image_size, int(seconds * 16_000)

    def train_dataloader(self) -> DataLoader[Batch]:
        batches = [self._batch(seed) for seed in range(4)]
        return DataLoader(
            dataset=[batches[step % len(batches)] for step in range(self.steps)],
            batch_size=None,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(dataset=[self._batch(4)], batch_size=None)

    def _batch(self, seed: int) -> Batch:
        generator, size = torch.Generator().manual_seed(seed), self.batch_size
        present = torch.ones(size, dtype=torch.bool)
        inputs = {
            "text": {
                "input_ids": torch.randint(1000, (size, self.tokens), generator=generator),
                "attention_mask": present[:, None].repeat(1, self.tokens),
            },
            "image": {
                "pixel_values": torch.randint(
                    256, (size, 3, self.image_size, self.image_size), generator=generator, dtype=torch.uint8
                )
            },
            "audio": {
                "values": torch.randn(size, self.length, generator=generator),
                "mask": present[:, None].repeat(1, self.length),
            },
        }
        target = torch.randint(len(CLASSES), (size,), generator=generator)
        return Batch(inputs, dict.fromkeys(inputs, present), target, [str(r) for r in range(size)], [()] * size)


def write_models(folder: Path, tiny: bool) -> dict[str, dict]:
    """Write configurations and files of the processors; return the ``encoders`` section of a configuration."""
    from transformers import BertTokenizer, DistilBertConfig, ViTConfig, Wav2Vec2Config, Wav2Vec2FeatureExtractor

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(1000))]
    for name in ("text", "image", "audio"):
        (folder / name).mkdir()
    (folder / "text" / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizer(str(folder / "text" / "vocab.txt")).save_pretrained(folder / "text")
    small = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2} if tiny else {}
    DistilBertConfig(**small).save_pretrained(folder / "text")
    ViTConfig(**(TINY | {"image_size": 32, "patch_size": 8} if tiny else {})).save_pretrained(folder / "image")
    narrow = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    # SpecAugment would copy masks to the CPU in each step, in both loops.
    Wav2Vec2Config(**(TINY | narrow if tiny else {}), apply_spec_augment=False).save_pretrained(folder / "audio")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "audio")
    return {
        name: {
            "class_path": f"fusion_pl.encoders.{name.title()}Encoder",
            "init_args": {"pretrained": str(folder / name), "weights": False},
        }
        for name in ("text", "image", "audio")
    }


def batch_shape(tiny: bool) -> dict[str, float]:
    """Return the arguments of ``PretrainedBatches``."""
    return (
        {"size": 4, "steps": 14, "tokens": 8, "image_size": 32, "seconds": 0.5} if tiny else {"size": 64, "steps": 60}
    )


def plain(tiny: bool, compiled: bool) -> Measurements:
    """Train the model in a plain PyTorch loop with bfloat16 autocast."""
    from fusion_pl import encoders, fusion
    from fusion_pl.module import FusionClassifier

    device = torch.device("cpu" if tiny else "cuda")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        configs = write_models(Path(name), tiny)
        modules = {key: getattr(encoders, f"{key.title()}Encoder")(**one["init_args"]) for key, one in configs.items()}
    model = FusionClassifier(modules, fusion.CrossAttention, CLASSES).to(device).train()
    if compiled:
        compile_encoders_and_head(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    timer = StepTimer(SKIP)
    for batch in PretrainedBatches(**batch_shape(tiny)).train_dataloader():
        on_device = _to(batch, device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = cross_entropy(model(on_device).logits.float(), on_device.target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        timer.step(len(batch.ids))
    return timer.measurements() | _memory()


def _to(batch: Batch, device: torch.device) -> Batch:
    inputs = {
        name: {key: value.to(device, non_blocking=True) for key, value in tensors.items()}
        for name, tensors in batch.inputs.items()
    }
    present = {name: value.to(device, non_blocking=True) for name, value in batch.present.items()}
    return batch._replace(inputs=inputs, present=present, target=batch.target.to(device, non_blocking=True))


def compile_encoders_and_head(model: nn.Module) -> None:
    """Compile each encoder and the head in place."""
    for module in (*model.encoders.values(), model.fusion):
        module.compile()


def fusion_pl_fit(tiny: bool, compiled: bool) -> Measurements:
    """Train with ``fusion-pl fit``; ``compiled`` compiles encoders and head when training starts."""
    if compiled:
        from fusion_pl.module import FusionClassifier

        FusionClassifier.on_fit_start = compile_encoders_and_head
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "config.yaml"
        config = {
            "model": {
                "encoders": write_models(folder, tiny),
                "fusion": {"class_path": "fusion_pl.fusion.CrossAttention"},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
            },
            "data": {"class_path": "benchmarks.gpu.PretrainedBatches", "init_args": batch_shape(tiny)},
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
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        return fit(["--config", str(path)], SKIP) | _memory()


def _memory() -> Measurements:
    with contextlib.suppress(RuntimeError, AssertionError):
        return {"GPU MB": torch.cuda.max_memory_allocated() / 2**20}
    return {}


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU")
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--only", choices=["plain", "fit"], help="one run in this process (internal)")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        sys.exit("skipped: there is no CUDA GPU (--tiny runs a smoke test on a CPU)")
    if args.tiny:
        torch.set_num_threads(1)
    if args.only:
        send((plain if args.only == "plain" else fusion_pl_fit)(args.tiny, args.modes == ["compiled"]))
        return
    rows = []
    for mode in args.modes:
        command = ["-m", "benchmarks.gpu", *(["--tiny"] if args.tiny else []), "--modes", mode, "--only"]
        results = run_alternating({"plain": [*command, "plain"], "fit": [*command, "fit"]}, args.rounds)
        rows.append(ratio_row(f"{mode}: samples/s", results["fit"], results["plain"], TARGET))
        key = "peak MB" if args.tiny else "GPU MB"
        rows.append([*ratio_row(f"{mode}: {key}", results["fit"], results["plain"], key=key), "", ""])
    print_table("gpu", ["case", "plain loop", "fit", "ratio (range)", "target", "met"], rows)


if __name__ == "__main__":
    main()
