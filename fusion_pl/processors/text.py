"""Base class of the processors of texts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np

from fusion_pl.processors.base import Processor, Span, describe_type
from fusion_pl.types import UserError

# One character of Chinese or Japanese, or the characters between two spaces.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


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

    def spans(self, value: str, limit: int = 64) -> list[Span]:
        """Return the characters of each word, with the spaces after it; several words each if there are too many.

        In Chinese and Japanese, which have no spaces, each character counts as a word, as in a text of one word.
        """
        starts = [match.start() for match in WORD.finditer(value)]
        if len(starts) == 1:
            starts = [*range(starts[0], len(value.rstrip()))]
        starts = starts[:: math.ceil(len(starts) / limit) or 1]
        return [((start, end),) for start, end in pairwise([*starts, len(value)])]

    def occlude(self, value: str, spans: Sequence[Span]) -> str:
        """Return the text without the characters of some spans."""
        kept, end = [], 0
        for ((start, stop),) in sorted(spans):
            kept.append(value[end : int(start)])
            end = int(stop)
        return "".join([*kept, value[end:]])

    def placeholder(self) -> str:
        """Return an empty text."""
        return ""

    def examples(self) -> list[str]:
        """Return a text without words and one with several."""
        return ["", "one two three"]
