"""Detect samples that are unlike the data of the training: Mahalanobis distance of embeddings, and its p-value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion_pl.torch_files import is_complete_tensor
from fusion_pl.types import Encoded, Fused, UserError

MIN_SAMPLES = 50  # of training, and of validation
MAX_DIM = 128  # channels of the covariance, so that a fit takes milliseconds


@dataclass(frozen=True)
class OutlierDetector:
    r"""Compare embeddings x with those of training samples.

    The score is the squared Mahalanobis distance to the nearest class, with the means :math:`\mu_c` of the classes and
    the covariance :math:`\Sigma` within the classes:

    :math:`s(x) = \min_c (x - \mu_c)^T \Sigma^{-1} (x - \mu_c) = \min_c \|W x - W \mu_c\|^2,\ W^T W = \Sigma^{-1}`

    The p-value of a new sample is :math:`(1 + |\{i: s_i \ge s\}|) / (n + 1)` with the scores :math:`s_i` of n
    validation samples, which are not used for the statistics (split-conformal): of samples that are drawn as these are,
    a share of at most α has a p-value of at most α.

    Source: "A Simple Unified Framework for Detecting Out-of-Distribution Samples", arXiv:1807.03888; oracle
    approximating shrinkage of the covariance, arXiv:0907.4698. Deviations: one layer; no perturbation of the input;
    shrinkage; a part of the training samples. An embedding with more than 128 channels is first projected to 128 by a
    random Gaussian matrix with a fixed seed, which changes distances by about 6 %: a covariance of more channels has
    too few samples and takes too long.

    Attributes:
        whitening: W, after the projection, if there is one.
        means: W μ of the K classes that have samples.
        scores: scores of the validation samples.
    """

    whitening: Float[Tensor, "P D"]
    means: Float[Tensor, "K P"]
    scores: Float[Tensor, " N"]

    @classmethod
    def fit(
        cls, embeddings: Float[Tensor, "M D"], target: Int[Tensor, " M"], validation: Float[Tensor, "N D"]
    ) -> OutlierDetector:
        """Fit the statistics on training samples, and score validation samples.

        Args:
            embeddings: embeddings of the training samples.
            target: their classes; all 0 for one common mean.
            validation: embeddings of the validation samples.
        """
        projection = _projection(embeddings.shape[1])
        whitening, means = _fit_statistics(embeddings.double() @ projection.T, target)
        detector = cls((whitening @ projection).float(), means.float(), torch.empty(0, dtype=torch.float64))
        return replace(detector, scores=detector.distances(validation))

    def distances(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return the score s of each sample."""
        return _squared_distances(embeddings.cpu().double(), self.whitening.double(), self.means.double())

    def p_values(self, embeddings: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return the p-value of each sample: near 0 if it is unlike the validation samples."""
        ordered = self.scores.sort().values
        return (1 + len(ordered) - torch.searchsorted(ordered, self.distances(embeddings))) / (len(ordered) + 1)


def embeddings_of(encoded: Mapping[str, Encoded], fused: Fused) -> dict[str, Float[Tensor, "B _"]]:
    """Return the embeddings of a batch by name: each input, and, if the head has one, the fused embedding.

    The name of the fused embedding is that of all inputs, joined by ``+``.
    """
    embeddings = {name: value.embedding.float() for name, value in encoded.items()}
    if fused.embedding is not None and len(encoded) > 1:
        embeddings["+".join(encoded)] = fused.embedding.float()
    return embeddings


class Embeddings(NamedTuple):
    """Embeddings of N samples.

    Attributes:
        values: name -> embeddings.
        present: name -> whether each sample has the embedding; a name without mask: all have it.
        target: classes of the samples; all 0 for one common mean.
    """

    values: Mapping[str, Float[Tensor, "N _"]]
    present: Mapping[str, Bool[Tensor, " N"]]
    target: Int[Tensor, " N"]

    def select(self, name: str) -> tuple[Float[Tensor, "R D"], Int[Tensor, " R"]]:
        """Return the embeddings and the classes of the samples that have an embedding."""
        rows = self.present.get(name, torch.ones(len(self.target), dtype=torch.bool))
        return self.values[name][rows], self.target[rows]


def fit_detectors(training: Embeddings, validation: Embeddings) -> dict[str, OutlierDetector]:
    """Fit a detector per embedding, unless it has too few samples, or numbers that are not finite."""
    detectors = {}
    for name in training.values:
        (embeddings, target), (held_out, _) = training.select(name), validation.select(name)
        is_finite = bool(embeddings.isfinite().all() and held_out.isfinite().all())
        if min(len(embeddings), len(held_out)) >= MIN_SAMPLES and is_finite:
            detectors[name] = OutlierDetector.fit(embeddings, target, held_out)
    return detectors


def _projection(dim: int) -> Float[Tensor, "P D"]:
    """Return the matrix that projects embeddings with more than ``MAX_DIM`` channels; the identity for others."""
    if dim <= MAX_DIM:
        return torch.eye(dim, dtype=torch.float64)
    matrix = torch.randn(MAX_DIM, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return matrix / math.sqrt(MAX_DIM)


def _fit_statistics(
    embeddings: Float[Tensor, "N D"], target: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "D D"], Float[Tensor, "K D"]]:
    """Return W and W μ."""
    _, index, counts = torch.unique(target, return_inverse=True, return_counts=True)
    means = torch.zeros(len(counts), embeddings.shape[1], dtype=torch.float64).index_add_(0, index, embeddings)
    means = means / counts.unsqueeze(1)
    covariance = shrunk_covariance(embeddings - means[index])
    identity = torch.eye(len(covariance), dtype=torch.float64)
    whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
    return whitening, means @ whitening.T


def shrunk_covariance(residuals: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    r"""Return the covariance of residuals with mean 0, :math:`(1 - \rho) S + \rho\, \mathrm{tr}(S) / D\; I`.

    ρ is that of oracle approximating shrinkage, in the form of scikit-learn. A tiny share of I keeps the result
    positive definite if all residuals are 0.
    """
    count, dim = residuals.shape
    covariance = residuals.T @ residuals / count
    mean_square, variance = float(covariance.square().mean()), float(covariance.trace()) / dim
    denominator = (count + 1) * (mean_square - variance**2 / dim)
    shrinkage = min(1.0, (mean_square + variance**2) / denominator) if denominator > 0 else 1.0
    identity = torch.eye(dim, dtype=covariance.dtype)
    return (1 - shrinkage) * covariance + (shrinkage * variance + 1e-12) * identity


def _squared_distances(
    embeddings: Float[Tensor, "B D"], whitening: Float[Tensor, "P D"], means: Float[Tensor, "K P"]
) -> Float[Tensor, " B"]:
    """Return the squared distance of each whitened embedding to the nearest mean."""
    return torch.cdist(embeddings @ whitening.T, means).min(-1).values.square()


def detectors_config(detectors: Mapping[str, OutlierDetector]) -> dict[str, dict[str, Tensor]]:
    """Return the content for a checkpoint."""
    return {name: dict(vars(detector)) for name, detector in detectors.items()}


def read_detectors(config: Mapping[str, Any], dims: Mapping[str, int]) -> dict[str, OutlierDetector]:
    """Return the detectors in the configuration of a checkpoint; empty if it has none.

    Args:
        config: configuration of the model.
        dims: name of the input -> channels of its embedding.

    Raises:
        UserError: if they are damaged.
    """
    detectors = {}
    try:
        for name, content in (config.get("outlier_detectors") or {}).items():
            whitening, means, scores = (content[key] for key in ("whitening", "means", "scores"))
            dim = dims.get(name, whitening.shape[-1])  # the model tells that of the fused embedding later
            shape = (min(dim, MAX_DIM), dim)
            is_valid = name in {*dims, "+".join(dims)} and is_complete_tensor(whitening, torch.float32, shape)
            is_valid = is_valid and is_complete_tensor(means, torch.float32, (len(means), shape[0]))
            is_valid = is_valid and is_complete_tensor(scores, torch.float64, (len(scores),))
            if not is_valid or 0 in (len(means), len(scores)):
                raise UserError("its outlier detectors are damaged (a number is missing or not finite)")
            detectors[name] = OutlierDetector(whitening, means, scores)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"its outlier detectors are damaged ({type(error).__name__})") from error
    return detectors
