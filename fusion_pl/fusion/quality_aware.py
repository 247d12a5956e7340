"""Fusion of decisions by how sure each one looks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fusion_pl.fusion.base import CrossEntropy, Fusion, check_sizes
from fusion_pl.layers import UnimodalClassifiers, log_softplus, masked_softmax, upcast
from fusion_pl.types import Batch, Encoded, Fused, UserError

SCALE = 10  # brings energies to the size of differences of probabilities, as in the authors' code


class QualityAware(Fusion):
    """Weigh every input's decision by its energy, sample by sample: a blurred picture counts less than a sharp one.

    ``f_m = V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m``, confidence ``s_m = softplus(log Σ_c exp f_mc)``
    ``w_m = s_m / Σ s over the present inputs``, ``logits = Σ w_m f_m over the present m``; no gradient goes through w

    Training minimises the cross-entropy of the fused and of every present input's own decision, plus ``rank`` times a
    ranking loss: of two samples, the one whose input is right with the higher probability must have the higher
    confidence: a tenth of it, by at least the difference of these probabilities. Each sample of a batch is ranked
    against the one before it.

    Cost: ``M D F + M F C`` multiply-adds a sample.

    Source: "Provable Dynamic Fusion for Low-Quality Multimodal Data", arXiv:2306.02050. Deviations: weights are
    positive and sum to 1, so that a missing input does not shrink the logits (the authors' code weighs by
    ``0.1 · log Σ_c exp f_mc`` as it is); how hard a sample is, is read off the current probability instead of its
    summed-up loss over the epochs. The ranking is that of "Confidence-Aware Learning for Deep Neural Networks",
    arXiv:2007.01458, which *demands* the difference as a margin; the authors' code *tolerates* it, being
    ``max(0, g (s_i - s_j) / 10 - |κ_i - κ_j|)`` with the difficulties κ and the sign g of ``κ_i - κ_j``, and counts it
    once, where ``rank`` is 0.1.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        rank: weight of the ranking loss, 0 or more.
        dim: hidden channels of each input's classifier.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where ``rank``, a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, rank: float = 0.1, dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("QualityAware", dropout, dim=dim)
        if not 0 <= rank < math.inf:
            raise UserError(f"QualityAware was given rank={rank}, expected a number that is 0 or more")
        self.rank = rank
        self.unimodal = UnimodalClassifiers(dims, num_classes, dim, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are f, zeros (no opinion) where an input is missing."""
        decisions, present = upcast(self.unimodal(inputs)), self.present(inputs)
        weights = masked_softmax(log_softplus(decisions.logsumexp(-1)), present).detach()  # s / Σ s, without underflow
        logits = (weights.unsqueeze(-1) * decisions).sum(1)
        return Fused(logits, None, weights, self.named(decisions))

    def loss(self, fused: Fused, batch: Batch, cross_entropy: CrossEntropy) -> Tensor:
        """Return the fused and the inputs' own losses, and the ranking of their confidences."""
        assert batch.target is not None
        parts = [cross_entropy(fused.logits)]
        for name in self.names:
            own, present = fused.input_logits[name], batch.present[name]
            right = own.detach().softmax(-1).gather(-1, batch.target.unsqueeze(-1)).squeeze(-1)
            sure = softplus(own.logsumexp(-1)) / SCALE
            gap, ahead = right - right.roll(1), sure - sure.roll(1)  # each sample beside the one before it
            ranked = (gap.abs() - gap.sign() * ahead).relu().masked_fill(~(present & present.roll(1)), 0.0)
            parts.append(cross_entropy(own, present) + self.rank * ranked.mean())
        return torch.stack(parts).sum()
