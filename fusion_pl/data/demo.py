"""The demo data as a data module: written where it is first used."""

from __future__ import annotations

from typing import Any

from fusion_pl.data.keypad import CLASSES, write_keypad
from fusion_pl.data.manifest import ManifestData


class Keypad(ManifestData):
    """Keys of a telephone as ``text`` (number words with typos), ``image`` (glyphs) and ``audio`` (tone pairs).

    3,000 samples with a fixed split, written in some seconds when the object is built, unless the folder holds them.
    Each input alone decides about four keys in five; together they decide nearly all.

    Args:
        folder: where they are, or are written to.
        inputs: name of the input -> ``text``, ``image`` or ``audio``, where the model uses other names.
        kwargs: see ``FusionData``.

    Raises:
        UserError: where the folder holds something else or cannot be written.
    """

    def __init__(self, folder: str = "data/keypad", inputs: dict[str, str] | None = None, **kwargs: Any) -> None:
        # What the files fix is given here, so that the command does not offer it.
        super().__init__(
            manifest=str(write_keypad(folder)),
            inputs=inputs,
            classes=list(CLASSES),
            label="label",
            split="split",
            root=folder,
            val_fraction=0.15,
            test_fraction=0.15,
            **kwargs,
        )
