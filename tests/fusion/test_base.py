from __future__ import annotations

import inspect

import pytest

from fusion_pl.types import UserError

from .test_contract import HEADS

CASES = [
    pytest.param(head, name, 1.0 if name == "dropout" else 0, id=f"{head.__name__}-{name}")
    for head in HEADS
    for name, one in inspect.signature(head).parameters.items()
    if type(one.default) is int or name == "dropout"
]


@pytest.mark.parametrize(("head", "name", "value"), CASES)
def test_every_head_refuses_invalid_sizes(head, name, value, dims):
    with pytest.raises(UserError, match=rf"^{head.__name__} was given {name}={value}\b"):
        head(dims, num_classes=4, **{name: value})
