"""Corruptions of texts: typos, dropped words and swapped words."""

from __future__ import annotations

import torch

from fusion_pl.data.augment import Typos
from fusion_pl.evaluate.corruption import Corruption
from fusion_pl.processors.text import WORD


def add_typos(text: str, rate: float) -> str:
    """Replace, drop, double or swap characters, see ``fusion_pl.data.augment.Typos``.

    Args:
        text: text.
        rate: probability of a typo per character.
    """
    return Typos(rate).forward(text)


def drop_words(text: str, share: float) -> str:
    """Drop words at random; one word of a text always remains.

    Args:
        text: text; each character of Chinese and Japanese counts as a word.
        share: probability of a word to be dropped.
    """
    words = list(WORD.finditer(text))
    draws = torch.rand(len(words))
    dropped = [words[index] for index in (draws < share).nonzero().flatten().tolist()]
    if words and len(dropped) == len(words):
        del dropped[int(draws.argmax())]
    for word in reversed(dropped):
        end = word.end() + (text[word.end() : word.end() + 1] == " ")
        text = text[: word.start()] + text[end:]
    return text


def swap_words(text: str, share: float) -> str:
    """Swap words with the next one, from the first word on; the characters between words stay.

    Args:
        text: text; each character of Chinese and Japanese counts as a word.
        share: probability of a word to be swapped with the next one.
    """
    found = list(WORD.finditer(text))
    words = [match.group() for match in found]
    for index in (torch.rand(max(len(words) - 1, 0)) < share).nonzero().flatten().tolist():
        words[index : index + 2] = words[index + 1], words[index]
    pieces, end = [], 0
    for match, word in zip(found, words, strict=True):
        pieces += [text[end : match.start()], word]
        end = match.end()
    return "".join([*pieces, text[end:]])


TEXT_CORRUPTIONS = (
    Corruption("typos", "share of the characters", (0.02, 0.05, 0.1, 0.2, 0.3), add_typos),
    Corruption("dropped words", "share of the words", (0.1, 0.2, 0.3, 0.5, 0.7), drop_words),
    Corruption("swapped words", "share of the words", (0.1, 0.2, 0.4, 0.6, 0.8), swap_words),
)
