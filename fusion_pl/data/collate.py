"""From samples to a batch: each input's processor runs here, in the loader's worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fusion_pl.data.media import placeholder
from fusion_pl.data.rows import LoadError
from fusion_pl.types import Batch, Processor, Sample, UserError, hash_ids


class Collate:
    """Joins samples into a batch, and computes nothing for an input that a sample lacks.

    Args:
        processors: name of the input -> its processor.
        training: whether the processors crop at random.
        dropout: name of the input -> probability that a sample that has it is treated as if it had not.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        training: bool = False,
        dropout: Mapping[str, float] | None = None,
    ) -> None:
        self.processors = dict(processors)
        self.training = training
        self.dropout = dict(dropout or {})

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make a batch.

        Args:
            samples: B of them, in the order of the batch; any of them may lack any input, and without a target all.

        Raises:
            LoadError: where a processor refuses a value, or a sample to learn from or to measure has no input; names
                the samples.
        """
        for sample in samples:
            if sample.target is not None and self.processors.keys().isdisjoint(sample.inputs):
                names = ", ".join(self.processors)
                raise LoadError(f"the sample {sample.id!r} has none of the model's inputs ({names}): leave it out")
        samples = [self._thinned(sample) for sample in samples] if self.dropout else samples
        targets = [sample.target for sample in samples if sample.target is not None]
        return Batch(
            inputs={name: self._process(name, samples) for name in self.processors},
            present={name: torch.tensor([name in sample.inputs for sample in samples]) for name in self.processors},
            target=torch.tensor(targets) if len(targets) == len(samples) else None,
            ids=[sample.id for sample in samples],
            bad_files=[sample.bad_files for sample in samples],
            id_hashes=hash_ids([sample.id for sample in samples]),
        )

    def _thinned(self, sample: Sample) -> Sample:
        """Drop inputs at random; where that would take all of them, one drawn at random stays."""
        names = list(sample.inputs)
        drawn = torch.rand(len(names)).tolist()
        kept = [name for name, draw in zip(names, drawn, strict=True) if draw >= self.dropout.get(name, 0.0)]
        if names and not kept:
            kept = [names[int(torch.randint(len(names), ()))]]
        return replace(sample, inputs={name: sample.inputs[name] for name in kept})

    def _process(self, name: str, samples: Sequence[Sample]) -> dict[str, Tensor]:
        processor = self.processors[name]
        values = [sample.inputs[name] for sample in samples if name in sample.inputs]
        try:
            return processor(values or [placeholder(processor.kind)], training=self.training)
        except UserError as error:
            ids = ", ".join(sample.id for sample in samples if name in sample.inputs)
            raise LoadError(f"input {name!r} of the samples {ids}: {error}") from error
