"""Encode the values of an input once with a frozen encoder, and write the outputs to a feature store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from rich import get_console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from fusion_pl.data.collate import process_values
from fusion_pl.data.order import identity_collate
from fusion_pl.data.rows import LIST_ERRORS, InputColumn, LoadError, ManifestRows
from fusion_pl.data.workers import worker_options
from fusion_pl.encoders.base import Encoder
from fusion_pl.processors.base import OPEN_ERRORS, Processor
from fusion_pl.training.value_keys import ValueKeys, file_signature, path_of, value_keys
from fusion_pl.types import Encoded

SHARD_BYTES = 2**26
SHARD_SECONDS = 20.0  # a killed run loses at most the values of this time

# Writes a shard: positions of the values, and batches of their outputs.
Write = Callable[[Int[NDArray[Any], " N"], Sequence[Encoded]], None]


class OpenedValues(NamedTuple):
    """A batch of opened and processed values."""

    positions: list[int]
    inputs: dict[str, Tensor] | None  # of the values at ``positions``; None if no value could be opened
    errors: dict[int, str]  # position -> why the value could not be opened


class InputValueDataset(Dataset[OpenedValues]):
    """Data set of all values of an input in several splits, opened without augmentation and random crops.

    Args:
        parts: samples of each split, with the column of the input.
    """

    def __init__(self, parts: Sequence[tuple[ManifestRows, InputColumn]]) -> None:
        self.parts = [(rows, replace(column, training=False)) for rows, column in parts]
        self.places: list[tuple[int, int]] = []  # part and index of each value
        self.keys: ValueKeys | None = None

    def __len__(self) -> int:
        return len(self.places)

    def compute_keys(self, folder: Path) -> None:
        """Find the values, and compute their keys with the hashes of files that ``folder`` remembers."""
        cells: list[Any] = []
        self.places.clear()
        for part, (rows, column) in enumerate(self.parts):
            for index in range(len(rows)):
                if (cell := column.cells[index]) is not None:
                    cells.append(cell)
                    self.places.append((part, index))
        self.keys = value_keys(cells, self.processor.reads_files, folder)

    @property
    def processor(self) -> Processor:
        """Processor of the input."""
        return self.parts[0][1].processor

    def __getitems__(self, positions: list[int]) -> OpenedValues:
        """Open and process values.

        Raises:
            LoadError: if a value cannot be opened (unless ``on_bad_file`` is ``missing``), the processor refuses it, or
                its file has changed since its key was computed.
        """
        values: dict[int, Any] = {}
        errors: dict[int, str] = {}
        for position in positions:
            part, index = self.places[position]
            rows, column = self.parts[part]
            try:
                values[position] = column.open(column.cells[index])
            except OPEN_ERRORS as error:
                if rows.on_bad_file == "raise":
                    raise LoadError(f"{rows.place(column, index)}: {error}; {LIST_ERRORS}") from error
                errors[position] = str(error)
            self._check_unchanged(position)
        inputs = self._process(values) if values else None
        return OpenedValues(list(values), inputs, errors)

    def find_error(self, position: int) -> str | None:
        """Return why a value cannot be opened; None if it can."""
        part, index = self.places[position]
        column = self.parts[part][1]
        try:
            column.open(column.cells[index])
        except OPEN_ERRORS as error:
            return str(error)
        return None

    def _process(self, values: dict[int, Any]) -> dict[str, Tensor]:
        """Process opened values by position."""
        ids = [self.parts[part][0].sample_id(index) for part, index in map(self.places.__getitem__, values)]
        inputs = process_values(self.processor, self.parts[0][1].input, list(values.values()), ids)
        assert not isinstance(inputs, Encoded)  # the output of a FeatureStore
        return inputs

    def _check_unchanged(self, position: int) -> None:
        part, index = self.places[position]
        rows, column = self.parts[part]
        path = path_of(column.cells[index], column.processor.reads_files)
        assert self.keys is not None
        if path is not None and file_signature(path) != tuple(self.keys.signatures[position].tolist()):
            raise LoadError(f"{rows.place(column, index)}: {path} changed while it was read: repeat the command")


@dataclass
class EncodingPass:
    """Encode values with a frozen encoder, in the loader's workers and with the precision of the Trainer.

    Attributes:
        trainer: Trainer, for device, precision and progress bar.
        name: name of the input.
        encoder: frozen encoder, on the device of the Trainer.
        batch_size: number of values per batch.
        num_workers: number of loader workers.
        errors: position -> why the value could not be opened.
    """

    trainer: Trainer
    name: str
    encoder: Encoder
    batch_size: int
    num_workers: int
    errors: dict[int, str] = field(default_factory=dict)

    def encode(
        self, values: InputValueDataset, positions: Int[NDArray[Any], " N"]
    ) -> Iterator[tuple[list[int], Encoded]]:
        """Yield batches of positions and their outputs, on the CPU."""
        num_workers = self.num_workers if len(positions) > self.batch_size else 0
        loader: DataLoader[OpenedValues] = DataLoader(
            Subset(values, positions.tolist()),
            batch_size=self.batch_size,
            collate_fn=identity_collate,
            **worker_options(num_workers),
        )
        is_hidden = not self.trainer.is_global_zero or self.trainer.progress_bar_callback is None
        bar = track(loader, f"Encoding {self.name}", console=get_console(), transient=True, disable=is_hidden)
        for batch in bar:
            if self.trainer.received_sigterm:
                raise SIGTERMException
            self.errors |= batch.errors
            if batch.inputs is not None:
                yield batch.positions, self._run_encoder(batch.inputs)

    def write(self, values: InputValueDataset, positions: Int[NDArray[Any], " N"], write: Write) -> None:
        """Encode values, and write shards of about ``SHARD_BYTES`` bytes or ``SHARD_SECONDS`` seconds of work."""
        pending: list[tuple[list[int], Encoded]] = []
        size, started = 0, time.monotonic()

        def flush() -> None:
            if pending:
                write(np.concatenate([places for places, _ in pending]), [encoded for _, encoded in pending])
                pending.clear()

        for places, encoded in self.encode(values, positions):
            pending.append((places, encoded))
            size += sum(tensor.nbytes for tensor in encoded if tensor is not None)
            if size > SHARD_BYTES or time.monotonic() - started > SHARD_SECONDS:
                flush()
                size, started = 0, time.monotonic()
        flush()

    def _run_encoder(self, inputs: dict[str, Tensor]) -> Encoded:
        plugin = self.trainer.precision_plugin
        inputs = plugin.convert_input(move_data_to_device(inputs, self.trainer.strategy.root_device))
        with torch.inference_mode(), plugin.forward_context(), _evaluation_mode(self.encoder):
            encoded: Encoded = self.encoder(**inputs)
        weights = None if encoded.layer_weights is None else encoded.layer_weights.cpu()
        return Encoded(encoded.tokens.cpu(), encoded.mask.cpu(), encoded.embedding.cpu(), weights)


@contextmanager
def _evaluation_mode(encoder: Encoder) -> Iterator[None]:
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)
