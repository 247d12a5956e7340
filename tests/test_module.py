from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from fusion_pl.data import ManifestData
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.fusion import Concat, Mean, Weighted
from fusion_pl.layers import fill_missing
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.training import Loss, WarmupCosine
from fusion_pl.training.stage_metrics import proper_subsets, scores_by_inputs
from fusion_pl.types import UserError

from .conftest import CLASSES


@pytest.fixture
def data(manifest, model):
    data = ManifestData(str(manifest), batch_size=5, num_workers=0)
    data.processors = model.processors
    data.setup("fit")
    return data


def quiet_trainer(tmp_path, **kwargs):
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def test_values_of_missing_inputs_do_not_change_the_result(model, data):
    model.eval()
    batch = Collate(model.processors)([data.samples("train")[row] for row in range(12)])
    missing = next(name for name in ("image", "audio") if not batch.present[name].all())
    before = model(batch).logits
    alone = batch.present[missing].clone()
    batch.present[missing][:] = False
    after = model(batch).logits
    assert torch.equal(before[~alone], after[~alone])
    assert not torch.equal(before[alone], after[alone])


def test_a_missing_embedding_replaces_a_missing_input(encoders, data):
    """It is read, it learns, and what stood in the missing input's place still cannot matter."""
    model = FusionClassifier(encoders, Concat, CLASSES, missing="token").eval()
    batch = Collate(model.processors)([data.samples("train")[row] for row in range(12)])
    missing = next(name for name in ("image", "audio") if not batch.present[name].all())
    here = batch.present[missing].clone()
    encoded = fill_missing(model.encode(batch)[missing], model.missing_embeddings[missing])
    assert encoded.mask.any(-1).all()
    assert torch.equal(encoded.embedding[~here], model.missing_embeddings[missing].expand(int((~here).sum()), -1))
    assert torch.equal(encoded.tokens[~here][:, 0], encoded.embedding[~here])
    assert int(encoded.mask[~here].sum()) == int((~here).sum())
    before = model(batch).logits
    for value in batch.inputs[missing].values():
        value.zero_()
    model.missing_embeddings[missing].data += torch.arange(
        len(model.missing_embeddings[missing])
    )  # no constant: a norm takes it out
    after = model(batch).logits
    assert not torch.isclose(before[~here], after[~here]).all(-1).any()
    cross_entropy(after, batch.target).backward()
    assert model.missing_embeddings[missing].grad.abs().max() > 0


def test_a_sample_does_not_depend_on_its_batch(model, data):
    model.eval()
    collate, samples = Collate(data.processors, training=True), data.samples("train")
    together = model(collate([samples[i] for i in range(8)])).logits
    alone = torch.cat([model(collate([samples[i]])).logits for i in range(8)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_training_reduces_the_loss_and_changes_every_parameter(model, data, tmp_path):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = quiet_trainer(tmp_path, max_epochs=8)
    trainer.fit(model, datamodule=data)
    assert not [name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)]
    assert trainer.callback_metrics["val/accuracy"] >= 0.9
    weights = [trainer.callback_metrics[f"val/weight/{name}"].item() for name in model.encoders]
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)


