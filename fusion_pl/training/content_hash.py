"""Hashes of values that depend on their content alone: not on shared objects, memory layouts or devices."""

from __future__ import annotations

import hashlib
import io
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_pl.data.feature_shards import KEY_BYTES


def hash_content(value: Any) -> bytes:
    """Return a hash of a text, or of any value that can be pickled; of different types, the hashes are different.

    Example:
        >>> text = "two" + "words"
        >>> hash_content((text, text)) == hash_content(("twowords", "two" + text[3:]))
        True
    """
    if isinstance(value, str):
        content = b"str" + value.encode("utf-8", "surrogatepass")
    else:
        try:
            content = _pickle(value, repeat=True)
        except ValueError:  # the value contains itself
            content = _pickle(value, repeat=False)
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the numbers of a tensor."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _pickle(value: Any, repeat: bool) -> bytes:
    file = io.BytesIO()
    pickler = _ContentPickler(file, protocol=5)
    pickler.fast = repeat  # else the second use of an object refers to the first, and an equal object does not
    pickler.dump(value)
    return file.getvalue()


class _ContentPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Replace tensors and arrays, whose pickles contain addresses and memory layouts."""
        if isinstance(value, Tensor):
            return Tensor, (str(value.dtype), tuple(value.shape), tensor_bytes(value))
        if isinstance(value, np.ndarray):
            numbers = value.tolist() if value.dtype.hasobject else value.tobytes()
            return np.ndarray, (str(value.dtype), value.shape, numbers)
        return NotImplemented
