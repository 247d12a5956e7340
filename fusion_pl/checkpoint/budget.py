"""Limit the memory that building a model from a checkpoint may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fusion_pl.types import UserError

# The limits allow for metrics, and for modules that are built and discarded, such as the text model of CLAP.
BYTES_PER_VALUE, EXTRA_BYTES = 4 * 8, 2**26
TENSORS_PER_TENSOR, EXTRA_TENSORS = 20, 2000


class MemoryBudget(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raise a ``UserError`` before building a model allocates much more memory than the weights of its checkpoint need.

    Example:
        >>> with MemoryBudget([torch.zeros(10)]):
        ...     torch.nn.Linear(100_000, 100_000)
        Traceback (most recent call last):
        fusion_pl.types.UserError: ...
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_bytes = EXTRA_BYTES + BYTES_PER_VALUE * sum(tensor.numel() for tensor in weights)
        self.max_tensors = EXTRA_TENSORS + TENSORS_PER_TENSOR * len(weights)
        self.num_bytes = self.num_tensors = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check the size of the results of an operation before running it."""
        kwargs = kwargs or {}
        if not any(result.alias_info for result in func._schema.returns):  # neither a view nor an in-place operation
            size = _result_size(func, args, kwargs)
            if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):  # parameters and buffers
                self.num_bytes += size
                self.num_tensors += 1
            if max(size, self.num_bytes) > self.max_bytes or self.num_tensors > self.max_tensors:
                raise UserError("the config describes a larger model than the checkpoint has weights for")
        return func(*args, **kwargs)


def _result_size(func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    """Return the bytes of an operation's results, computed from shapes; 0 if the shapes depend on values."""
    args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = kwargs | {"device": torch.device("meta")}
    try:
        results = func(*args, **kwargs)
    except (NotImplementedError, RuntimeError):
        return 0
    return sum(leaf.nbytes for leaf in tree_leaves(results) if isinstance(leaf, Tensor))


def _to_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
