"""Predict classes with a checkpoint file alone: without a configuration, the hub or training data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from fusion_pl.checkpoint import build_model, read_checkpoint
from fusion_pl.checkpoint.folder import read_model_folder
from fusion_pl.data.collate import Collate
from fusion_pl.messages import did_you_mean, one_line, truncate
from fusion_pl.module import FusionClassifier
from fusion_pl.processors.base import OPEN_ERRORS, check_path
from fusion_pl.types import Batch, Encoded, Fused, Prediction, Sample, UserError
from fusion_pl.uncertainty.doubt import Doubt
from fusion_pl.uncertainty.outliers import embeddings_of
from fusion_pl.uncertainty.rules import DecisionRules, decision_rules


class Predictor:
    """Classify samples in batches with a trained model; an invalid sample gets an error and affects no other sample.

    Args:
        model: a trained classifier.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        columns: name of the input -> column or columns of the manifest.
        label: label column or columns of the training manifest, if known.
    """

    def __init__(
        self,
        model: FusionClassifier,
        device: str = "auto",
        columns: dict[str, str | list[str]] | None = None,
        label: list[str] | str | None = None,
    ) -> None:
        self.device = _parse_device(device)
        self.model = model.to(self.device).eval()
        self.processors = model.processors
        self.classes = model.classes
        self.task = model.task
        self.columns = columns or {name: name for name in self.processors}
        self.label = label

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto", trust: Collection[str] = ()) -> Predictor:
        """Build the model from a checkpoint alone, without the hub, a configuration or another file.

        Args:
            path: checkpoint that ``fusion-pl fit`` wrote.
            device: as in the constructor.
            trust: packages besides fusion_pl whose encoders and heads may run.

        Raises:
            MissingFileError: if the file does not exist.
            UserError: if the file is damaged, was written by another program, or needs code that is not trusted.
        """
        return cls.from_content(read_checkpoint(path), path, device, trust)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", trust: Collection[str] = ()) -> Predictor:
        """Build the model of a folder that ``fusion-pl export --format safetensors`` wrote, or of the hub.

        Args:
            source: a folder, or the name of a model on the Hugging Face hub.
            device: as in the constructor.
            trust: packages besides fusion_pl whose encoders and heads may run.

        Raises:
            MissingFileError: if the folder does not exist, or lacks a file.
            UserError: as ``from_checkpoint``, or if the model cannot be downloaded.
        """
        content, path = read_model_folder(source)
        return cls.from_content(content, path, device, trust)

    @classmethod
    def from_content(
        cls, content: dict[str, Any], path: str | Path, device: str = "auto", trust: Collection[str] = ()
    ) -> Predictor:
        """Build the model of a checkpoint that was read already; the path is for messages, see ``from_checkpoint``."""
        config = content["fusion_pl"]
        return cls(build_model(content, path, trust), device, config["columns"], config.get("label"))

    @overload
    def predict(
        self, samples: Mapping[str, Any], batch_size: int = 32, open_paths: bool = True, **rules: Any
    ) -> Prediction: ...

    @overload
    def predict(
        self, samples: Sequence[Mapping[str, Any]], batch_size: int = 32, open_paths: bool = True, **rules: Any
    ) -> list[Prediction]: ...

    def predict(
        self,
        samples: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        batch_size: int = 32,
        open_paths: bool = True,
        **rules: Any,
    ) -> Prediction | list[Prediction]:
        """Classify one sample or many.

        Args:
            samples: name of the input (not the column of a table) -> text or number of a text; path, bytes, PIL image,
                array or tensor of an image; path, bytes, (array, rate) or ``Waveform`` of a sound; path, bytes, array
                or list of numbers of a vector. An input that is absent, None or NaN is missing.
            batch_size: number of samples per batch.
            open_paths: whether a ``str`` may be the path of a file. False for samples from untrusted sources, which
                could name any file of this machine otherwise.
            rules: arguments of ``rules``, such as ``coverage=0.9``.

        Raises:
            UserError: if a sample is not a dictionary, or a rule cannot be applied.

        Example:
            >>> from fusion_pl.encoders import TinyText
            >>> from fusion_pl.fusion import Mean
            >>> predictor = Predictor(FusionClassifier({"title": TinyText()}, Mean, ["ham", "spam"]), device="cpu")
            >>> predictor.predict({"title": "hello"}).error is None
            True
            >>> predictor.predict({"photo": "a.png"}).error
            "this model has no input 'photo'; it takes: title"
        """
        if isinstance(samples, (Mapping, str, bytes)) or not isinstance(samples, Iterable):
            return self.predict([samples], batch_size, open_paths, **rules)[0]
        opened = [self.open_sample(str(row), sample, open_paths) for row, sample in enumerate(samples)]
        collate = Collate(self.processors)
        batches = (collate(opened[i : i + batch_size]) for i in range(0, len(opened), batch_size))
        return list(self.predict_batches(batches, self.rules(**rules)))

    def rules(
        self,
        coverage: float | None = None,
        coverage_by_class: bool = False,
        abstain: float | None = None,
        doubt: Doubt = "probability",
        outliers: bool = False,
    ) -> DecisionRules:
        """Return rules for prediction sets, abstention and outliers, from the validation scores in the checkpoint.

        Args:
            coverage: probability that a prediction set contains the class, or all labels; None = no sets.
            coverage_by_class: whether the sets have that probability in each class.
            abstain: share of the validation samples that would get a label; they have the least doubt. A sample with
                more doubt has no label. None = every sample has a label.
            doubt: ``probability``, ``entropy``, ``energy`` or ``evidential``; the first is 1 - the largest probability.
            outliers: whether each input, and all together, have a p-value; it is the share of validation samples
                that are at least as far from the training samples. Below 0.01, the input is unlike these.

        Raises:
            UserError: if the task or the checkpoint does not fit, or a number is out of range.
        """
        scores, num_classes = self.model.validation_scores, len(self.classes)
        rules = decision_rules(self.task, scores, num_classes, coverage, coverage_by_class, abstain, doubt)
        if outliers and not self.model.outlier_detectors:
            raise UserError(
                "outliers needs statistics of at least 50 training and 50 validation samples, and the checkpoint has "
                "none: use best.ckpt of a fusion-pl fit of this version, with splits of this size"
            )
        return replace(rules, outliers=outliers)

    @cached_property
    def empty_output(self) -> Fused:
        """Output for a sample without inputs, which shows what the fusion head returns."""
        batch = Collate(self.processors)([Sample("", {})])
        with torch.inference_mode():
            return self.model.fuse(self.model.encode(batch.to(self.device)))

    def predict_batches(
        self, batches: Iterable[Batch], rules: DecisionRules | None = None, embeddings: bool = False
    ) -> Iterator[Prediction]:
        """Classify batches and yield one prediction per sample, in the order of the loader.

        Args:
            batches: the batches.
            rules: rules for prediction sets, abstention and outliers, see ``rules``.
            embeddings: whether the predictions have the fused embedding.
        """
        rules = rules or DecisionRules()
        for batch in batches:
            with torch.inference_mode():
                encoded = self.model.encode(batch := batch.to(self.device))
                fused = self.model.fuse(encoded)
            probabilities = self.task.probabilities(self.model.calibrate(fused.logits, batch.present)).cpu()
            fields = rules.fields(self.task, fused.logits.float().cpu(), probabilities, self.classes)
            p_values: Sequence[dict[str, float | None] | None] = [None] * len(batch.ids)
            if rules.outliers:
                p_values = self._outlier_p_values(encoded, fused, batch)
            weights = None if fused.weights is None else fused.weights.float().tolist()
            vectors = fused.embedding.float().tolist() if embeddings and fused.embedding is not None else None
            rows = zip(batch.ids, self.errors(batch, probabilities), probabilities, probabilities.tolist(), strict=True)
            for row, (sample_id, error, scores, values) in enumerate(rows):
                if error is not None:
                    yield Prediction(sample_id, error=error)
                    continue
                yield Prediction(
                    sample_id,
                    **self.task.prediction(scores, self.classes) | fields[row],
                    probabilities=dict(zip(self.classes, values, strict=True)),
                    outlier_p_values=p_values[row],
                    embedding=None if vectors is None else vectors[row],
                    weights=None if weights is None else dict(zip(self.processors, weights[row], strict=True)),
                )

    def _outlier_p_values(
        self, encoded: dict[str, Encoded], fused: Fused, batch: Batch
    ) -> Sequence[dict[str, float | None] | None]:
        """Return the p-values of each sample of a batch by name; None for a missing input."""
        rows: list[dict[str, float | None]] = [{} for _ in batch.ids]
        embeddings = embeddings_of(encoded, fused)
        for name, detector in self.model.outlier_detectors.items():
            if name not in embeddings or embeddings[name].shape[1] != detector.whitening.shape[1]:
                raise UserError(f"the outlier detector of {name} does not fit the model: the checkpoint is damaged")
            present = batch.present[name].tolist() if name in batch.present else [True] * len(rows)
            p_values = detector.p_values(embeddings[name]).tolist()
            for row, p_value, is_present in zip(rows, p_values, present, strict=True):
                row[name] = p_value if is_present else None
        return rows

    def errors(self, batch: Batch, outputs: Float[Tensor, "B _"]) -> list[str | None]:
        """Return for each sample of a batch why it has no prediction, None if it has one.

        Args:
            batch: the samples.
            outputs: probabilities or logits of the model.
        """
        present = torch.stack([batch.present[name] for name in self.processors], dim=-1).any(-1)
        finite = outputs.isfinite().all(-1)
        errors: list[str | None] = []
        for row, messages in enumerate(batch.bad_files):
            if messages:
                errors.append("; ".join(messages))
            elif not present[row]:
                errors.append(f"the sample has none of the model's inputs: {', '.join(self.processors)}")
            else:
                errors.append(None if finite[row] else "the model's output for this sample is NaN or infinite")
        return errors

    def open_sample(self, sample_id: str, values: Mapping[str, Any], open_paths: bool = True) -> Sample:
        """Open the values of one sample, see ``predict``; errors are in ``bad_files``.

        Raises:
            UserError: if the sample is not a dictionary.
        """
        if not hasattr(values, "items"):  # also a pandas Series
            found = f"{type(values).__name__}: {one_line(repr(values))}"
            raise UserError(f"sample {sample_id}: a sample is a dictionary from input name to value, got {found}")
        opened: dict[str, Any] = {}
        try:
            for name, value in values.items():
                if name not in self.processors:
                    shown = truncate(str(name))
                    known = f"it takes: {', '.join(self.processors)}{did_you_mean(shown, self.processors)}"
                    raise UserError(f"this model has no input {shown!r}; {known}")
                processor = self.processors[name]
                if not processor.is_missing(value):
                    check_path(name, processor, value, open_paths)
                    opened[name] = processor.open(value)
        except OPEN_ERRORS as error:
            return Sample(sample_id, {}, bad_files=(str(error),))
        return Sample(sample_id, opened)


def _parse_device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"there is no device {name!r} here ({str(error).splitlines()[0]}): give auto, cpu or cuda"
        ) from error
    return device
