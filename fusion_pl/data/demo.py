"""Data modules of the demo data sets and of the real data set, whose files are written before the first use."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.data import ask, keypad, street
from fusion_pl.data.digits import digits_dataset
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.synthetic import MANIFEST, SyntheticDataset


class _DemoData(ManifestData):
    """Base of the data modules that write their data set in ``prepare_data``."""

    def __init__(self, folder: str, inputs: dict[str, str] | None, **kwargs: Any) -> None:
        super().__init__(
            manifest=os.path.join(folder, MANIFEST),
            inputs={**(inputs or {})},
            classes=list(self.dataset.classes),
            label="label",
            root=folder,
            val_fraction=0.15,
            test_fraction=0.15,
            **kwargs,
        )

    @property
    @abstractmethod
    def dataset(self) -> SyntheticDataset:
        """The data set that is written."""

    def prepare_data(self) -> None:
        """Write the data set, unless the folder already contains it; called in one process per machine.

        Raises:
            UserError: if the folder contains other files or cannot be written, or if a source cannot be downloaded.
        """
        self.dataset.write(self.root)


class Keypad(_DemoData):
    """Keys of a telephone as ``text`` (number words with typos), ``image`` (digits) and ``audio`` (tone pairs).

    The 3,000 samples have fixed splits and are generated before the first use. One input alone allows an accuracy of
    about 80 %, all three inputs nearly 100 %.

    Args:
        folder: folder of the data set.
        inputs: dictionary from input name to ``text``, ``image`` or ``audio``, if the model uses other names.
        kwargs: arguments of ``FusionData``.
    """

    dataset = keypad.KEYPAD

    def __init__(self, folder: str = "data/keypad", inputs: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(folder=folder, inputs=inputs, **kwargs)


class Digits(_DemoData):
    """A digit as a word between random letters (``text``), as handwriting (``image``) and as a recording (``audio``).

    3,000 samples of real data, made before the first use from the Free Spoken Digit Dataset and MNIST, which are
    downloaded (27 MB) unless there are local copies. 2,000 samples of four speakers are train, 500 of another one
    val and 500 of a sixth one test; no recording and no picture is in two samples. Text and image are each missing from
    15 % of the samples, audio from 10 %.

    Args:
        folder: folder of the data set.
        sources: folder of the downloads, or with local copies of them: an archive of the Free Spoken Digit Dataset
            1.0.10, packed or not, and the four files of MNIST. What it lacks is downloaded.
        inputs: dictionary from input name to ``text``, ``image`` or ``audio``, if the model uses other names.
        kwargs: arguments of ``FusionData``.
    """

    def __init__(
        self,
        folder: str = "data/digits",
        sources: str = "data/digits-sources",
        inputs: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.sources = sources
        super().__init__(folder=folder, inputs=inputs, **kwargs)

    @property
    def dataset(self) -> SyntheticDataset:
        """The data set that is written from the sources."""
        return digits_dataset(self.sources)


class Ask(_DemoData):
    """A question (``text``) about an image of two objects (``image``), and a tone (``audio``) that selects one of them.

    The 10,000 samples have fixed splits and are generated before the first use. All three inputs together determine the
    answer. ``setup`` prints the highest accuracy that one or two inputs allow.

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
        max_accuracy = ask.bayes_accuracy({column for column in self.columns.values() if isinstance(column, str)})
        rank_zero_info(
            f"The inputs of this model allow an accuracy of at most {max_accuracy:.1%} on the Ask data (one input at "
            f"most {best_one:.1%}, two at most {best_two:.1%}, all three 100%)"
        )


class Street(_DemoData):
    """A caption (``text``), a picture (``image``) and a recording (``audio``) of a street, with several labels.

    The labels are those of bell, bus, market, rain, siren and tree that at least one input shows; the task must be
    ``MultiLabel``. Each input shows three of them. The 3,000 samples have fixed splits and are generated before the
    first use. ``setup`` prints the largest share of samples of which all labels can be right.

    Args:
        folder: folder of the data set.
        inputs: dictionary from input name to ``text``, ``image`` or ``audio``, if the model uses other names.
        kwargs: arguments of ``FusionData``.
    """

    dataset = street.STREET

    def __init__(self, folder: str = "data/street", inputs: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(folder=folder, inputs=inputs, **kwargs)

    def setup(self, stage: str) -> None:
        """Check the manifest, and print the largest exact match that the model's inputs allow."""
        super().setup(stage)
        ceilings = ", ".join(f"{name} {street.best_exact_match({name}):.1%}" for name in street.INPUTS)
        found = street.best_exact_match({column for column in self.columns.values() if isinstance(column, str)})
        best_two = max(street.best_exact_match(set(street.INPUTS) - {name}) for name in street.INPUTS)
        rank_zero_info(
            f"The inputs of this model allow an exact match of at most {found:.1%} on the Street data (alone: "
            f"{ceilings}; two inputs at most {best_two:.1%}, all three 100%)"
        )
