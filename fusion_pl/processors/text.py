"""Base class of the processors of texts."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from fusion_pl.processors.base import Processor, describe_type
from fusion_pl.types import UserError


class TextProcessor(Processor):
    """Base class of the processors of texts, whose opened values are ``str``."""

    def open(self, value: Any, training: bool = False) -> str:
        r"""Return a text, or a number or boolean as text, as tables have it.

        Raises:
            UserError: for another type, or half surrogate pairs (``\ud800``), which UTF-8 cannot encode.
        """
        del training
        if isinstance(value, (Real, np.bool_)):
            return str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)
        if not isinstance(value, str):
            raise UserError(f"a text input takes a str or a number, got {describe_type(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text contains {value[error.start]!a}, which is not a character: remove it") from error
        return value

    def estimate_length(self, value: Any) -> float:
        """Return the number of characters."""
        return float(len(value)) if isinstance(value, str) else 0.0

    def placeholder(self) -> str:
        """Return an empty text."""
        return ""
