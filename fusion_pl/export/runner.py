"""Predict with a model that ``fusion-pl export --format onnx`` wrote, without torch and without fusion-pl.

It needs numpy and onnxruntime and, for images, sounds and tokenized texts, Pillow, soundfile and tokenizers.

    python runner.py --input text="a big dog" --input image=dog.jpg
"""

import argparse
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class ByteText:
    """Texts as UTF-8 bytes after a begin token."""

    max_tokens: int
    begin: int
    placeholder = ""

    def open(self, value: Any) -> str:
        """Return a text; a number or a boolean becomes the text that a table has."""
        value = str(value).lower() if isinstance(value, (bool, np.bool_)) else value
        if not isinstance(value, (str, int, float, np.number)):
            raise ValueError(f"a text input takes a str or a number, got {type(value).__name__}")
        return str(value).encode().decode()  # refuses half surrogate pairs

    def __call__(self, values: Sequence[str]) -> dict[str, Array]:
        """Return ``ids`` and ``mask``."""
        ids = [[self.begin, *text.encode()[: self.max_tokens - 1]] for text in values]
        return dict(zip(("ids", "mask"), _pad(ids), strict=True))


class SubwordText(ByteText):
    """Texts as subwords of a tokenizer."""

    def __init__(self, tokenizer: dict[str, Any], max_tokens: int, pad: int) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(json.dumps(tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        self.pad = pad

    def __call__(self, values: Sequence[str]) -> dict[str, Array]:
        """Return ``input_ids`` and ``attention_mask``."""
        ids, mask = _pad([encoding.ids or [self.pad] for encoding in self.tokenizer.encode_batch(values)], self.pad)
        return {"input_ids": ids, "attention_mask": mask}


@dataclass
class Pixels:
    """Images of one size: resized, or resized by the shorter edge and cropped to the centre."""

    tensor: str
    size: int
    mode: str
    resample: int
    edge: int | None
    max_ratio: int

    @property
    def placeholder(self) -> Any:
        """A black image."""
        from PIL import Image

        return Image.new("RGB", (32, 32))

    def open(self, value: Any) -> Any:
        """Return an image of mode L or RGB from a path, bytes or a PIL image: upright, transparent pixels on white."""
        from PIL import Image, ImageOps

        if not isinstance(value, Image.Image):
            formats = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")  # others start programs
            value = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=formats)
        image = ImageOps.exif_transpose(value)
        if image.mode in ("L", "RGB") and "transparency" not in image.info:
            return image
        if image.mode == "F" or image.mode.startswith("I"):
            values, limit = np.asarray(image), 1 if image.mode == "F" else 65535
            if not (values.min() >= 0 and values.max() <= limit):
                raise ValueError(f"its values are not in 0 to {limit}")
            return Image.fromarray(np.rint(values * (255 / limit)).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
        return image.convert("L" if image.mode == "1" else "RGB")

    def __call__(self, values: Sequence[Any]) -> dict[str, Array]:
        """Return the pixels, (P, channels, height, width)."""
        pixels = np.stack([np.asarray(self._resize(image)) for image in values])
        return {self.tensor: pixels[:, None] if self.mode == "L" else np.moveaxis(pixels, -1, 1)}

    def _resize(self, image: Any) -> Any:
        image = image if image.mode == self.mode else image.convert(self.mode)
        width = height = self.size
        if self.edge is not None:
            image = _centre_crop(image, image.height * self.max_ratio, image.width * self.max_ratio)
            width, height = (int(self.edge * side / min(image.size)) for side in image.size)
        return _centre_crop(image.resize((width, height), self.resample), self.size, self.size)


def _centre_crop(image: Any, width: int, height: int) -> Any:
    left, top = max(0, image.width - width) // 2, max(0, image.height - height) // 2
    return image.crop((left, top, left + min(width, image.width), top + min(height, image.height)))


@dataclass
class Clip:
    """Sounds of one channel, cropped to the centre and resampled."""

    rate: int
    max_samples: int
    tensors: list[str]
    max_filter: int
    min_samples: int = 0
    normalise: bool = False
    placeholder = np.zeros(16_000, np.float32), 16_000

    def open(self, value: Any) -> tuple[Array, int]:
        """Return N samples and their rate from a path, bytes, or (samples (N,) or (channels, N), rate)."""
        if isinstance(value, tuple):
            samples, rate = np.atleast_2d(np.asarray(value[0], np.float32)), int(value[1])
        else:
            import soundfile

            source = io.BytesIO(value) if isinstance(value, bytes) else value
            samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
            samples = samples.T
        if not samples.size or not np.isfinite(samples).all() or not 1_000 <= rate <= 384_000:
            raise ValueError("it has no samples, NaN or infinite ones, or a rate outside 1000 to 384000 Hz")
        return samples.mean(0) if len(samples) > 1 else samples[0], rate

    def __call__(self, values: Sequence[tuple[Array, int]]) -> dict[str, Array]:
        """Return padded audio samples, and their number or their mask."""
        padded, mask = _pad([self._crop_and_resample(*value) for value in values])
        return dict(zip(self.tensors, (padded, mask if "mask" in self.tensors else mask.sum(1)), strict=True))

    def _crop_and_resample(self, samples: Array, rate: int) -> Array:
        length = math.ceil(self.max_samples * rate / self.rate)
        first = max(0, len(samples) - length) // 2
        samples = samples[first : first + length]
        if rate != self.rate:
            near = Fraction(rate, self.rate).limit_denominator(max(1, math.isqrt(self.max_filter * self.rate // rate)))
            samples = resample(samples, near.numerator, near.denominator)[: self.max_samples]
        samples = np.pad(samples, (0, max(0, self.min_samples - len(samples))))
        return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7) if self.normalise else samples


def resample(samples: Array, rate: int, target: int) -> Array:
    """Resample audio by a windowed sinc filter, as ``torchaudio.functional.resample`` does with its defaults."""
    zeros, cutoff = 6, min(rate, target) * 0.99
    width = math.ceil(zeros * rate / cutoff)
    phases = (np.arange(0, -target, -1) / target).astype(np.float32)  # rounded, as in torchaudio
    times = phases[:, None] + np.arange(-width, width + rate) / rate
    times = np.clip(times * cutoff, -zeros, zeros)
    filters = (np.sinc(times) * np.cos(times * np.pi / zeros / 2) ** 2 * (cutoff / rate)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (width, width + rate)), filters.shape[1])
    resampled: Array = windows[::rate] @ filters.T
    return resampled.reshape(-1)[: math.ceil(target * len(samples) / rate)]


class Vectors:
    """Vectors or sequences of vectors, standardised."""

    def __init__(self, mean: list[float], std: list[float], max_tokens: int, key: str | None, flags: bool) -> None:
        self.mean, self.std, self.max_tokens = np.array(mean), np.array(std), max_tokens
        self.key, self.flags = key, flags
        self.placeholder = self.mean[None]

    def open(self, value: Any) -> Array | None:
        """Return T vectors of an .npy or .npz file (path or bytes), an array or a list; None if they are missing."""
        is_list = isinstance(value, (list, tuple))
        if isinstance(value, (str, Path, bytes)):
            value = np.load(io.BytesIO(value) if isinstance(value, bytes) else value, allow_pickle=False)
            value = value if isinstance(value, np.ndarray) else value[self.key or value.files[0]]
        vectors = np.atleast_2d(np.array(value, np.float64))
        missing = np.isnan(vectors)
        if is_list and missing.any() and (missing.all() or not self.flags):
            return None
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean) or not len(vectors):
            raise ValueError(f"its shape is {vectors.shape}, expected vectors of {len(self.mean)} numbers")
        if np.isinf(vectors).any() or (missing.any() and not (is_list and self.flags)):
            raise ValueError("a number is missing or infinite")
        return vectors[: self.max_tokens]

    def __call__(self, values: Sequence[Array]) -> dict[str, Array]:
        """Return standardised ``vectors``, with a flag per missing number if the model has them, and ``mask``."""
        vectors, mask = _pad([(value - self.mean) / self.std for value in values])
        if self.flags:
            missing = np.isnan(vectors)
            vectors = np.concatenate([np.where(missing, 0, vectors), missing], -1)
        return {"vectors": vectors.astype(np.float32), "mask": mask}


def _pad(rows: Sequence[Any], value: int = 0) -> tuple[Array, Array]:
    """Return rows padded to the longest one, and the mask of real elements."""
    arrays = [np.asarray(row) for row in rows]
    mask = np.arange(max(map(len, arrays))) < np.array([[len(row)] for row in arrays])
    padded = np.full((*mask.shape, *arrays[0].shape[1:]), value, arrays[0].dtype)
    padded[mask] = np.concatenate(arrays)
    return padded, mask


KINDS: dict[str, type[Any]] = {cls.__name__: cls for cls in (ByteText, SubwordText, Pixels, Clip, Vectors)}


class Runner:
    """The model of a folder, by default that of this file."""

    def __init__(self, folder: str | Path = Path(__file__).parent, model: str = "model.onnx") -> None:
        import onnxruntime

        settings = json.loads(Path(folder, "preprocess.json").read_text(encoding="utf-8"))
        self.classes: list[str] = settings["classes"]
        self.inputs = {name: KINDS[part.pop("kind")](**part) for name, part in settings["inputs"].items()}
        # Others, such as CUDAExecutionProvider, may compute with fewer digits.
        self.session = onnxruntime.InferenceSession(str(Path(folder, model)), providers=["CPUExecutionProvider"])

    def predict(self, samples: Iterable[Mapping[str, Any]], batch_size: int = 32) -> list[dict[str, Any]]:
        """Return a prediction per sample, a dictionary from input name to value; absent and None inputs are missing.

        A prediction has ``label`` and ``probability``, or ``labels`` if there may be several; ``probabilities``; and
        ``weights`` of the inputs if the model has them. A sample that cannot be used has an ``error`` only.
        """
        remaining, predictions = iter(samples), list[dict[str, Any]]()
        while opened := [self._open(sample) for sample in islice(remaining, batch_size)]:
            usable = [sample for sample in opened if not isinstance(sample, str)]
            found = iter(self._run(usable) if usable else ())
            predictions += [{"error": one} if isinstance(one, str) else next(found) for one in opened]
        return predictions

    def _open(self, sample: Mapping[str, Any]) -> dict[str, Any] | str:
        opened = {}
        for name, value in sample.items():
            if name not in self.inputs:
                return f"this model has no input {name!r}; it takes: {', '.join(self.inputs)}"
            if isinstance(value, str | Path) and not (isinstance(self.inputs[name], ByteText) or Path(value).is_file()):
                return f"the input {name!r} cannot be used: there is no file {str(value)!r}"
            try:
                is_nan = isinstance(value, (float, np.floating)) and math.isnan(value)
                if value is not None and not is_nan and (found := self.inputs[name].open(value)) is not None:
                    opened[name] = found
            except Exception as error:  # of any decoder
                return f"the input {name!r} cannot be used: {error}"
        return opened or f"the sample has none of the model's inputs: {', '.join(self.inputs)}"

    def tensors(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
        """Return the inputs of the graph for opened samples."""
        feed: dict[str, Array] = {}
        for name, kind in self.inputs.items():
            tensors = kind([sample.get(name, kind.placeholder) for sample in samples])
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
    (prediction,) = Runner().predict([sample])
    print(json.dumps(prediction, ensure_ascii=False))
    return 1 if "error" in prediction else 0


if __name__ == "__main__":
    raise SystemExit(main())
