"""Which inputs samples keep: subsets of the inputs, and inputs that are missing at a rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from fusion_pl.metrics import subsets
from fusion_pl.tables.hashes import stable_hashes

EXACT_INPUTS = 5  # with more inputs, only some of the subsets are measured
NUM_SUBSETS = 2**EXACT_INPUTS  # that are measured then
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Subset:
    """A subset of the inputs, as if no sample had the others.

    Attributes:
        names: names of the inputs.
    """

    names: tuple[str, ...]

    def keep(self, present: Bool[Tensor, "B M"], inputs: Sequence[str], ids: Sequence[str]) -> Bool[Tensor, "B M"]:
        """Return which of its inputs each sample keeps; a row may be all False, and the sample then does not count.

        Args:
            present: which of the inputs the samples have.
            inputs: names of the inputs.
            ids: ids of the samples.
        """
        del ids
        return present & torch.tensor([name in self.names for name in inputs])


@dataclass(frozen=True)
class MissingAtRandom:
    """Inputs that are missing at random; a sample that would lose all of its inputs keeps one of them.

    The random numbers depend on the seed, the sample and the input, but not on the rate, so that what is missing at a
    rate is also missing at a higher one. A sample keeps the input with the largest number, as in a training with
    ``data.input_dropout``.

    Attributes:
        rate: probability of an input to be missing.
        name: the only input that may be missing; None = each of them, independently.
        seed: seed of the random numbers.
    """

    rate: float
    name: str | None = None
    seed: int = 0

    def keep(self, present: Bool[Tensor, "B M"], inputs: Sequence[str], ids: Sequence[str]) -> Bool[Tensor, "B M"]:
        """Return which of its inputs each sample keeps, see ``Subset.keep``."""
        texts = (f"missing {self.seed} {sample} {name}" for sample in ids for name in inputs)
        draws = torch.from_numpy(stable_hashes(texts).reshape(len(ids), len(inputs)) / 2**63)
        may_be_missing = torch.tensor([self.name in (None, name) for name in inputs])
        kept = present & ~((draws < self.rate) & may_be_missing)
        last = draws.masked_fill(~present, -1.0).argmax(1, keepdim=True)
        lost = present.any(1) & ~kept.any(1)
        return kept.scatter(1, last, kept.gather(1, last) | lost.unsqueeze(1))


Selection = Subset | MissingAtRandom


def measured_subsets(inputs: Sequence[str], seed: int = 0) -> list[Subset]:
    """Return the non-empty subsets that are measured, all inputs last.

    With up to five inputs these are all. With more, they are the single inputs, the subsets without one input, all
    inputs, and random other subsets, 32 in total if there are not more already.
    """
    if len(inputs) <= EXACT_INPUTS:
        return [Subset(names) for names in subsets(inputs)]
    chosen = {*combinations(inputs, 1), *combinations(inputs, len(inputs) - 1), tuple(inputs)}
    rng = np.random.default_rng(seed)
    while len(chosen) < NUM_SUBSETS:
        members = rng.random(len(inputs)) < rng.random()
        if members.any():
            chosen.add(tuple(name for name, is_member in zip(inputs, members, strict=True) if is_member))
    order = {name: index for index, name in enumerate(inputs)}
    return [Subset(names) for names in sorted(chosen, key=lambda names: (len(names), [order[name] for name in names]))]


def missing_rates(inputs: Sequence[str], seed: int = 0) -> list[MissingAtRandom]:
    """Return the selections of the curves: every input at once and, of several inputs, each alone."""
    names = [None, *inputs] if len(inputs) > 1 else [None]
    return [MissingAtRandom(rate, name, seed) for name in names for rate in RATES]
