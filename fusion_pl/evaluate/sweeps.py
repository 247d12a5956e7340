"""Measure a model on samples with corrupted inputs, and without some of their inputs, in one pass over the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fusion_pl.data.collate import Collate, process_values
from fusion_pl.data.order import identity_collate
from fusion_pl.data.rows import LoadError, ManifestRows
from fusion_pl.data.workers import worker_options
from fusion_pl.evaluate.batch_scores import BatchScores
from fusion_pl.evaluate.corruption import SEVERITIES, Sweep
from fusion_pl.evaluate.missing import Selection
from fusion_pl.evaluate.parts import Arrays, Parts
from fusion_pl.predict import Predictor
from fusion_pl.processors import Processor
from fusion_pl.types import Batch, Sample

Severities = list[dict[str, Tensor]]  # processed values of one input, with each severity


class Outcomes(NamedTuple):
    """Calibrated logits of N samples.

    Attributes:
        present: whether the samples have each of the M inputs.
        clean: logits of the unchanged samples.
        selected: logits with each of the S selections of inputs.
        counted: whether a sample keeps an input in a selection.
        corrupted: logits with each of the W sweeps, severities 1 to 5; those of a sample without the input are those of
            the unchanged sample.
    """

    present: Bool[Tensor, "N M"]
    clean: Float[Tensor, "N L"]
    selected: Float[Tensor, "N S L"]
    counted: Bool[Tensor, "N S"]
    corrupted: Float[Tensor, "N W 5 L"]


@dataclass(frozen=True)
class RobustnessRun:
    """What is measured, and on which samples.

    Attributes:
        predictor: trained model.
        samples: samples of a table.
        rows: indices of the measured samples, which can be predicted.
        selections: selections of the inputs.
        sweeps: corruptions of the inputs.
        batch_size: number of samples per batch.
        num_workers: number of processes that open, corrupt and process the values.
        seed: seed of the corruptions.
    """

    predictor: Predictor
    samples: ManifestRows
    rows: Sequence[int]
    selections: Sequence[Selection]
    sweeps: Sequence[Sweep]
    batch_size: int = 32
    num_workers: int = 0
    seed: int = 0

    def measure(self, parts: Parts, console: Console) -> Outcomes:
        """Return the logits of all samples; a batch that is stored in ``parts`` is not computed again.

        Raises:
            LoadError: if a file cannot be read, or a processor refuses a value.
        """
        batches = [self.rows[start : start + self.batch_size] for start in range(0, len(self.rows), self.batch_size)]
        stored = {number: parts.load(_part_name(number)) for number in range(len(batches))}
        remaining = [number for number, arrays in stored.items() if arrays is None]
        data = _CorruptedBatches(
            self.samples, [batches[number] for number in remaining], self.predictor.processors, self.sweeps, self.seed
        )
        loader: DataLoader[Any] = DataLoader(
            data,
            batch_size=None,
            collate_fn=identity_collate,
            **worker_options(self.num_workers),
        )
        items = iter(track(loader, "Sweeps", total=len(data), console=console, transient=True, disable=not remaining))
        for number in remaining:
            stored[number] = arrays = self._measure_batch(items)
            parts.store(_part_name(number), arrays)
        for _ in items:  # ends the progress bar
            pass
        found = [arrays for arrays in stored.values() if arrays is not None]
        return Outcomes(
            *(torch.from_numpy(np.concatenate([arrays[name] for arrays in found])) for name in Outcomes._fields)
        )

    def _measure_batch(self, items: Iterator[Batch | Severities]) -> Arrays:
        """Return the fields of the ``Outcomes`` of the next batch."""
        batch = next(items)
        assert isinstance(batch, Batch)
        scores, names = BatchScores.encode(self.predictor, batch), list(self.predictor.processors)
        present = torch.stack([batch.present[name] for name in names], dim=1).cpu()
        kept = [selection.keep(present, names, batch.ids) for selection in self.selections]
        selected = [scores.of_selection(mask) for mask in kept]
        clean = scores.of_selection(present)
        corrupted = []
        for sweep in self.sweeps:
            severities = next(items)
            assert isinstance(severities, list)
            values = [scores.of_values(sweep.input, tensors) for tensors in severities]
            corrupted.append(torch.stack(values or [clean] * len(SEVERITIES), dim=1))
        empty = clean.new_zeros(len(clean), 0, len(SEVERITIES), clean.shape[1])
        fields = Outcomes(
            present=present,
            clean=clean,
            selected=torch.stack(selected, dim=1),
            counted=torch.stack([mask.any(1) for mask in kept], dim=1),
            corrupted=torch.stack(corrupted, dim=1) if corrupted else empty,
        )
        return {name: _to_array(value) for name, value in fields._asdict().items()}


class _CorruptedBatches(Dataset[Batch | Severities]):
    """Data set of batches, each followed by the corrupted values of its inputs, one item per sweep.

    The values of the last batch stay open, so that a process opens the files of a batch once.
    """

    def __init__(
        self,
        samples: ManifestRows,
        batches: Sequence[Sequence[int]],
        processors: dict[str, Processor],
        sweeps: Sequence[Sweep],
        seed: int,
    ) -> None:
        self.samples, self.batches, self.processors = samples, batches, processors
        self.sweeps, self.seed = sweeps, seed
        self._opened: tuple[int, list[Sample]] = (-1, [])

    def __len__(self) -> int:
        return len(self.batches) * (1 + len(self.sweeps))

    def __getitem__(self, index: int) -> Batch | Severities:
        number, position = divmod(index, 1 + len(self.sweeps))
        if self._opened[0] != number:
            self._opened = (number, self.samples.__getitems__(self.batches[number]))
        samples = self._opened[1]
        return self._corrupt(samples, self.sweeps[position - 1]) if position else Collate(self.processors)(samples)

    def _corrupt(self, samples: Sequence[Sample], sweep: Sweep) -> Severities:
        """Return the processed values of one input with each severity; an empty list if no sample has the input."""
        name, corruption = sweep
        present = [sample for sample in samples if name in sample.inputs]
        ids = [sample.id for sample in present]
        severities = []
        for severity in SEVERITIES if present else ():
            values = [
                corruption.apply(sample.inputs[name], severity, f"{self.seed} {name} {sample.id}") for sample in present
            ]
            try:
                tensors = process_values(self.processors[name], name, values, ids)
            except LoadError as error:
                place = f"{corruption.name} of severity {severity}"
                fix = "choose other corruptions with --sweeps"
                raise LoadError(f"{error} (with the corruption {place}: {fix})") from error
            assert isinstance(tensors, dict)
            severities.append(tensors)
        return severities


def _part_name(number: int) -> str:
    return f"sweeps-{number:05d}"


def _to_array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.numpy()
    return array
