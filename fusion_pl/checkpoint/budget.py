"""Holds what a config asks for against the tensors that a checkpoint has, while the model is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fusion_pl.types import UserError

# Room for parts that are built and thrown away (CLAP's text tower is 4.5 times its audio tower), metrics, and examples.
BYTES_PER_NUMBER, BYTES_MORE = 4 * 8, 2**26
TENSORS_PER_TENSOR, TENSORS_MORE = 20, 2000


class Budget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses tensors, before they are made, that a model with these weights has no use for.

    Args:
        weights: of the model that is about to be built.

    Raises:
        UserError: inside the ``with`` block, where the sizes or the number of tensors cannot fit the weights.

    Example:
        >>> with Budget([torch.zeros(10)]):
        ...     torch.nn.Linear(100_000, 100_000)
        Traceback (most recent call last):
        fusion_pl.types.UserError: ...
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = BYTES_MORE + BYTES_PER_NUMBER * sum(one.numel() for one in weights)
        self.tensors = TENSORS_MORE + TENSORS_PER_TENSOR * len(weights)
        self.made_bytes = self.made_tensors = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Ask torch for the sizes of an operation's results first; then let it compute."""
        del types
        kwargs = kwargs or {}
        if not any(one.alias_info for one in func._schema.returns):  # views and operations in place make nothing
            needed = _size(func, args, kwargs)
            if not any(isinstance(one, Tensor) for one in tree_leaves((args, kwargs))):  # parameters and buffers stay
                self.made_bytes += needed
                self.made_tensors += 1
            if max(needed, self.made_bytes) > self.bytes or self.made_tensors > self.tensors:
                raise UserError("the config asks for a larger model than the checkpoint has weights for")
        return func(*args, **kwargs)


def _size(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Return how many bytes an operation's results take, from their shapes alone; 0 where that depends on values."""
    args, kwargs = tree_map_only(Tensor, _shape_only, (args, kwargs))
    if "device" in {one.name for one in func._schema.arguments}:
        kwargs = kwargs | {"device": torch.device("meta")}
    try:
        made = func(*args, **kwargs)
    except (NotImplementedError, RuntimeError):
        return 0
    return sum(one.nbytes for one in tree_leaves(made) if isinstance(one, Tensor))


def _shape_only(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
