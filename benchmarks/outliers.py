"""Detection of planted outliers: noise for pictures, sentences of other languages for texts, silence for sounds.

One input of each test sample is replaced. Scores must tell the replaced samples from the usual ones. Called by
``python -m benchmarks.calibration``, with the models that it trains.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from fusion_pl import Predictor
from fusion_pl.data.base import FusionData
from fusion_pl.data.collate import Collate
from fusion_pl.types import Sample, Waveform
from fusion_pl.uncertainty.outliers import OutlierDetector, embeddings_of

SENTENCES = {
    "German": ("wie spät ist es bitte", "der Zug fährt heute nicht", "das Wetter wird schön", "ich habe Hunger"),
    "French": ("où est la gare", "je ne sais pas encore", "nous partons demain matin", "la maison est très vieille"),
    "Italian": ("dove posso mangiare", "il cane dorme sul letto", "domani piove", "il treno parte tardi"),
}


LEVEL = 0.05  # of p-values


@dataclass(frozen=True)
class Run:
    """A trained model, and the samples of its data without augmentation."""

    predictor: Predictor
    data: FusionData

    @classmethod
    def open(cls, config: dict, checkpoint: Path) -> Run:
        predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
        module, name = config["data"]["class_path"].rsplit(".", 1)
        options = {k: v for k, v in config["data"]["init_args"].items() if k in {"folder", "sources", "manifest"}}
        data = getattr(importlib.import_module(module), name)(**options, num_workers=0)
        data.processors = predictor.processors
        data.prepare_data()
        for stage in ("fit", "test"):
            data.setup(stage)
        return cls(predictor, data)

    def samples(self, split: str) -> list[Sample]:
        rows = self.data.samples(split)
        return [rows[index] for index in range(len(rows))]

    @torch.inference_mode()
    def outputs(self, samples: list[Sample], subset: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Return logits, calibrated probabilities, target, presence masks and embeddings of samples."""
        model, collate, found = self.predictor.model, Collate(self.predictor.processors), {}
        for start in range(0, len(samples), 64):
            batch = collate(samples[start : start + 64])
            encoded = model.encode(batch)
            fused = model.fuse(encoded, subset=subset)
            logits = fused.logits
            if model.calibration is not None:
                logits = model.calibration.apply(logits, batch.present, subset)
            part = {"logits": fused.logits, "probabilities": model.task.probabilities(logits), "target": batch.target}
            part |= {f"present/{name}": mask for name, mask in batch.present.items()}
            part |= {f"embedding/{name}": values for name, values in embeddings_of(encoded, fused).items()}
            for name, values in part.items():
                found.setdefault(name, []).append(values)
        return {name: torch.cat(values) for name, values in found.items()}


def plant(sample: Sample, name: str, rng: np.random.Generator) -> Sample:
    """Replace an input by noise, a sentence of another language, or silence of the same size."""
    value = sample.inputs[name]
    if isinstance(value, str):
        sentences = [sentence for language in SENTENCES.values() for sentence in language]
        other = sentences[rng.integers(len(sentences))]
    elif isinstance(value, Waveform):
        other = Waveform(torch.zeros_like(value.samples), value.rate)
    else:
        other = Image.fromarray(rng.integers(0, 256, np.asarray(value).shape, dtype=np.uint8))
    return replace(sample, inputs=sample.inputs | {name: other})


def scores_of(run: Run, name: str, validation: dict[str, Tensor]) -> dict[str, Callable[[dict[str, Tensor]], Tensor]]:
    """Return the scores of outputs, by name; higher = more unlike the training data."""
    detectors, fused = run.predictor.model.outlier_detectors, "+".join(run.predictor.processors)
    rows = validation[f"present/{name}"]
    embeddings = validation[f"embedding/{name}"][rows]
    other = OutlierDetector.fit(embeddings, validation["target"][rows], embeddings)
    scores = {
        "maximum probability": lambda found: 1 - found["probabilities"].double().max(-1).values,
        "energy": lambda found: -found["logits"].double().logsumexp(-1),
    }
    if fused in detectors:
        scores["fused"] = lambda found: detectors[fused].distances(found[f"embedding/{fused}"])
    scores["input"] = lambda found: detectors[name].distances(found[f"embedding/{name}"])
    scores["input, validation rows"] = lambda found: other.distances(found[f"embedding/{name}"])
    return scores


def measure_outliers(run: Run) -> dict[tuple[str, str], tuple[float, ...]]:
    """Return (input, score) -> four numbers in %.

    They are the AUROC, the share of outliers among the 95 % least unusual scores and, of the scores with a p-value, the
    shares of usual samples and of outliers with a p-value of at most 0.05; NaN of the others.
    """
    test, rng, found = run.samples("test"), np.random.default_rng(0), {}
    validation, detectors = run.outputs(run.samples("val")), run.predictor.model.outlier_detectors
    names = {"input": None, "fused": "+".join(run.predictor.processors)}
    for name in run.predictor.processors:
        samples = [sample for sample in test if name in sample.inputs]
        usual, planted = run.outputs(samples), run.outputs([plant(sample, name, rng) for sample in samples])
        for label, score in scores_of(run, name, validation).items():
            low, high = score(usual), score(planted)
            target = torch.cat([torch.zeros(len(low)), torch.ones(len(high))]).long()
            ranks = torch.cat([low, high]).unique(return_inverse=True)[1]  # torchmetrics squashes numbers above 1
            auroc = float(binary_auroc(ranks / ranks.max(), target))
            missed = float((high <= low.quantile(0.95)).double().mean())
            shares = (float("nan"), float("nan"))
            if label in names:
                key = names[label] or name
                p_values = (detectors[key].p_values(found[f"embedding/{key}"]) for found in (usual, planted))
                shares = tuple(float((values <= LEVEL).double().mean()) for values in p_values)
            found[name, label] = tuple(100 * value for value in (auroc, missed, *shares))
    return found
