"""Features of frozen encoders, which are computed once and stand in for the inputs in all epochs, heads and runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import Dataset

from fusion_pl.data.base import FusionData
from fusion_pl.data.feature_shards import folder_bytes
from fusion_pl.data.manifest import REQUIRED_SPLITS
from fusion_pl.data.rows import ManifestRows
from fusion_pl.encoders.base import Encoder, is_frozen
from fusion_pl.files import cache_folder
from fusion_pl.messages import join_names
from fusion_pl.processors import AudioProcessor
from fusion_pl.tables.splits import Split
from fusion_pl.training.cache_keys import encoder_key
from fusion_pl.training.encoding import EncodingPass, InputValueDataset
from fusion_pl.training.stored_input import Storage, StoredInput, format_bytes
from fusion_pl.types import Sample, UserError

DEFAULT_SHARE = 0.1  # of the sum of the free disk and the folder, which does not depend on what is stored
_requires_grad = attrgetter("requires_grad")


@dataclass(frozen=True)
class CacheOptions:
    """Where and how features are stored.

    Attributes:
        folder: folder of the features of all encoders.
        max_bytes: maximum size of the folder in bytes; None = 10 % of the sum of the free disk and
            the folder's present size.
        dtype: type of the stored numbers.
    """

    folder: Path
    max_bytes: int | None = None
    dtype: torch.dtype = torch.float32


class FeatureCache:
    """Samples of a run whose inputs with a frozen encoder are features.

    The features of values that lack them are computed when the samples are first used, after the weights are restored
    and moved to the device. Several processes share the work.

    Args:
        options: where and how features are stored.
        trainer: Trainer of the run.
        encoders: name of the input -> encoder.
        reads_tokens: whether the fusion head reads tokens; if not, only embeddings are stored.
    """

    def __init__(
        self, options: CacheOptions, trainer: Trainer, encoders: dict[str, Encoder], reads_tokens: bool
    ) -> None:
        self.options, self.trainer, self.encoders, self.reads_tokens = options, trainer, encoders, reads_tokens
        self.data: FusionData = trainer.datamodule  # type: ignore[attr-defined]
        self.parameters: dict[str, tuple[nn.Parameter, ...]] = {}  # of the encoders whose output is stored

    def __call__(self, split: Split) -> Dataset[Sample]:
        """Return the samples of a split."""
        return self.samples[split] if split in self.samples else self.data.samples(split)

    @property
    def stage(self) -> str:
        """``fit``, ``validate`` or ``test``."""
        assert self.trainer.state.fn is not None
        return self.trainer.state.fn.value

    def check_frozen(self, name: str) -> None:
        """Check that an encoder is still frozen.

        Raises:
            UserError: if a parameter requires a gradient, so that the stored features would be out of date.
        """
        if any(map(_requires_grad, self.parameters.get(name, ()))):
            raise UserError(
                f"the encoder of {name!r} was unfrozen during the run, but its input was replaced by features that "
                "were computed before: give --cache null"
            )

    @cached_property
    def samples(self) -> dict[Split, Dataset[Sample]]:
        """Split -> samples with features; only splits with features.

        Raises:
            LoadError: if a value cannot be opened (unless ``on_bad_file`` is ``missing``).
        """
        encoders = self._frozen_encoders()
        if not encoders:
            return {}
        with isolate_rng():
            samples = {split: self.data.samples(split) for split in self._complete_splits()}
            rows = {split: rows for split, rows in samples.items() if isinstance(rows, ManifestRows)}
            if len(rows) < len(samples):
                _log_not_stored(f"{type(self.data).__name__} has no table of values")
                return {}
            inputs = [one for name in encoders if (one := self._describe_input(name, rows)) is not None]
            inputs = self._select_inputs(inputs)
            for one in inputs:
                if one.encode_missing():
                    self.parameters[one.name] = tuple(one.encoder.parameters())
                    rows = one.use_features(rows)
        return dict(rows)

    def _frozen_encoders(self) -> dict[str, Encoder]:
        frozen = {name: encoder for name, encoder in self.encoders.items() if is_frozen(encoder)}
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        finetuning = [type(one).__name__ for one in callbacks if isinstance(one, BaseFinetuning)]
        reason = None
        if not frozen:
            if self.options.folder != cache_folder():
                _log_not_stored("no encoder is frozen (freeze: all)")
        elif finetuning and self.stage == "fit":
            reason = f"{finetuning[0]} may unfreeze encoders"
        elif self.trainer.strategy.restore_checkpoint_after_setup:
            reason = f"{type(self.trainer.strategy).__name__} distributes the weights of the encoders"
        elif self.data.is_stream:
            reason = f"the samples of {type(self.data).__name__} are not stored either"
        else:
            try:
                self.options.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = f"{self.options.folder} cannot be written ({error})"
        if reason is not None:
            _log_not_stored(reason)
            return {}
        return frozen

    def _complete_splits(self) -> list[Split]:
        """Return the splits of which the run reads every sample; for others, encoding all values could take longer."""
        trainer = self.trainer
        limits = {"train": trainer.limit_train_batches, "val": trainer.limit_val_batches}
        limits["test"] = trainer.limit_test_batches
        # The integer 1 is one batch, the float 1.0 all batches.
        splits = [split for split in REQUIRED_SPLITS[self.stage] if isinstance(limits[split], float)]
        splits = [split for split in splits if limits[split] == 1]
        if trainer.max_steps > 0 and "train" in splits:
            step = self.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
            if trainer.max_steps * step < sum(self.data.class_counts or []):
                splits.remove("train")
        return splits

    def _describe_input(self, name: str, rows: dict[Split, ManifestRows]) -> StoredInput | None:
        """Compute the keys of the values of an input; None if it has no values, or all are augmented."""
        parts = {
            split: column
            for split, samples in rows.items()
            for column in samples.columns
            if column.input == name and not samples.is_augmented(column)
        }
        if not parts:
            return None
        values = InputValueDataset([(rows[split], column) for split, column in parts.items()])
        # The other processes use the hashes of files that the first one has remembered.
        if not self.trainer.is_global_zero:
            self.trainer.strategy.barrier()
        values.compute_keys(self.options.folder)
        if self.trainer.is_global_zero:
            self.trainer.strategy.barrier()
        if not len(values):
            return None
        encoder = self.encoders[name]
        fields = "tokens" if self.reads_tokens else "embeddings"
        key = encoder_key(encoder, str(self.trainer.precision), str(self.options.dtype), fields)
        encoding = EncodingPass(self.trainer, name, encoder, self.data.batch_size, self.data.num_loader_workers)
        return StoredInput(self.storage, encoding, values, list(parts), self.options.folder / key)

    def _select_inputs(self, inputs: list[StoredInput]) -> list[StoredInput]:
        """Return the inputs whose features fit into the folder, and log what is stored."""
        used = float(folder_bytes(self.options.folder))
        selected, lines = [], []
        for one in inputs:
            needed = one.num_missing * one.value_bytes
            if one.num_missing and used + needed > self.storage.max_bytes:
                lines.append(
                    f"Cache: the features of {one.name} are not stored, because they would need "
                    f"{format_bytes(needed)}, and {self.storage.describe_space(used)}"
                )
            else:
                used += needed
                selected.append(one)
        names: list[str] = self.trainer.strategy.broadcast([one.name for one in selected])
        selected = [one for one in inputs if one.name in names]
        if selected:
            sizes = [f"{one.name} ({one.num_values:,} values, {format_bytes(one.total_bytes)})" for one in selected]
            missing = sum(one.num_missing for one in selected)
            crops = [one.name for one in selected if isinstance(one.encoder.processor, AudioProcessor)]
            line = f"Cache: features of frozen encoders stand in for {join_names(sizes)}"
            line += f"; {missing:,} are computed first" if missing else ""
            line += f"; long clips of {join_names(crops)} are cropped to their centre" if crops else ""
            lines.append(f"{line}. Folder: {self.options.folder} (--cache null to disable).")
        for line in lines:
            rank_zero_info(line)
        return selected

    @cached_property
    def storage(self) -> Storage:
        """Where and how features are stored, with the limit in bytes."""
        options, max_bytes = self.options, self.options.max_bytes
        if max_bytes is None:
            max_bytes = int(DEFAULT_SHARE * (shutil.disk_usage(options.folder).free + folder_bytes(options.folder)))
        return Storage(options.folder, max_bytes, options.dtype, self.reads_tokens)


def _log_not_stored(reason: str) -> None:
    rank_zero_info(f"Cache: features of frozen encoders are not stored, because {reason}.")


def create_cache(model: Any, stage: str) -> FeatureCache | None:
    """Return the cache of a model with its trainer's data, which reads it; None if the stage uses none."""
    data = getattr(model._trainer, "datamodule", None)
    if not isinstance(data, FusionData):
        return None
    cache = None
    if model.cache is not None and stage != "predict" and not getattr(model.trainer, "fast_dev_run", False):
        cache = FeatureCache(model.cache, model.trainer, dict(model.named_encoders()), model.fusion.reads_tokens)
    data.feature_source = cache
    return cache
