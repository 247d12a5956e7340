"""From samples to a batch: each input's processor runs here, in the loader's worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fusion_pl.data.media import blank
from fusion_pl.data.rows import LoadError
from fusion_pl.types import Batch, Processor, Sample, UserError


class Collate:
    """Joins samples into a batch, and computes nothing for an input that a sample lacks.

    Args:
        processors: name of the input -> its processor.
        training: whether the processors crop at random.
    """

    def __init__(self, processors: Mapping[str, Processor], training: bool = False) -> None:
        self.processors = dict(processors)
        self.training = training

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch.

        Args:
            samples: B of them, in the order of the batch; any of them may lack any input, or all.

        Raises:
            LoadError: where a processor refuses a value; names the input and the samples.
        """
        targets = [sample.target for sample in samples if sample.target is not None]
        return Batch(
            inputs={name: self._process(name, samples) for name in self.processors},
            present={name: torch.tensor([name in sample.inputs for sample in samples]) for name in self.processors},
            target=torch.tensor(targets) if len(targets) == len(samples) else None,
            ids=[sample.id for sample in samples],
            bad_files=[sample.bad_files for sample in samples],
        )

    def _process(self, name: str, samples: Sequence[Sample]) -> dict[str, Tensor]:
        processor = self.processors[name]
        values = [sample.inputs[name] for sample in samples if name in sample.inputs]
        try:
            return processor(values or [blank(processor.kind)], training=self.training)
        except UserError as error:
            ids = ", ".join(sample.id for sample in samples if name in sample.inputs)
            raise LoadError(f"input {name!r} of the samples {ids}: {error}") from error
