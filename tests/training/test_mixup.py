"""Mixup against a slow restatement, and in a real Trainer."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.nn import functional as F

from fusion_pl import fusion
from fusion_pl.data import ManifestData
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.fusion import Concat, SelfAttention, Stacking
from fusion_pl.module import FusionClassifier
from fusion_pl.training import Loss
from fusion_pl.training.loss import total_loss
from fusion_pl.training.mixup import Pairs, draw_pairs
from fusion_pl.types import Batch, Encoded, UserError
from tests.conftest import CLASSES

HEADS = [getattr(fusion, name) for name in fusion.__all__ if name != "Fusion"]


def in_training_without_dropout(encoders, head, missing="mask", **loss):
    torch.manual_seed(0)
    model = FusionClassifier(encoders, head, CLASSES, loss=Loss(**loss), missing=missing).train()
    for module in model.modules():
        if module is not model.fusion and module is not model:  # Stacking stacks in training only
            module.eval()
    return model


def batch_of(present, held_out=None):
    """Return a batch with the given presence masks and no values."""
    masks = {str(column): mask for column, mask in enumerate(torch.tensor(present, dtype=torch.bool).T)}
    return Batch({}, masks, torch.zeros(len(present), dtype=torch.long), [], [])


def mixed_slowly(encoded, partner, weight):
    """Mix sample by sample and token by token."""
    mixed = {}
    for name, value in encoded.items():
        tokens, embedding = value.tokens.clone(), value.embedding.clone()
        for i, j in enumerate(partner.tolist()):
            embedding[i] = weight * value.embedding[i] + (1 - weight) * value.embedding[j]
            for t in range(tokens.shape[1]):
                if value.mask[i, t] and value.mask[j, t]:
                    tokens[i, t] = weight * value.tokens[i, t] + (1 - weight) * value.tokens[j, t]
        mixed[name] = Encoded(tokens, value.mask, embedding, value.layer_weights)
    return mixed


def replay(model, batch, seed):
    """Return the pairs that ``compute_losses`` draws after this seed."""
    torch.manual_seed(seed)
    return draw_pairs(batch, model.fusion.held_out_mask(batch), model.loss.mixup)


def test_the_loss_is_the_cross_entropy_with_soft_targets(encoders, batch):
    """With label smoothing, class weights and auxiliary heads; probabilities as targets are mixed by hand."""
    smoothing, class_weights = 0.1, torch.tensor([1.0, 3.0])
    loss = {"label_smoothing": smoothing, "class_weights": class_weights.tolist(), "auxiliary_weight": 0.7}
    model = in_training_without_dropout(encoders, SelfAttention, mixup=1.0, **loss)
    model.training_loss.weights = class_weights
    encoded, (partner, weight) = model.encode(batch), replay(model, batch, 3)
    assert 0.5 < weight < 0.95
    assert (partner != torch.arange(24)).any()
    mixed = mixed_slowly(encoded, partner, weight)
    one_hot = F.one_hot(batch.target, 2).float()
    soft = weight * one_hot + (1 - weight) * one_hot[partner]
    soft = (1 - smoothing) * soft + smoothing / 2

    def summed(logits, rows):
        return -sum((class_weights * soft[row] * logits[row].log_softmax(-1)).sum() for row in rows)

    expected = summed(model.fuse(mixed).logits, range(24))
    for name, classify in model.auxiliary_heads.items():
        rows = batch.present[name].nonzero().flatten().tolist()
        assert name == "text" or len(rows) < 24
        expected = expected + 0.7 * summed(classify(mixed[name].embedding), rows)
    torch.manual_seed(3)
    found = total_loss(model.compute_losses(batch)[0])
    torch.testing.assert_close(found, expected / class_weights[batch.target].sum())


@pytest.mark.parametrize(
    ("head", "missing"), [*((head, "mask") for head in HEADS), (Concat, "token"), (SelfAttention, "token")]
)
def test_the_loss_of_every_head_is_the_weighted_mean_over_both_targets(encoders, batch, head, missing):
    model = in_training_without_dropout(encoders, head, missing, mixup=1.0)
    pairs = replay(model, batch, 3)
    fused = model.fuse(mixed_slowly(model.encode(batch), *pairs))
    own, partners = (
        total_loss(
            model.fusion.loss(
                fused, batch._replace(target=target), lambda logits, mask=None, target=target: ce(logits, target, mask)
            )
        )
        for target in (batch.target, batch.target[pairs.partner])
    )
    torch.manual_seed(3)
    found = total_loss(model.compute_losses(batch)[0])
    torch.testing.assert_close(found, pairs.weight * own + (1 - pairs.weight) * partners)
    found.backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.fusion.parameters())


def ce(logits, target, mask):
    losses = F.cross_entropy(logits, target, reduction="none")
    return (losses if mask is None else losses[mask]).sum() / len(target)


def test_weight_one_leaves_samples_as_they_are(encoders, batch):
    model = in_training_without_dropout(encoders, SelfAttention)
    encoded, partner = model.encode(batch), torch.arange(24).flip(0)
    mixed = Pairs(partner, 1.0).mix_inputs(encoded)
    for name, value in encoded.items():
        assert all(torch.equal(one, other) for one, other in zip(mixed[name][:3], value[:3], strict=True))


def test_nothing_is_mixed_in_validation_or_with_mixup_0(encoders, batch):
    plain, mixup = (in_training_without_dropout(encoders, Concat, mixup=alpha) for alpha in (0.0, 1.0))
    in_validation = total_loss(mixup.eval().compute_losses(batch)[0])
    assert torch.equal(total_loss(plain.eval().compute_losses(batch)[0]), in_validation)
    state = torch.get_rng_state()
    assert torch.equal(total_loss(plain.train(False).compute_losses(batch)[0]), in_validation)
    assert torch.equal(torch.get_rng_state(), state), "no random number may be drawn"


def test_values_of_missing_inputs_do_not_change_the_loss_and_stay_missing(encoders, batch):
    model = in_training_without_dropout(encoders, Concat, auxiliary_weight=0.5, mixup=1.0)
    pairs = replay(model, batch, 3)
    mixed = pairs.mix_inputs(model.encode(batch))
    for name, present in batch.present.items():
        assert torch.equal(mixed[name].mask.any(-1), present)
        assert not mixed[name].embedding[~present].any()
        assert torch.equal(present, present[pairs.partner])


def test_padding_changes_nothing(encoders, batch):
    model = in_training_without_dropout(encoders, SelfAttention)
    encoded = model.encode(batch)
    padded = {
        name: value._replace(tokens=F.pad(value.tokens, (0, 0, 0, 5)), mask=F.pad(value.mask, (0, 5)))
        for name, value in encoded.items()
    }
    pairs = Pairs(torch.arange(24).flip(0), 0.7)
    logits = [model.fuse(pairs.mix_inputs(inputs)).logits for inputs in (encoded, padded)]
    torch.testing.assert_close(*logits)


def test_partners_are_uniform_among_samples_with_the_same_inputs():
    present = [[1, 1], [1, 0], [1, 1], [0, 1], [1, 1], [1, 0]]
    counts, batch = torch.zeros(6, 6), batch_of(present)
    torch.manual_seed(0)
    for _ in range(2000):
        partner = draw_pairs(batch, None, 0.4).partner
        assert partner.sort().values.tolist() == list(range(6)), "a permutation"
        counts[torch.arange(6), partner] += 1
    for i, j in ((i, j) for i in range(6) for j in range(6)):
        expected = 1 / present.count(present[i]) if present[i] == present[j] else 0.0
        assert counts[i, j] / 2000 == pytest.approx(expected, abs=0.05 if expected else 0)


def test_held_out_samples_have_held_out_partners(encoders, batch):
    model = in_training_without_dropout(encoders, Stacking, mixup=0.4)
    held_out = torch.arange(24) % 3 == 0
    for _ in range(20):
        partner = draw_pairs(batch, held_out, model.loss.mixup).partner
        assert torch.equal(held_out[partner], held_out)


@pytest.mark.parametrize("alpha", [0.2, 8.0])
def test_the_weight_has_a_beta_distribution(alpha):
    """The mean of λ (1 - λ), which is the same for λ and 1 - λ, is α / (4 α + 2)."""
    torch.manual_seed(0)
    batch = batch_of([[1]])
    weights = torch.tensor([draw_pairs(batch, None, alpha).weight for _ in range(4000)])
    assert weights.min() >= 0.5
    assert weights.max() <= 1
    assert (weights * (1 - weights)).mean().item() == pytest.approx(alpha / (4 * alpha + 2), abs=0.006)


@pytest.fixture(scope="module")
def train(manifest, tmp_path_factory):
    def train(alpha=0.4, missing="mask", precision="32-true", epochs=2, dropout=None):
        seed_everything(1)
        encoders = {"text": TinyText(dim=8), "image": TinyImage(dim=16, image_size=16, channels=1)}
        loss = Loss(mixup=alpha, auxiliary_weight=0.5)
        model = FusionClassifier(encoders, Concat, CLASSES, loss=loss, missing=missing)
        data = ManifestData(str(manifest), batch_size=6, num_workers=0, input_dropout=dropout)
        data.processors = model.processors
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        trainer = Trainer(
            default_root_dir=tmp_path_factory.mktemp("mixup"),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=epochs,
            precision=precision,
        )
        trainer.fit(model, datamodule=data)
        return model, before, {name: value.item() for name, value in trainer.callback_metrics.items()}

    return train


@pytest.mark.parametrize("missing", ["mask", "token"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_trainer_trains_every_parameter_and_logs_an_accuracy(train, missing, precision):
    model, before, metrics = train(missing=missing, precision=precision, dropout={"text": 0.3})
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)]
    assert not unchanged
    assert 0 <= metrics["train/accuracy"] <= 1
    assert 0 < metrics["train/loss"] < 5


def test_a_trainer_with_weights_in_half_precision_mixes_samples(train):
    metrics = train(precision="bf16-true")[2]
    assert 0 < metrics["train/loss"] < 5


def test_a_model_learns_with_mixup(train):
    metrics = train(alpha=0.4, epochs=8)[2]
    assert metrics["val/accuracy"] >= 0.9
    assert metrics["val/loss"] < metrics["train/loss"], "the targets of training are soft"


def test_runs_depend_on_the_seed_and_on_alpha(train):
    states = [train(alpha)[0].state_dict() for alpha in (0.4, 0.4, 0.0)]
    same, other = (
        [torch.equal(states[0][name], state[name]) for name in states[0]] for state in (states[1], states[2])
    )
    assert all(same)
    assert not all(other)


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_an_impossible_alpha_is_refused(alpha):
    with pytest.raises(UserError, match=rf"model.loss.mixup must be 0 \(off\) or more, not {alpha}"):
        Loss(mixup=alpha)
