"""The checks of annotations while tests run."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from fusion_pl.layers import keep_rows
from tests.annotations import check_annotations

check = check_annotations(typechecker=None)


@check
@dataclass
class Pair:
    left: Float[Tensor, "B D"]
    right: Float[Tensor, "B D"]

    @property
    @check
    def number(self) -> int:
        return self.left.tolist()

    @classmethod
    @check
    def of(cls, one: Float[Tensor, "B D"]) -> Pair:
        return cls(one, one)


@check
def sums(pair: Pair, values: Float[Tensor, "B D"], dim: int = 1) -> Float[Tensor, " B"]:
    return values.sum(dim)


def test_what_fits_is_accepted():
    pair = Pair.of(torch.ones(2, 3))
    assert sums(pair, torch.ones(2, 3)).tolist() == [3.0, 3.0]
    assert sums(pair, torch.ones(4, 5)).shape == (4,)  # another call has other dimensions


@pytest.mark.parametrize(
    "call",
    [
        lambda: sums(Pair.of(torch.ones(2, 3)), torch.ones(2, 3), dim="1"),
        lambda: sums(Pair.of(torch.ones(2, 3)), torch.ones(2, 3), dim=0),  # as many sums as columns
        lambda: sums(Pair.of(torch.ones(2, 3)), torch.ones(2)),
        lambda: sums([], torch.ones(2, 3)),
        lambda: Pair(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: Pair.of(torch.ones(2, 3)).number,
        lambda: keep_rows([], torch.ones(2)),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()
