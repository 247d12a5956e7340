"""Limits on what a client may send."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fusion_pl.types import UserError


@dataclass(frozen=True)
class Limits:
    """Limits on what a client may send; a request or a sample above one of them is refused with one sentence.

    Args:
        megabytes: size of the body of a request, in MB (10^6 bytes).
        upload_seconds: time in which the body of a request has to arrive.
        samples: number of samples of a request.
        values: values of a JSON body, such as the numbers of vectors.
        characters: length of a text; the encoder cuts off what exceeds its number of tokens.
        megapixels: size of an image, in 10^6 pixels.
        seconds: length of a sound.
        opened_megabytes: megabytes of opened images and sounds per process; further requests wait until there is room.
            Explanations have as much again.
    """

    megabytes: float = 16.0
    upload_seconds: float = 30.0
    samples: int = 64
    values: int = 200_000
    characters: int = 100_000
    megapixels: float = 20.0
    seconds: float = 300.0
    opened_megabytes: float = 1000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise UserError(f"--limits.{field.name} is {value}, expected a number above 0")

    @property
    def bytes(self) -> int:
        """Largest number of bytes of a body."""
        return int(self.megabytes * 1e6)
