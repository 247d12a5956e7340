"""The demo data as data modules: written where they are first used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.data import ask, keypad
from fusion_pl.data.manifest import ManifestData


class _Demo(ManifestData):
    """What the files fix is given here, so that the command does not offer it."""

    def __init__(self, manifest: Path, inputs: dict[str, str] | None, classes: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(
            manifest=str(manifest),
            inputs=inputs,
            classes=list(classes),
            label="label",
            split="split",
            root=str(manifest.parent),
            val_fraction=0.15,
            test_fraction=0.15,
            **kwargs,
        )


class Keypad(_Demo):
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
        super().__init__(manifest=keypad.write_keypad(folder), inputs=inputs, classes=keypad.CLASSES, **kwargs)


class Ask(_Demo):
    """A question (``text``) about a picture of two objects (``image``), and a tone (``audio``) that says which one.

    10,000 samples with a fixed split, written in some seconds when the object is built, unless the folder holds them.
    No input and no two of them can answer more than the ceilings that are told when it is set up; all three can always.

    Args:
        folder: where they are, or are written to.
        inputs: name of the input -> ``text``, ``image`` or ``audio``, where the model uses other names.
        kwargs: see ``FusionData``.

    Raises:
        UserError: where the folder holds something else or cannot be written.
    """

    def __init__(self, folder: str = "data/ask", inputs: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(manifest=ask.write_ask(folder), inputs=inputs, classes=ask.CLASSES, **kwargs)

    def setup(self, stage: str) -> None:
        """Check the manifest, and say how far the model's inputs can get."""
        super().setup(stage)
        one = max(ask.ceiling({name}) for name in ask.INPUTS)
        two = max(ask.ceiling(set(ask.INPUTS) - {name}) for name in ask.INPUTS)
        this = ask.ceiling(set(self.columns.values()))
        rank_zero_info(
            f"Ask: the model's inputs can answer at most {this:.1%} (one input alone {one:.1%}, two {two:.1%}, all "
            "three 100%; counted over all scenes)"
        )
