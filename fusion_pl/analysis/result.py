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

ACCURACY = "test/accuracy"


@dataclass(frozen=True)
class RunResult:
    """Result of training one head with one seed on some of the inputs.

    Attributes:
        class_path: class of the head, such as ``fusion_pl.fusion.Concat``.
        inputs: of the training, in the order of the configuration.
        seed: of the weights and of the order of samples.
        status: whether the run finished.
        reason: why it failed, one sentence.
        version: of fusion-pl.
        key: see ``fusion_pl.analysis.keys``.
        command: reproduces this run.
        validation_accuracy: of the selected checkpoint, 0 to 1.
        validation_samples: number of validation samples.
        validation_hash: hash of their ids and classes; only runs with the same hash can be ranked.
        test: metrics of that checkpoint, such as ``test/accuracy``.
        correct: one character per test sample, 1 where it was classified correctly; the same order in every run.
        ids: ids of these test samples, in the same order.
        test_hash: the same for the test samples.
        subsets: test accuracy with only these inputs, over the samples that have at least one of them. A key joins the
            names by ``+`` in the order of the configuration; the full set is included.
        subset_samples: number of samples behind each entry of ``subsets``.
        seconds: training time.
        parameters: trainable ones of the whole model.
        head_parameters: parameters of the head.
        flops: floating-point operations of a forward pass, per sample.
        latency_ms: milliseconds per forward pass of one batch.
        step_ms: milliseconds per forward and backward pass of the same batch.
        batch_size: samples of that batch.
        memory_mb: on a GPU the peak of the run; on a CPU weights, gradients and activations of one batch.
    """

    class_path: str
    inputs: tuple[str, ...]
    seed: int
    status: Literal["done", "failed"]
    reason: str = ""
    version: str = ""
    key: str = ""
    command: str = ""
    validation_accuracy: float | None = None
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
        for name, value in {"validation": self.validation_accuracy, ACCURACY: self.test.get(ACCURACY)}.items():
            if value is None or not 0 <= value <= 1:  # NaN is in no range
                raise UserError(f"{run} has {name} = {value}; expected an accuracy from 0 to 1")
        if not self.correct or set(self.correct) - {"0", "1"}:
            raise UserError(f"{run} does not say by 0 and 1 which test samples were correct")
        if len(self.ids) != len(self.correct) or not self.validation_samples:
            raise UserError(f"{run} does not say on which samples it was measured")

    @property
    def head(self) -> str:
        """Class name of the head, such as ``Concat``."""
        return self.class_path.rpartition(".")[2]

    def write(self, path: Path) -> None:
        """Write the result as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            json.dump(asdict(self), file, indent=1)

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Read what ``write`` wrote.

        Raises:
            UserError: if the file is damaged, or a field is missing, unknown or of another type.
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
    """Return the label of a run: its head, or its inputs if it was trained on fewer than all.

    Example:
        >>> run = RunResult("fusion_pl.fusion.Mean", ("text",), seed=0, status="failed")
        >>> run_label(run, ["text", "image"]), run_label(run, ["text"])
        ('text alone', 'Mean')
    """
    if set(result.inputs) == set(all_inputs):
        return result.head
    return f"{result.inputs[0]} alone" if len(result.inputs) == 1 else " + ".join(result.inputs)