def test_the_logged_loss_is_the_mean_over_samples(model, data, tmp_path):
    trainer = quiet_trainer(tmp_path)
    (logged,) = trainer.validate(model, datamodule=data, verbose=False)
    model.eval()
    with torch.no_grad():
        losses = [cross_entropy(model(b).logits, b.target, reduction="none") for b in data.val_dataloader()]
    assert logged["val/loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)


def test_accuracy_per_subset_equals_that_of_batches_without_the_other_inputs(model, data, tmp_path):
    """Hiding an input in the model gives what leaving out its cells in the data gives; uneven batches count by size."""
    trainer = quiet_trainer(tmp_path)
    (logged,) = trainer.test(model, datamodule=data, verbose=False)
    names = list(model.encoders)
    found = scores_by_inputs(logged, "test/accuracy", names)
    assert set(found) == {"text", "image", "audio", "text+image", "text+audio", "image+audio", "text+image+audio"}
    model.eval()
    for some in found:
        right = seen = 0
        for batch in data.test_dataloader():
            has = torch.stack([batch.present[name] for name in some.split("+")]).any(0)
            for name in names:
                if name not in some.split("+"):
                    batch.present[name][:] = False
            right += int((model(batch).logits.argmax(-1).eq(batch.target) & has).sum())
            seen += int(has.sum())
        assert found[some] == pytest.approx(right / seen), some


def test_accuracy_per_subset_is_measured_in_validate_but_not_in_fit(model, data, tmp_path):
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, datamodule=data)
    assert not [key for key in trainer.callback_metrics if "accuracy/" in key]
    (logged,) = trainer.validate(model, datamodule=data, verbose=False)
    assert {"val/accuracy/text", "val/accuracy/image+audio"} <= set(logged)


def test_layer_weights_are_logged_over_samples_that_have_the_input(data, tmp_path):
    torch.manual_seed(0)
    encoders = {"text": TinyText(dim=8), "image": TinyImage(dim=16, image_size=16, channels=1, combine="attention")}
    model = FusionClassifier(encoders, Concat, CLASSES)
    (logged,) = quiet_trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    found = [logged[f"val/layer_weight/image/{level}"] for level in range(3)]
    model.eval()
    with torch.no_grad():
        rows = [model.encode(batch)["image"].layer_weights[batch.present["image"]] for batch in data.val_dataloader()]
    assert found == pytest.approx(torch.cat(rows).mean(0).tolist())
    assert sum(found) == pytest.approx(1)
    assert not [key for key in logged if "layer_weight/text" in key]


def test_many_inputs_are_not_measured_in_every_subset():
    assert len(proper_subsets("abcd")) == 2**4 - 2
    assert [len(one) for one in proper_subsets("abcdef")] == [1] * 6 + [5] * 6


def test_an_input_without_samples_has_no_accuracy(encoders, data, tmp_path):
    """No share of nothing is made up, and nothing fails."""
    collate = data.test_dataloader().collate_fn

    def without_image(samples):
        batch = collate(samples)
        batch.present["image"][:] = False
        return batch

    model = FusionClassifier(encoders, Concat, CLASSES)
    batches = DataLoader(data.samples("test"), batch_size=5, collate_fn=without_image)
    (logged,) = quiet_trainer(tmp_path).test(model, batches, verbose=False)
    assert math.isnan(logged["test/accuracy/image"])
    assert not math.isnan(logged["test/accuracy/text+image"])


def test_class_weights_and_smoothing_apply_to_the_loss(encoders, data, tmp_path):
    model = FusionClassifier(encoders, Concat, CLASSES, loss=Loss(label_smoothing=0.2, class_weights=[1.0, 3.0]))
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    batch = next(iter(data.train_dataloader()))
    model.eval()
    model.log = lambda *args, **kwargs: None
    expected = cross_entropy(model(batch).logits, batch.target, torch.tensor([1.0, 3.0]), label_smoothing=0.2)
    assert model.training_step(batch, 0).item() == pytest.approx(expected.item(), abs=1e-6)


def test_auxiliary_loss_trains_a_classifier_per_input(encoders, data, tmp_path):
    model = FusionClassifier(encoders, Concat, CLASSES, loss=Loss(auxiliary_weight=0.7))
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(model, datamodule=data)
    batch = next(iter(data.train_dataloader()))
    model.eval()
    model.log = lambda *args, **kwargs: None
    expected = cross_entropy(model(batch).logits, batch.target)
    for name, encoded in model.encode(batch).items():
        own = [model.auxiliary_heads[name](encoded.embedding[i]) for i in range(5) if batch.present[name][i]]
        wanted = batch.target[batch.present[name]]
        expected = expected + 0.7 * cross_entropy(torch.stack(own), wanted, reduction="sum") / 5
    assert model.training_step(batch, 0).item() == pytest.approx(expected.item(), abs=1e-5)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert Predictor.from_checkpoint(tmp_path / "model.ckpt").predict({"text": "hello"}).error is None


