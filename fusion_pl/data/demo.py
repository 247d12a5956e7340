"""The demo data sets as data modules."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.data import ask, keypad
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.synthetic import MANIFEST, SyntheticDataset


class _DemoData(ManifestData):
    """Generate a data set in ``prepare_data``; options that depend on its files have fixed values."""

    dataset: ClassVar[SyntheticDataset]

    def __init__(self, folder: str, inputs: dict[str, str] | None, **kwargs: Any) -> None:
        super().__init__(
            manifest=os.path.join(folder, MANIFEST),
            inputs=inputs,
            classes=list(self.dataset.classes),
            label="label",
            split="split",
            root=folder,
            val_fraction=0.15,
            test_fraction=0.15,
            **kwargs,
        )

    def prepare_data(self) -> None:
        """Write the data set, unless the folder already contains it; called in one process per machine.

        Raises:
            UserError: if the folder contains other files or cannot be written.
        """
        self.dataset.write(self.root)


class Keypad(_DemoData):
    """Keys of a telephone as ``text`` (number words with typos), ``image`` (digits) and ``audio`` (tone pairs).

    3,000 samples with a fixed split, generated before the first use. One input alone allows an accuracy of
    about 80 %, all three inputs nearly 100 %.

    Args:
        folder: folder of the data set.
        inputs: dictionary from input name to ``text``, ``image`` or ``audio``, if the model uses other names.
        kwargs: arguments of ``FusionData``.
    """

    dataset = keypad.KEYPAD

    def __init__(self, folder: str = "data/keypad", inputs: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(folder=folder, inputs=inputs, **kwargs)


class Ask(_DemoData):
    """A question (``text``) about an image of two objects (``image``), and a tone (``audio``) that selects one of them.

    10,000 samples with a fixed split, generated before the first use. One or two inputs cannot exceed
    the accuracies that are printed at the start; all three inputs determine the answer.

    Args:
        folder: folder of the data set.
        inputs: dictionary from input name to ``text``, ``image`` or ``audio``, if the model uses other names.
        kwargs: arguments of ``FusionData``.
    """

    dataset = ask.ASK

    def __init__(self, folder: str = "data/ask", inputs: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(folder=folder, inputs=inputs, **kwargs)

    def setup(self, stage: str) -> None:
        """Check the manifest, and print the highest accuracy that the model's inputs allow."""
        super().setup(stage)
        best_one = max(ask.bayes_accuracy({name}) for name in ask.INPUTS)
        best_two = max(ask.bayes_accuracy(set(ask.INPUTS) - {name}) for name in ask.INPUTS)
        max_accuracy = ask.bayes_accuracy(set(self.columns.values()))
        rank_zero_info(
            f"Ask: the model's inputs allow an accuracy of at most {max_accuracy:.1%} (one input {best_one:.1%}, "
            f"two {best_two:.1%}, all three 100%)"
        )
