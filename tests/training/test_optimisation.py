"""Parameter groups and schedules in a real Trainer."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

from fusion_pl.data import ManifestData
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import TinyText
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.training import WarmupCosine
from fusion_pl.types import UserError

from ..conftest import CLASSES


class Stream(IterableDataset):
    """A data set without a length."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter([self.samples[row] for row in range(24)])


@pytest.fixture
def fit(manifest, tmp_path):
    def _fit(streamed=False, total_steps=None, **limits):
        model = FusionClassifier(
            {"text": TinyText(dim=8)},
            Mean,
            CLASSES,
            optimizer=lambda some: torch.optim.SGD(some, lr=1.0),
            lr_scheduler=lambda optimizer: WarmupCosine(optimizer, warmup=0.0, total_steps=total_steps),
        )
        data = ManifestData(str(manifest), batch_size=6, num_workers=0)
        data.processors = model.processors
        data.setup("fit")
        loader = DataLoader(Stream(data.samples("train")), 6, collate_fn=Collate(model.processors, training=True))
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", limit_val_batches=0, **off, **limits)
        if streamed:
            trainer.fit(model, loader)
        else:
            trainer.fit(model, datamodule=data)
        return trainer.optimizers[0].param_groups[0]["lr"]

    return _fit


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.parametrize(
    "given",
    [{"streamed": True, "max_epochs": 2}, {"max_epochs": -1}, {"max_epochs": -1, "max_time": "00:00:00:01"}],
)
def test_a_schedule_needs_the_length_of_the_run(fit, given):
    limited = {key: value for key, value in given.items() if key != "max_time"}
    with pytest.raises(UserError, match=r"give trainer.max_steps, or model.lr_scheduler.init_args.total_steps"):
        fit(**given)
    assert fit(**limited, max_steps=3) == pytest.approx(0.0)
    assert fit(**limited | {"max_epochs": 1}, total_steps=8) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


@pytest.mark.parametrize("given", [{"warmup": 1.0}, {"warmup": -0.1}, {"warmup": math.nan}, {"total_steps": 0}])
def test_a_schedule_out_of_range_is_refused(given):
    (name, value), optimizer = *given.items(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(UserError, match=f"model.lr_scheduler.init_args.{name} is {value}, expected"):
        WarmupCosine(optimizer, **given)
