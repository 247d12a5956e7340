"""Collate samples into a batch, with the processor of each input, in the workers of the data loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fusion_pl.data.rows import LoadError
from fusion_pl.processors import Processor
from fusion_pl.types import Batch, Encoded, Sample, UserError, hash_ids


class Collate:
    """Collate samples into a padded batch; missing inputs are not processed.

    Args:
        processors: dictionary from input name to its processor.
        training: whether the processors crop at random.
        dropout: dictionary from input name to the probability of dropping it from a sample.
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
        """Collate B samples. Any input may be missing; a sample with a target has at least one input.

        Raises:
            LoadError: if a processor refuses a value, or a sample with a target has no input.
        """
        for sample in samples:
            if sample.target is not None and self.processors.keys().isdisjoint(sample.inputs):
                names = ", ".join(self.processors)
                raise LoadError(f"the sample {sample.id!r} has none of the model's inputs ({names}): leave it out")
        samples = [self._drop_inputs(sample) for sample in samples] if self.dropout else samples
        targets = [sample.target for sample in samples if sample.target is not None]
        return Batch(
            inputs={name: self._process_input(name, samples) for name in self.processors},
            present={name: torch.tensor([name in sample.inputs for sample in samples]) for name in self.processors},
            target=torch.tensor(targets) if len(targets) == len(samples) else None,
            ids=[sample.id for sample in samples],
            bad_files=[sample.bad_files for sample in samples],
            id_hashes=hash_ids([sample.id for sample in samples]),
        )

    def _drop_inputs(self, sample: Sample) -> Sample:
        """Drop inputs at random; if that would drop all of them, keep a random one."""
        names = list(sample.inputs)
        draws = torch.rand(len(names)).tolist()
        remaining = [name for name, draw in zip(names, draws, strict=True) if draw >= self.dropout.get(name, 0.0)]
        if names and not remaining:
            remaining = [names[int(torch.randint(len(names), ()))]]
        return replace(sample, inputs={name: sample.inputs[name] for name in remaining})

    def _process_input(self, name: str, samples: Sequence[Sample]) -> dict[str, Tensor] | Encoded:
        processor = self.processors[name]
        present = [sample for sample in samples if name in sample.inputs]
        values = [sample.inputs[name] for sample in present] or [processor.placeholder()]
        return process_values(processor, name, values, [sample.id for sample in present], self.training)


def process_values(
    processor: Processor, name: str, values: Sequence[Any], ids: Sequence[str], training: bool = False
) -> dict[str, Tensor] | Encoded:
    """Process the values of an input.

    Args:
        processor: processor of the input.
        name: name of the input.
        values: opened values.
        ids: ids of their samples.
        training: whether the processor crops at random.

    Raises:
        LoadError: if the processor refuses a value.
    """
    try:
        return processor(values, training=training)
    except UserError as error:
        raise LoadError(f"input {name!r} of the samples {', '.join(ids)}: {error}") from error
