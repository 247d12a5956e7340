"""What one training run of a comparison leaves behind, as plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from fusion_pl.files import atomic_write
from fusion_pl.types import UserError

ACCURACY = "test/accuracy"


@dataclass(frozen=True)
class Result:
    """One head, trained with one seed on some of the inputs.

    Attributes:
        fusion: the head's class, such as ``Concat``.
        class_path: where that class is.
        inputs: the inputs it was trained on, in the order of the configuration.
        seed: of the weights and of the order of samples.
        status: whether it came to its end.
        reason: why it failed, one sentence.
        version: of fusion-pl.
        config: the trial's key: hashes of the complete configuration, of the table, and of the libraries' versions.
        command: reproduces this run.
        validation: accuracy of the chosen checkpoint on validation, 0 to 1.
        validation_samples: how many that were.
        validated: hash of their ids and classes; only runs with the same one can be ranked.
        test: metrics of that checkpoint, such as ``test/accuracy``.
        correct: one character a test sample, 1 where it was classified rightly; the same order in every run.
        ids: of these test samples, in the same order.
        tested: hash of their ids and classes; only runs with the same one can be ranked or paired.
        subsets: accuracy on test with only these inputs, over the samples that have one of them. A key joins the names
            by ``+`` in the order of the configuration; the full set is among them.
        subset_samples: how many those are, by the same keys.
        seconds: training time.
        parameters: trainable ones of the whole model.
        head_parameters: of the head.
        flops: floating-point operations of a forward, for one sample.
        latency_ms: milliseconds of a forward, for one batch.
        step_ms: milliseconds of a forward and backward, for the same batch.
        batch_size: samples of that batch.
        memory_mb: on a GPU the peak of the run; on a CPU weights, gradients and activations of one batch.
    """

    fusion: str
    class_path: str
    inputs: tuple[str, ...]
    seed: int
    status: Literal["done", "failed"]
    reason: str = ""
    version: str = ""
    config: str = ""
    command: str = ""
    validation: float | None = None
    validation_samples: int | None = None
    validated: str = ""
    test: dict[str, float] = field(default_factory=dict)
    correct: str = ""
    ids: tuple[str, ...] = ()
    tested: str = ""
    subsets: dict[str, float] = field(default_factory=dict)
    subset_samples: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    parameters: int | None = None
    head_parameters: int | None = None
    flops: int | None = None
    latency_ms: float | None = None
    step_ms: float | None = None
    batch_size: int | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        if self.status == "failed":
            return
        where = f"the finished run of {self.fusion} with seed {self.seed}"
        for name, value in {"validation": self.validation, ACCURACY: self.test.get(ACCURACY)}.items():
            if value is None or not 0 <= value <= 1:  # NaN is in no range
                raise UserError(f"{where} has {name} = {value}; expected an accuracy from 0 to 1: run it again")
        if not self.correct or set(self.correct) - {"0", "1"}:
            raise UserError(f"{where} does not say by 0 and 1 which test samples were right: run it again")
        if len(self.ids) != len(self.correct) or not self.validation_samples:
            raise UserError(f"{where} does not say on which samples it was measured: run it again")

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` reads, ready for JSON."""
        return asdict(self) | {"inputs": list(self.inputs), "ids": list(self.ids)}

    def write(self, path: Path) -> None:
        """Write what ``read`` reads."""
        with atomic_write(path) as file:
            json.dump(self.to_dict(), file, indent=1)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a result's file.

        Raises:
            UserError: where it is damaged, or of another version.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no UTF-8
            raise UserError(f"{path} is damaged ({error}): delete the file and compare again") from error
        return cls.from_dict(data, str(path))

    @classmethod
    def from_dict(cls, data: object, source: str = "the result") -> Result:
        """Read what ``to_dict`` wrote.

        Args:
            data: a parsed JSON document.
            source: its file, for messages.

        Raises:
            UserError: where a field is missing, unknown or of another type.

        Example:
            >>> Result.from_dict({"fusion": "Mean"}, "runs/1.json")
            Traceback (most recent call last):
            fusion_pl.types.UserError: runs/1.json lacks 'class_path': delete the file and compare again
        """
        if not isinstance(data, dict):
            raise UserError(f"{source} is no JSON object: delete the file and compare again")
        for part in fields(cls):
            if part.name not in data:
                raise UserError(f"{source} lacks {part.name!r}: delete the file and compare again")
        return cls(**{key: _checked(key, value, source) for key, value in data.items()})


def label(result: Result, all_inputs: Sequence[str]) -> str:
    """Name a run for people: by its head, or by its inputs where it did not get all of them.

    Args:
        result: of a run.
        all_inputs: of the configuration.

    Example:
        >>> run = Result("Mean", "fusion_pl.fusion.Mean", ("text",), seed=0, status="failed")
        >>> label(run, ["text", "image"]), label(run, ["text"])
        ('text alone', 'Mean')
    """
    if set(result.inputs) == set(all_inputs):
        return result.fusion
    return f"{result.inputs[0]} alone" if len(result.inputs) == 1 else " + ".join(result.inputs)


def _checked(key: str, value: Any, source: str) -> Any:
    hints = {part.name: str(part.type) for part in fields(Result)}
    if key not in hints:
        raise UserError(f"{source} has an unknown field {key!r}: it is of another version; delete it and compare again")
    hint = hints[key]
    if value is None and "None" in hint:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint.startswith("float") and number:
        return float(value)
    if hint.startswith("int") and number and isinstance(value, int):
        return value
    if hint.startswith("dict") and isinstance(value, dict):
        return {str(name): _fraction(f"{key}.{name}", item, source) for name, item in value.items()}
    if hint.startswith("tuple") and isinstance(value, (list, tuple)) and (value or key == "ids"):
        return tuple(str(name) for name in value)
    if (hint == "str" and isinstance(value, str)) or (hint.startswith("Literal") and value in {"done", "failed"}):
        return value
    raise UserError(f"{source}: {key!r} is {value!r}, expected {hint}: delete the file and compare again")


def _fraction(key: str, value: Any, source: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise UserError(f"{source}: {key!r} is {value!r}, expected a number: delete the file and compare again")