@pytest.mark.parametrize(
    ("change", "match"),
    [({"label_smoothing": 1.0}, "label_smoothing"), ({"auxiliary_weight": -1.0}, "auxiliary_weight")],
)
def test_a_loss_out_of_range_is_refused(change, match):
    with pytest.raises(UserError, match=match):
        Loss(**change)


def test_balanced_weights_come_from_the_training_split(encoders, data, tmp_path):
    model = FusionClassifier(encoders, Concat, CLASSES, loss=Loss(class_weights="balanced"))
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(model, datamodule=data)
    assert model.training_loss.weights.tolist() == [1.0, 1.0]


def test_norms_have_no_weight_decay_and_pretrained_weights_a_lower_rate(model, tmp_path):
    model.encoders["text"].pretrained_weights = True
    model.lr_scheduler = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    optimizer = model.configure_optimizers()["optimizer"]
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"pretrained": 1e-4, "pretrained_no_decay": 1e-4, "new": 1e-3, "new_no_decay": 1e-3}
    )
    assert groups["new"]["weight_decay"] == groups["pretrained"]["weight_decay"] == 0.01
    for name in ("new_no_decay", "pretrained_no_decay"):
        assert groups[name]["weight_decay"] == 0.0
        assert all(parameter.ndim <= 1 for parameter in groups[name]["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


def test_warmup_cosine_follows_its_formula():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = WarmupCosine(optimizer, warmup=0.2)
    scheduler.set_total_steps(20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rising = [2.0 * (t + 1) / 4 for t in range(4)]
    falling = [1.0 + math.cos(math.pi * (t - 4) / 16) for t in range(4, 20)]
    assert rates == pytest.approx(rising + falling)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoders": {}}, "model.encoders is empty"),
        ({"encoders": {"a.b": TinyText()}}, "cannot be named 'a.b'"),
        ({"encoders": {"keys": TinyText()}}, "cannot be named 'keys'"),
        ({"classes": ["one"]}, "at least two classes"),
        ({"loss": Loss(class_weights=[1.0])}, "has 1 numbers, expected one for each"),
    ],
)
def test_invalid_arguments_are_refused(change, match):
    arguments = {"encoders": {"text": TinyText()}, "fusion": Mean, "classes": CLASSES} | change
    with pytest.raises(UserError, match=match):
        FusionClassifier(**arguments)


def test_any_names_and_any_number_of_inputs():
    names = ["title", "body", "type of thing", "4th"]
    model = FusionClassifier({name: TinyText() for name in names}, Weighted, ["a", "b", "c"])
    assert list(model.processors) == names


class LossBar(ProgressBar):
    """A progress bar that notes the loss beside it, and the loss of each step."""

    def __init__(self, is_enabled):
        super().__init__()
        self.is_enabled, self.shown, self.losses = is_enabled, [], []

    def disable(self):
        """Do nothing: the Trainer disables the bars of the other processes."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.shown.append(trainer.progress_bar_metrics.get("train/loss_step"))
        self.losses.append(float(outputs["loss"]))


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_progress_bar_shows_the_loss_of_every_step(model, data, tmp_path, monkeypatch, is_enabled):
    """Without one, the loss is logged in the steps only that loggers write, because logging is slow."""
    logged, log = [], model.log
    monkeypatch.setattr(model, "log", lambda name, value, **kwargs: (logged.append(name), log(name, value, **kwargs)))
    bar = LossBar(is_enabled)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[bar], max_steps=8, log_every_n_steps=3, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    assert len(bar.losses) == 8
    assert bar.shown == (bar.losses if is_enabled else [None] * 8)
    assert logged.count("train/loss_step") == (8 if is_enabled else 2)
