"""Which weights training starts from, and what does not learn: both by what is true, not by what was once asked for."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning, Callback
from torch import nn

from fusion_pl.data import ManifestData
from fusion_pl.encoders import Encoder, ImageEncoder, TextEncoder, TinyText
from fusion_pl.encoders.base import is_frozen
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.types import Encoded

from ..conftest import CLASSES
from ..encoders.models import save_image, save_text

# Lightning says so of frozen parts, where they are meant to be; the command leaves it out.
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")


def fit(model, manifest, callbacks=(), **settings):
    data = ManifestData(str(manifest), batch_size=8, num_workers=0, drop_empty=True)
    data.processors = model.processors
    off = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    trainer = Trainer(**({"max_epochs": 1} | off | settings), accelerator="cpu", callbacks=list(callbacks))
    trainer.fit(model, datamodule=data)
    return trainer


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def text_model(folder, lr=1e-2):
    encoder = TextEncoder(str(folder))
    return FusionClassifier({"text": encoder}, Mean, CLASSES, optimizer=lambda some: torch.optim.SGD(some, lr=lr))


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    """A model fine-tuned by one fit, and its checkpoint."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_text("bert", folder / "bert")
    model = text_model(folder / "bert")
    fit(model, manifest).save_checkpoint(folder / "model.ckpt")
    return folder / "bert", model, folder / "model.ckpt"


def pretrained(folder):
    encoder = TextEncoder(str(folder))
    encoder.load_pretrained()
    return encoder.state_dict()


def test_a_second_fit_starts_from_the_trained_weights(trained, manifest):
    folder, model, _ = trained
    before = weights(model)
    assert not same(model.encoders["text"].state_dict(), pretrained(folder)), "the first fit learns"
    model.optimizer = lambda some: torch.optim.SGD(some, lr=0.0)
    fit(model, manifest)
    assert same(weights(model), before)


def test_a_fit_of_a_loaded_model_starts_from_the_trained_weights(trained, manifest):
    _, _, path = trained
    model = Predictor.from_checkpoint(path, device="cpu").model.train()
    before = weights(model)
    model.optimizer = lambda some: torch.optim.SGD(some, lr=0.0)
    fit(model, manifest)
    assert same(weights(model), before)


def test_loading_a_head_keeps_the_pretrained_weights_of_the_encoder(trained, manifest):
    folder, other, _ = trained
    model = text_model(folder, lr=0.0)
    head = {name: value for name, value in other.state_dict().items() if name.startswith("fusion.")}
    model.load_state_dict(head, strict=False)
    fit(model, manifest)
    assert same(model.encoders["text"].state_dict(), pretrained(folder))


class Own(Encoder):
    """A user's encoder with dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.processor = 4, TinyText(dim=8).processor
        self.embed, self.projection = nn.Embedding(257, 4), nn.Linear(4, 4)
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.rows = 0

    def forward(self, ids, mask):
        self.rows += len(ids)
        tokens = self.dropout(self.norm(self.projection(self.embed(ids)).transpose(1, 2)).transpose(1, 2))
        return Encoded(tokens * mask.unsqueeze(-1), mask, tokens.mean(1))


class Watch(Callback):
    """Records in each step whether the encoder is frozen, in training mode and part of a graph."""

    def __init__(self) -> None:
        self.steps = []

    def on_train_batch_end(self, trainer, model, outputs, batch, *index):
        encoder = model.encoders["text"]
        embedding = model.encode(batch)["text"].embedding
        self.steps.append((is_frozen(encoder), encoder.training, encoder.norm.training, embedding.requires_grad))


@pytest.mark.parametrize("cached", [False, True])
def test_a_users_frozen_encoder_is_in_evaluation_mode_and_cached(manifest, tmp_path, cached):
    model, watch = FusionClassifier({"text": Own().requires_grad_(False)}, Mean, CLASSES), Watch()
    if cached:
        model.enable_cache(tmp_path / "cache")
    before = weights(model.encoders["text"])
    fit(model, manifest, [watch], max_epochs=3)
    assert same(weights(model.encoders["text"]), before)  # the running statistics, too
    assert set(watch.steps) == {(True, False, False, False)}
    if cached:
        assert (
            model.encoders["text"].rows == 8 + 24 + 12
        )  # each of training and validation once, 8 to estimate the size


class Unfreeze(BaseFinetuning):
    """Freezes an encoder, unfreezes it in the second epoch, and freezes it again in the third."""

    def freeze_before_training(self, model):
        self.freeze(model.encoders["text"], train_bn=False)

    def finetune_function(self, model, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(model.encoders["text"], optimizer, lr=0.1)
        if epoch == 2:
            self.after = weights(model.encoders["text"])
            self.freeze(model.encoders["text"], train_bn=False)


@pytest.mark.parametrize("cached", [False, True])
def test_an_unfrozen_encoder_is_trained_and_not_cached(manifest, tmp_path, cached):
    model, watch, unfreeze = FusionClassifier({"text": Own()}, Mean, CLASSES), Watch(), Unfreeze()
    if cached:
        model.enable_cache(tmp_path / "cache")
    before = weights(model.encoders["text"])
    trainer = fit(model, manifest, [watch, unfreeze], max_epochs=3)
    frozen, learning = (True, False, False, False), (False, True, True, True)
    assert watch.steps == [frozen] * 3 + [learning] * 3 + [frozen] * 3
    assert not same(unfreeze.after, before)
    assert same(weights(model.encoders["text"]), unfreeze.after)
    assert all(group["lr"] < 1e-6 for group in trainer.optimizers[0].param_groups)  # the schedule took the new one in
    if cached:  # with the last weights, nothing that earlier ones returned
        batch = next(iter(trainer.val_dataloaders))
        found = model.eval().encode(batch)["text"].tokens
        model.cache = None
        torch.testing.assert_close(found, model.encode(batch)["text"].tokens)


class FreezeAWhile(Callback):
    """Freezes one part in the second step, unfreezes it in the third, and records the modes of all parts."""

    def __init__(self) -> None:
        self.modes = []

    def on_train_batch_start(self, trainer, model, batch, index):
        model.encoders["text"].norm.requires_grad_(index != 1)

    def on_train_batch_end(self, trainer, model, outputs, batch, index):
        encoder = model.encoders["text"]
        self.modes.append((encoder.training, encoder.norm.training, encoder.dropout.training))


def test_a_part_that_the_user_set_to_evaluation_mode_stays_in_it(manifest):
    encoder, watch = Own(), FreezeAWhile()
    model = FusionClassifier({"text": encoder}, Mean, CLASSES)
    encoder.dropout.eval()
    fit(model, manifest, [watch])
    assert watch.modes == [(True, True, False), (True, False, False), (True, True, False)]


@pytest.mark.filterwarnings("error:Found")  # here none is meant to be
def test_requires_grad_overrides_freeze(manifest, tmp_path):
    save_image("resnet", tmp_path / "model")
    encoder = ImageEncoder(str(tmp_path / "model"), freeze="all")
    model = FusionClassifier({"image": encoder}, Mean, CLASSES)
    for parameter in encoder.model.parameters():
        parameter.requires_grad_(True)
    before = weights(encoder)
    fit(model, manifest)
    assert not [name for name, value in encoder.named_parameters() if torch.equal(value, before[name])]
    assert all(part.training for part in encoder.modules())
