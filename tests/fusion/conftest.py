"""Encoded inputs for heads: different dimensions and lengths, ragged masks, unusual names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fusion_pl.types import Encoded

DIMS = {"título": 6, "my photo": 10, "voice-2": 5}
LENGTHS = {"título": 4, "my photo": 6, "voice-2": 3}
Make = Callable[..., dict[str, Encoded]]


def make_inputs(present: list[list[int]], dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Encoded]:
    """Return random B samples of M inputs; ``present`` is a B x M table of 0 and 1. Padding is zero."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.tensor(present, dtype=torch.bool)
    inputs = {}
    for (name, dim), has in zip(list(DIMS.items())[: table.shape[1]], table.T, strict=True):
        length = LENGTHS[name]
        real_count = torch.randint(1, length + 1, (len(table), 1), generator=generator)
        mask = (torch.arange(length) < real_count) & has.unsqueeze(-1)
        tokens = torch.randn(len(table), length, dim, generator=generator, dtype=dtype)
        embedding = torch.randn(len(table), dim, generator=generator, dtype=dtype)
        inputs[name] = Encoded(
            tokens.masked_fill(~mask.unsqueeze(-1), 0), mask, embedding.masked_fill(~has.unsqueeze(-1), 0)
        )
    return inputs


@pytest.fixture
def make() -> Make:
    return make_inputs


@pytest.fixture
def dims() -> dict[str, int]:
    return dict(DIMS)
