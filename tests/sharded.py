"""Train a step with FSDP on two processes and write the parameter groups to a file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.types import UserError


class OnCPU(FSDPStrategy):
    """FSDP on CPUs, which Lightning and torch use only with an explicit device."""

    @property
    def root_device(self):
        return torch.device("cpu")

    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model, device_id=self.root_device, sharding_strategy=self.sharding_strategy, **self.kwargs
        )


def fit(manifest: str, **settings) -> tuple[FusionClassifier, Trainer, dict[str, int]]:
    encoders = {"text": TinyText(dim=8), "image": TinyImage(dim=16, image_size=16, channels=1)}
    model = FusionClassifier(encoders, Concat, ["high", "low"])
    dimensions = {name: parameter.ndim for name, parameter in model.named_parameters()}
    data = ManifestData(manifest, batch_size=4, num_workers=0, drop_empty=True)
    data.processors = model.processors
    strategy = OnCPU(process_group_backend="gloo", auto_wrap_policy=ModuleWrapPolicy({nn.Conv1d}), **settings)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(strategy=strategy, devices=2, accelerator="cpu", max_steps=1, limit_val_batches=0, **off)
    trainer.fit(model, datamodule=data)
    return model, trainer, dimensions


def main(manifest: str, path: str) -> None:
    model, trainer, dimensions = fit(manifest, state_dict_type="sharded")
    trainer.save_checkpoint(Path(path).with_name("sharded.ckpt"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = trainer.optimizers[0].param_groups
    found = {
        group["name"]: [names[id(one)].replace("_fsdp_wrapped_module.", "") for one in group["params"]]
        for group in groups
    }
    found |= {
        "decay": {group["name"]: group["weight_decay"] for group in groups},
        "dimensions": dimensions,
        "parameters": len(dimensions),
        "pieces": sum(one.ndim == 1 for group in groups for one in group["params"]),
    }
    try:
        fit(manifest, use_orig_params=False)
    except UserError as error:
        found["joined"] = str(error)
    if trainer.is_global_zero:
        Path(path).write_text(json.dumps(found))
