"""Predict the samples of requests with a checkpoint."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fusion_pl import __version__
from fusion_pl.data.collate import Collate
from fusion_pl.files import sha256
from fusion_pl.messages import is_failure
from fusion_pl.predict import Predictor
from fusion_pl.serve.drift import DriftMonitor
from fusion_pl.serve.examples import table_examples
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.metrics import Metrics
from fusion_pl.serve.reference import Reference
from fusion_pl.serve.values import kind_of
from fusion_pl.types import Prediction, Sample, UserError

LOG = logging.getLogger("fusion_pl.serve")


@dataclass(frozen=True)
class ServeOptions:
    """Options of the processes of a server; plain data, which is sent to new processes.

    Attributes:
        checkpoint: path of the checkpoint.
        device: device of the model.
        trust: packages whose encoders and heads may run.
        rules: arguments of ``Predictor.rules``.
        limits: limits on requests.
        batch_size: largest number of samples per batch.
        max_wait: seconds that a sample waits for others.
        queue: largest number of accepted requests per process that are not answered yet.
        token: what clients have to send; None = nothing.
        allowed_hosts: hosts to which requests are answered; None = all.
        threads: threads that compute a batch; None = as torch decides.
        window: number of samples per process that are compared with the validation samples; None = no comparison.
        page: whether the server has a page for people.
        examples: path of a table with examples for the page, or the examples; None = no examples.
    """

    checkpoint: str
    device: str = "auto"
    trust: tuple[str, ...] = ()
    rules: dict[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    batch_size: int = 32
    max_wait: float = 0.005
    queue: int = 64
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] | None = None
    threads: int | None = None
    window: int | None = None
    page: bool = False
    examples: str | list[dict[str, Any]] | None = None


class Service:
    """Model, decision rules and metrics of one process of a server.

    Raises:
        MissingFileError: if the checkpoint does not exist.
        UserError: if the checkpoint cannot be read, a rule cannot be applied, or there is nothing to compare with.
    """

    def __init__(self, options: ServeOptions) -> None:
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # an image of this size is refused anyway
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.options = options
        self.limits = options.limits
        self.predictor = Predictor.from_checkpoint(options.checkpoint, options.device, options.trust)
        self.rules = self.predictor.rules(**options.rules)
        self.metrics = Metrics(options.batch_size)
        self.collate = Collate(self.predictor.processors)
        filled = {"id", "error", "probabilities", "weights"}
        filled.update(self.predictor.task.prediction_fields, self.rules.field_names)
        self.fields = [name for name in Prediction.__dataclass_fields__ if name in filled]
        self.info = self._describe()
        examples = options.examples or []
        self.examples = table_examples(self.predictor, examples, self.limits) if isinstance(examples, str) else examples
        self.drift: DriftMonitor | None = None
        self._warm_up()
        if options.window is not None:
            self.drift = DriftMonitor(Reference(self.predictor), self.metrics, options.window)
            self.rules = replace(self.rules, outliers=bool(self.predictor.model.outlier_detectors))

    def _describe(self) -> dict[str, Any]:
        digest = sha256(self.options.checkpoint)
        predictor = self.predictor
        return {
            "inputs": {name: kind_of(processor) for name, processor in predictor.processors.items()},
            "task": type(predictor.task).__name__,
            "classes": list(predictor.classes),
            "rules": {name: value for name, value in self.options.rules.items() if value},
            "checkpoint": {"file": Path(self.options.checkpoint).name, "sha256": digest},
            "limits": asdict(self.limits),
            "device": str(predictor.device),
            "versions": {"fusion-pl": __version__, "torch": version("torch")},
        }

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Return one prediction per sample of a batch, which may belong to different clients.

        If the batch fails, each of its samples is predicted alone, so that a sample fails only by itself.
        """
        start = time.perf_counter()
        try:
            predictions = self._predict_batch(samples)
        except BaseException as error:  # the boundary between the samples of different clients
            if not is_failure(error):
                raise
            if len(samples) > 1:
                return [prediction for sample in samples for prediction in self.predict([sample])]
            return [Prediction(samples[0].id, error=failure(error))]
        self.metrics.batch_seconds.observe(time.perf_counter() - start)
        self.metrics.batch_samples.observe(len(samples))
        if self.drift is not None:
            self.drift.record(samples, predictions)
        return predictions

    def _predict_batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        return list(self.predictor.predict_batches([self.collate(samples)], self.rules))

    def as_dict(self, prediction: Prediction) -> dict[str, Any]:
        """Return the fields of a prediction that its task and the rules fill."""
        return {name: getattr(prediction, name) for name in self.fields}

    def _warm_up(self) -> None:
        """Predict one sample, which no metric counts, so that the first request does not wait for what is done once."""
        inputs = {name: processor.placeholder() for name, processor in self.predictor.processors.items()}
        try:
            self._predict_batch([Sample("warm-up", inputs)])
        except Exception as error:  # a request with the same error gets it as its answer
            failure(error)


def failure(error: BaseException) -> str:
    """Return why a sample has no answer, without what the message of a library may contain of it."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the device is out of memory: send a smaller sample"
    log_error("A sample could not be predicted", error)
    return "the model failed on this sample; the log of the server has the reason"


def log_error(message: str, error: BaseException) -> None:
    """Log where an error was raised; not its message, which may contain a part of a request."""
    LOG.error("%s: %s\n%s", message, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
