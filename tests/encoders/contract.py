"""Checks for every pretrained encoder."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusion_pl.core import FusionCore
from fusion_pl.encoders import Encoder
from fusion_pl.encoders.layer_mixing import Combine
from fusion_pl.encoders.pretrained import PretrainedEncoder
from fusion_pl.fusion import Mean
from fusion_pl.types import Encoded, UserError


def families_and_combinations(families: Iterable[str], examples: Iterable[str]) -> list[tuple[str, Combine]]:
    """Return pairs for ``check_combined_hidden_layers``: the layers depend on the family, what combines them does not.

    Args:
        families: all families of models.
        examples: families whose layers are combined in every way.
    """
    others: tuple[Combine, ...] = ("concat", "attention")
    return [*((name, "sum") for name in families), *((name, combine) for name in examples for combine in others)]


def encode(encoder: PretrainedEncoder, values: Sequence[Any]) -> Encoded:
    with torch.no_grad():
        return encoder.eval()(**encoder.processor(values))


def check_shapes(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    out = encode(encoder, values)
    assert out.tokens.shape == (len(values), out.mask.shape[1], encoder.dim)
    assert out.embedding.shape == (len(values), encoder.dim)
    assert out.mask.dtype == torch.bool
    assert out.mask.any(-1).all()
    assert not out.tokens[~out.mask].any()
    assert out.tokens.isfinite().all()
    assert out.tokens.std() > 1e-3


def check_batch_independence(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    """A row in a batch, padded to the longest, is what it is alone."""
    together = encode(encoder, values)
    for row, value in enumerate(values):
        alone = encode(encoder, [value])
        real = together.mask[row]
        assert int(real.sum()) == int(alone.mask.sum())
        torch.testing.assert_close(together.tokens[row][real], alone.tokens[0][alone.mask[0]], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(together.embedding[row], alone.embedding[0], rtol=1e-4, atol=2e-5)
    check_all_rows(encoder, values)


def check_all_rows(encoder: Encoder, values: Sequence[Any]) -> None:
    """With the last input missing, encoding all rows gives what encoding the others gives; nothing stands for it."""
    core = FusionCore({"input": encoder.eval()}, lambda dims: Mean(dims, 2, dim=8))
    present = {"input": torch.arange(len(values)) < len(values) - 1}
    rows = encoder.processor(values[:-1])
    filled = encoder.processor([*values[:-1], encoder.processor.placeholder()])
    with torch.no_grad():
        (found,) = core.encode_all({"input": filled}, present).values()
        (expected,) = core.encode_present({"input": rows}, present).values()
    width = expected.mask.shape[1]
    assert not found.mask[-1].any()
    assert not found.mask[:, width:].any()
    assert torch.equal(found.mask[:, :width], expected.mask)
    torch.testing.assert_close(found.tokens[:, :width], expected.tokens, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-4, atol=2e-5)
    assert not found.embedding[-1].any()


def check_checkpoint_files(kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any], tmp_path: Path) -> None:
    """Arguments, files and weights build the same encoder, and build it once more, with no folder left."""
    home = tmp_path / "home"
    shutil.copytree(folder, home)
    args = {"pretrained": str(home), "weights": True, "pooling": "max"}
    encoder = kind(**args)
    encoder.load_pretrained()
    shutil.rmtree(home)
    assert not any(name.endswith((".safetensors", ".bin")) for name in encoder.files())
    for generation in range(2):
        carried = tmp_path / f"carried{generation}"
        carried.mkdir()
        for name, content in encoder.files().items():
            (carried / name).write_bytes(content)
        again = kind.from_files(encoder.init_args, str(carried))
        shutil.rmtree(carried)
        again.load_state_dict(encoder.state_dict())
        assert again.init_args == args
        assert again.pretrained_weights
        before, after = encode(encoder, values), encode(again, values)
        torch.testing.assert_close(after.tokens, before.tokens, rtol=0, atol=0)
        torch.testing.assert_close(after.embedding, before.embedding, rtol=0, atol=0)
        encoder = again


def check_gradients(encoder: PretrainedEncoder, values: Sequence[Any], head: str) -> None:
    """Each trainable parameter gets a gradient, whether a head reads the tokens or the embedding."""
    encoder = copy.deepcopy(encoder).train()  # training moves the running statistics of the one that others test
    out = getattr(encoder(**encoder.processor(values)), head)
    (out * torch.randn_like(out)).sum().backward()
    lost = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not lost
    learning = [p.grad.abs().sum() for p in encoder.parameters() if p.requires_grad and p.grad is not None]
    assert sum(bool(total > 0) for total in learning) > len(learning) / 2


def check_bfloat16(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    batch = encoder.eval().processor(values)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder(**batch)
    assert out.tokens.isfinite().all()
    exact = encode(encoder, values)
    assert torch.cosine_similarity(out.embedding.float(), exact.embedding, dim=-1).min() > 0.9


def check_freeze_all(kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any]) -> None:
    encoder = kind(str(folder), freeze="all")  # as it was built: Lightning does not switch modes when training starts
    batch = encoder.processor(values)
    first = encoder(**batch)
    torch.testing.assert_close(encoder.train()(**batch).tokens, first.tokens, rtol=0, atol=0)
    torch.testing.assert_close(encoder.eval()(**batch).tokens, first.tokens, rtol=0, atol=0)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert first.tokens.grad_fn is None
    assert first.embedding.grad_fn is None
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.testing.assert_close(encoder(**batch).tokens, first.tokens, rtol=0, atol=0)  # no dropout
    for key, value in encoder.state_dict().items():  # no running statistics
        assert torch.equal(value, before[key]), key


def check_freeze_blocks(
    kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any], tops: Sequence[str]
) -> None:
    """One block frozen: it and what lies below it stay, the last block and what lies above it learn."""
    encoder = kind(str(folder), freeze=1)
    batch = encoder.processor(values)
    out = encoder(**batch).tokens
    (out * torch.randn_like(out)).sum().backward()
    learning = {name for name, p in encoder.model.named_parameters() if p.requires_grad}
    stack, blocks = encoder._find_blocks()
    assert not any(name.startswith(f"{stack}.0.") for name in learning)
    assert any(name.startswith(f"{stack}.{len(blocks) - 1}.") for name in learning)
    assert all(name.startswith((f"{stack}.", *tops)) for name in learning), learning
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    modules = dict(encoder.model.named_modules())
    assert not modules[f"{stack}.0"].training
    assert modules[f"{stack}.{len(blocks) - 1}"].training
    frozen = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.requires_grad]
    assert not any(norm.training for norm in frozen)
    with pytest.raises(UserError, match=rf"freeze: 99 is not between 0 and the {len(blocks)} blocks"):
        kind(str(folder), freeze=99)


def check_hidden_layers_errors(kind: type[PretrainedEncoder], folder: Path) -> None:
    with pytest.raises(UserError, match="hidden_layers: 50 is not among"):
        kind(str(folder), hidden_layers=[50], combine="sum")
    with pytest.raises(UserError, match=r"hidden_layers: .* also needs combine, one of concat, sum"):
        kind(str(folder), hidden_layers=[0])
    with pytest.raises(UserError, match="combine: sum also needs hidden_layers, some of 0 to"):
        kind(str(folder), combine="sum")


def check_combined_hidden_layers(
    kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any], combine: Combine
) -> None:
    """All checks pass for the combination of several layers, and no unused parameter waits for a gradient."""
    for hidden_layers in [[0, -1], [0, 1]] if combine == "sum" else [[0, -1]]:  # once without the last block
        encoder = kind(str(folder), hidden_layers=hidden_layers, combine=combine)
        encoder.load_pretrained()
        check_shapes(encoder, values)
        check_batch_independence(encoder, values)
        check_gradients(encoder, values, "tokens")
        out = encode(encoder, values)
        assert (out.layer_weights is not None) == (combine == "attention")
        if out.layer_weights is not None:
            assert out.layer_weights.shape == (len(values), 2)
            torch.testing.assert_close(out.layer_weights.sum(-1), torch.ones(len(values)))


def check_processor_pickles(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    arrived = pickle.loads(pickle.dumps(encoder.processor))
    assert arrived.reads_files == encoder.processor.reads_files
    for key, tensor in encoder.processor(values).items():
        assert torch.equal(arrived(values)[key], tensor)
