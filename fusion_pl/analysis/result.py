"""The result of one run of a comparison, stored as JSON."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser

from fusion_pl.cli.parsing import explain_parse_error
from fusion_pl.files import atomic_write
from fusion_pl.types import UserError


@dataclass(frozen=True)
class RunResult:
    """Result of one training run: one fusion head, one set of inputs, one seed.

    Attributes:
        class_path: Class path of the fusion head, such as ``fusion_pl.fusion.Concat``.
        inputs: Names of the training inputs, in the order of the configuration.
        seed: Random seed of the run.
        status: Whether the run finished.
        reason: Error message of a failed run, one sentence.
        version: Version of fusion-pl.
        key: Hash of configuration, table and library versions, see ``fusion_pl.analysis.keys``.
        command: Command that reproduces this run.
        score: Name of the task's score of a sample, such as ``accuracy`` or ``exact_match``.
        metric: Name of the task's metric, by which rows are ranked.
        mode: Whether a larger or a smaller metric is better.
        validation_score: Mean score of the validation samples with the selected checkpoint, 0 to 1.
        validation_metric: The metric of the validation samples.
        validation_samples: Number of validation samples.
        validation_hash: Hash of the ids and classes of the validation samples; only runs with equal hashes are ranked.
        test: Test metrics of the selected checkpoint, such as ``test/accuracy``.
        correct: One character per test sample, its score: 1 if it is classified correctly, else 0.
        ids: Ids of the test samples, in the same order as ``correct``.
        test_hash: Hash of the ids and classes of the test samples.
        subsets: Mean test score per subset of inputs, over the samples that have at least one of them. The names are
            joined by ``+`` in the order of the configuration; the full set is included.
        subset_samples: Number of test samples per subset of inputs.
        seconds: Training time in seconds.
        parameters: Number of trainable parameters of the model.
        head_parameters: Number of parameters of the fusion head.
        flops: Floating-point operations per sample in a forward pass.
        latency_ms: Milliseconds per forward pass of one batch.
        step_ms: Milliseconds per forward and backward pass of the same batch.
        batch_size: Number of samples in that batch.
        memory_mb: Memory in MB: peak of the run (GPU), or parameters, gradients and activations of one batch (CPU).
    """

    class_path: str
    inputs: tuple[str, ...]
    seed: int
    status: Literal["done", "failed"]
    reason: str = ""
    version: str = ""
    key: str = ""
    command: str = ""
    score: str = "accuracy"
    metric: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    validation_score: float | None = None
    validation_metric: float | None = None
    validation_samples: int | None = None
    validation_hash: str = ""
    test: dict[str, float] = field(default_factory=dict)
    correct: str = ""
    ids: tuple[str, ...] = ()
    test_hash: str = ""
    subsets: dict[str, float] = field(default_factory=dict)
    subset_samples: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    parameters: int | None = None
    head_parameters: int | None = None
    flops: int | None = None
    latency_ms: float | None = None
    step_ms: float | None = None
    batch_size: int | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        run = f"the run of {self.head} with seed {self.seed}"
        if not self.inputs:
            raise UserError(f"{run} has no inputs")
        if self.status == "failed":
            return
        test_score = f"test/{self.score}"
        for name, value in {"validation": self.validation_score, test_score: self.test.get(test_score)}.items():
            if value is None or not 0 <= value <= 1:  # also false for NaN
                raise UserError(f"{run} has {name} = {value}; expected a number from 0 to 1")
        if self.validation_metric is None or f"test/{self.metric}" not in self.test:
            raise UserError(f"{run} has no {self.metric}")
        if not self.correct or set(self.correct) - {"0", "1"}:
            raise UserError(f"{run} has a field correct that is empty, or not a text of 0 and 1")
        if len(self.ids) != len(self.correct) or not self.validation_samples:
            raise UserError(f"{run} has no validation samples, or not one id per test sample")

    @property
    def head(self) -> str:
        """Class name of the head, such as ``Concat``."""
        return self.class_path.rpartition(".")[2]

    @property
    def test_score(self) -> float:
        """Mean score of the test samples; requires a finished run."""
        return self.test[f"test/{self.score}"]

    def write(self, path: Path) -> None:
        """Write the result as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            json.dump(asdict(self), file, indent=1)

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Read a result from JSON.

        Raises:
            UserError: If the file is damaged, or a field is missing, unknown or has the wrong type.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError("expected a JSON object")
            return cls(**_parser().parse_object(data).as_dict())
        except ArgumentError as error:
            problem = explain_parse_error(error, _parser(), []).partition("; give ")[0]
        except ValueError as error:  # not JSON, not UTF-8, or values that contradict each other
            problem = str(error)
        raise UserError(f"{path} is damaged ({problem}): delete the file and compare again")


@functools.cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunResult)
    return parser


def run_label(result: RunResult, all_inputs: Sequence[str]) -> str:
    """Return the label of a run: its head if it uses all inputs, else its inputs.

    Example:
        >>> run = RunResult("fusion_pl.fusion.Mean", ("text",), seed=0, status="failed")
        >>> run_label(run, ["text", "image"]), run_label(run, ["text"])
        ('text alone', 'Mean')
    """
    if set(result.inputs) == set(all_inputs):
        return result.head
    return f"{result.inputs[0]} alone" if len(result.inputs) == 1 else " + ".join(result.inputs)
