"""A corruption of opened values in five severities, and of which input it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fusion_pl.data.order import temporary_seed
from fusion_pl.tables.hashes import stable_hash

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """A change of the opened values of an input, such as noise, with a level for each of the severities 1 to 5.

    Attributes:
        name: name of the corruption.
        unit: quantity and unit of the levels.
        levels: levels of the severities, from the mildest on.
        change: function from an opened value and a level to the changed value, which leaves the value as it is and
            draws random numbers from torch's global generator only. The random numbers do not depend on the level, so
            that a higher severity changes the same words or pixels, and more of them.
    """

    name: str
    unit: str
    levels: tuple[float, float, float, float, float]
    change: Callable[[Any, float], Any]

    def apply(self, value: Any, severity: int, seed: str) -> Any:
        """Return the value with a severity of 0 (the same object) to 5; equal seeds give equal values."""
        if severity == 0:
            return value
        with temporary_seed(stable_hash(f"corruption {self.name} {seed}")):
            return self.change(value, self.levels[severity - 1])


class Sweep(NamedTuple):
    """A corruption of one input, which is measured with all severities.

    Attributes:
        input: name of the input.
        corruption: corruption of its values.
    """

    input: str
    corruption: Corruption
