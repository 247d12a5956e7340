"""What every pretrained encoder promises, written once."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusion_pl.encoders.depth import Combine
from fusion_pl.encoders.pretrained import PretrainedEncoder
from fusion_pl.types import Encoded, UserError


def encode(encoder: PretrainedEncoder, values: Sequence[Any]) -> Encoded:
    with torch.no_grad():
        return encoder.eval()(**encoder.processor(values))


def has_right_shapes(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    out = encode(encoder, values)
    assert out.tokens.shape == (len(values), out.mask.shape[1], encoder.dim)
    assert out.pooled.shape == (len(values), encoder.dim)
    assert out.mask.dtype == torch.bool
    assert out.mask.any(-1).all()
    assert not out.tokens[~out.mask].any()
    assert out.tokens.isfinite().all()
    assert out.tokens.std() > 1e-3


def ignores_neighbours(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    """A row in a batch, padded to the longest, is what it is alone."""
    together = encode(encoder, values)
    for row, value in enumerate(values):
        alone = encode(encoder, [value])
        real = together.mask[row]
        assert int(real.sum()) == int(alone.mask.sum())
        torch.testing.assert_close(together.tokens[row][real], alone.tokens[0][alone.mask[0]], rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], rtol=1e-4, atol=2e-5)


def survives_its_folder(kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any], tmp_path: Path) -> None:
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
        torch.testing.assert_close(after.pooled, before.pooled, rtol=0, atol=0)
        encoder = again


def trains_every_parameter(encoder: PretrainedEncoder, values: Sequence[Any], head: str) -> None:
    """Each parameter that learns gets a gradient, whether a head looks at the tokens or at the vector."""
    encoder = copy.deepcopy(encoder).train()  # training moves the running statistics of the one that others test
    out = getattr(encoder(**encoder.processor(values)), head)
    (out * torch.randn_like(out)).sum().backward()
    lost = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not lost
    learning = [p.grad.abs().sum() for p in encoder.parameters() if p.requires_grad and p.grad is not None]
    assert sum(bool(total > 0) for total in learning) > len(learning) / 2


def stays_finite_in_bfloat16(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    batch = encoder.eval().processor(values)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder(**batch)
    assert out.tokens.isfinite().all()
    exact = encode(encoder, values)
    assert torch.cosine_similarity(out.pooled.float(), exact.pooled, dim=-1).min() > 0.9


def freezes_wholly(kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any]) -> None:
    encoder = kind(str(folder), freeze="all")  # as it was built: Lightning does not switch modes when training starts
    batch = encoder.processor(values)
    first = encoder(**batch)
    torch.testing.assert_close(encoder.train()(**batch).tokens, first.tokens, rtol=0, atol=0)
    torch.testing.assert_close(encoder.eval()(**batch).tokens, first.tokens, rtol=0, atol=0)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert first.tokens.grad_fn is None
    assert first.pooled.grad_fn is None
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.testing.assert_close(encoder(**batch).tokens, first.tokens, rtol=0, atol=0)  # no dropout
    for key, value in encoder.state_dict().items():  # no running statistics
        assert torch.equal(value, before[key]), key


def freezes_the_bottom(kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any], tops: Sequence[str]) -> None:
    """One block frozen: it and what lies below it stay, the last block and what lies above it learn."""
    encoder = kind(str(folder), freeze=1)
    batch = encoder.processor(values)
    out = encoder(**batch).tokens
    (out * torch.randn_like(out)).sum().backward()
    learning = {name for name, p in encoder.model.named_parameters() if p.requires_grad}
    stack, blocks = encoder._blocks()
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


def shows_levels(kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any]) -> None:
    encoder = kind(str(folder), levels=[0, -1])
    out = encode(encoder, values)
    assert len(out.levels) == 2
    assert all(level.shape[0] == len(values) and level.dim() == 3 for level in out.levels)
    assert out.levels[0].shape != out.levels[1].shape or not torch.equal(out.levels[0], out.levels[1])
    with pytest.raises(UserError, match="levels: 50 is not among"):
        kind(str(folder), levels=[50])


def combines_levels(kind: type[PretrainedEncoder], folder: Path, values: Sequence[Any], combine: Combine) -> None:
    """All promises hold for what is made of several depths, and nothing that is left unused waits for a gradient."""
    for levels in [[0, -1], [0, 1]] if combine == "sum" else [[0, -1]]:  # once without the last block
        encoder = kind(str(folder), levels=levels, combine=combine)
        encoder.load_pretrained()
        has_right_shapes(encoder, values)
        ignores_neighbours(encoder, values)
        trains_every_parameter(encoder, values, "tokens")
        out = encode(encoder, values)
        assert out.levels == ()
        assert (out.depth is not None) == (combine == "attention")
        if out.depth is not None:
            assert out.depth.shape == (len(values), 2)
            torch.testing.assert_close(out.depth.sum(-1), torch.ones(len(values)))
    with pytest.raises(UserError, match=f"combine: {combine} needs to know which depths: give levels"):
        kind(str(folder), combine=combine)


def travels_to_workers(encoder: PretrainedEncoder, values: Sequence[Any]) -> None:
    arrived = pickle.loads(pickle.dumps(encoder.processor))
    assert arrived.kind == encoder.processor.kind
    for key, tensor in encoder.processor(values).items():
        assert torch.equal(arrived(values)[key], tensor)
