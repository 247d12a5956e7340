"""Predict with a model that ``fusion-pl export --format onnx`` wrote, without torch and without fusion-pl.

It needs numpy and onnxruntime and, for images, sounds and tokenized texts, Pillow, soundfile and tokenizers.

    python runner.py --input text="a big dog" --input image=dog.jpg
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from fusion_pl.export.preprocess import KINDS, Array, is_missing


class Runner:
    """The model of a folder, by default that of this file."""

    def __init__(self, folder: str | Path = Path(__file__).parent, model: str = "model.onnx") -> None:
        import onnxruntime

        settings = json.loads(Path(folder, "preprocess.json").read_text(encoding="utf-8"))
        self.classes: list[str] = settings["classes"]
        self.inputs = {name: KINDS[part.pop("kind")](**part) for name, part in settings["inputs"].items()}
        # Others, such as CUDAExecutionProvider, may compute with fewer digits.
        self.session = onnxruntime.InferenceSession(str(Path(folder, model)), providers=["CPUExecutionProvider"])

    @overload
    def predict(self, samples: Mapping[str, Any], batch_size: int = 32) -> dict[str, Any]: ...

    @overload
    def predict(self, samples: Iterable[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, Any]]: ...

    def predict(self, samples: Any, batch_size: int = 32) -> Any:
        """Predict one sample or many, dictionaries from input name to value; absent, None and NaN inputs are missing.

        A prediction has ``label`` and ``probability``, or ``labels`` if there may be several; ``probabilities``; and
        ``weights`` of the inputs if the model has them. A sample that cannot be used has an ``error`` only.
        """
        if isinstance(samples, Mapping):
            return self.predict([samples])[0]
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        remaining, predictions = iter(samples), list[dict[str, Any]]()
        while opened := [self._open(sample) for sample in islice(remaining, batch_size)]:
            usable = [sample for sample in opened if not isinstance(sample, str)]
            found = iter(self._run(usable) if usable else ())
            predictions += [{"error": one} if isinstance(one, str) else next(found) for one in opened]
        return predictions

    def _open(self, sample: Any) -> dict[str, Any] | str:
        if not hasattr(sample, "items"):  # also a pandas Series
            raise TypeError(f"a sample is a dictionary from input name to value, got {sample!r:.100}")
        opened = {}
        for name, value in sample.items():
            if name not in self.inputs:
                return f"this model has no input {name!r}; it takes: {', '.join(self.inputs)}"
            try:
                if not is_missing(value) and (found := self.inputs[name].open(value)) is not None:
                    opened[name] = found
            except Exception as error:  # of any decoder
                return f"the input {name!r} cannot be used: {error}"
        return opened or f"the sample has none of the model's inputs: {', '.join(self.inputs)}"

    def tensors(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """Return the inputs of the graph for opened samples."""
        feed: dict[str, Array] = {}
        for name, kind in self.inputs.items():
            placeholder = kind.open(kind.placeholder)
            tensors = kind([sample.get(name, placeholder) for sample in samples])
            feed |= {f"{name}.{key}": array for key, array in tensors.items()}
            feed[f"{name}.present"] = np.array([name in sample for sample in samples])
        return feed

    def _run(self, samples: Sequence[Any]) -> Iterable[dict[str, Any]]:
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, self.tensors(samples)), strict=True))
        for row, (values, decision) in enumerate(zip(outputs["probabilities"], outputs["decision"], strict=True)):
            if not np.isfinite(values).all():
                yield {"error": "the model's output for this sample is NaN or infinite"}
                continue
            if decision.ndim:
                prediction: dict[str, Any] = {"labels": [self.classes[index] for index in np.flatnonzero(decision)]}
            else:
                prediction = {"label": self.classes[decision], "probability": float(values[decision])}
            prediction["probabilities"] = dict(zip(self.classes, values.tolist(), strict=True))
            if "weights" in outputs:
                prediction["weights"] = dict(zip(self.inputs, outputs["weights"][row].tolist(), strict=True))
            yield prediction


def main() -> int:
    """Predict one sample, given by ``--input NAME=VALUE``, and print the prediction as JSON."""
    parser = argparse.ArgumentParser(description="Predict the class of one sample.")
    parser.add_argument("--input", action="append", required=True, help="NAME=TEXT, or NAME=PATH of a file")
    words = parser.parse_args().input
    sample = dict(word.split("=", 1) for word in words if "=" in word)
    if len(sample) < len(words):
        parser.error(f"write every --input as NAME=VALUE, each name once: {', '.join(words)}")
    prediction = Runner().predict(sample)
    print(json.dumps(prediction, ensure_ascii=False))
    return 1 if "error" in prediction else 0


if __name__ == "__main__":
    raise SystemExit(main())
