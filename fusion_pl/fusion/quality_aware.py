"""Quality-aware Multimodal Fusion (QMF): fusion by energy-based confidence."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import softplus

from fusion_pl.fusion.base import LateFusion, LossOfLogits
from fusion_pl.layers import log_softplus, masked_softmax, upcast
from fusion_pl.types import Batch, Encoded, Fused, UserError

ENERGY_SCALE = 10  # divisor of the confidence in the ranking loss, as in the authors' code


class QualityAware(LateFusion):
    """Average the inputs' logits with weights from an energy-based confidence, so that blurred images count less: QMF.

    ``f_m = V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m``, confidence ``s_m = softplus(log Σ_c exp f_mc)``
    ``w_m = s_m / Σ s over the present inputs``, ``logits = Σ w_m f_m over present inputs m``; w has no gradient

    Training minimises the cross-entropy of the fused prediction and of every present input's prediction, plus ``rank``
    times a ranking loss. The ranking loss compares each sample of the batch with the sample before it (the first with
    the last): with ``c`` = softmax probability of the true class for input m, it is
    ``max(0, |c_i - c_{i-1}| - sign(c_i - c_{i-1}) · (s_i - s_{i-1}) / 10)``, averaged over the batch. It is 0 if the
    sample with the higher c has the higher confidence s, by at least ten times the difference of c.

    Cost: ``M D F + M F C`` multiply-adds per sample.

    Source: "Provable Dynamic Fusion for Low-Quality Multimodal Data", arXiv:2306.02050. Deviations: input weights are
    positive and sum to 1, so that a missing input does not scale the logits down (the authors' weights are
    ``0.1 · log Σ_c exp f_mc``); the difficulty of a sample is given by its current probability c instead of its loss
    accumulated over the epochs. The ranking loss is that of "Confidence-Aware Learning for Deep Neural Networks",
    arXiv:2007.01458. The authors' code has ``max(0, g (s_i - s_j) / 10 - |κ_i - κ_j|)`` instead, where κ is the
    difficulty and g the sign of ``κ_i - κ_j``, with weight 1 instead of 0.1.

    Args:
        rank: weight of the ranking loss, 0 or more.

    Raises:
        UserError: if ``rank`` is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, rank: float = 0.1, dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        if not 0 <= rank < math.inf:
            raise UserError(f"QualityAware was given rank={rank}, expected a number that is 0 or more")
        self.rank = rank

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are f, zeros if an input is missing."""
        input_logits, present = upcast(self.unimodal(inputs)), self.presence_mask(inputs)
        log_confidence = log_softplus(input_logits.logsumexp(-1))
        weights = masked_softmax(log_confidence, present).detach()  # s / Σ s, which does not underflow
        logits = (weights.unsqueeze(-1) * input_logits).sum(1)
        return Fused(logits, None, weights, self.logits_by_input(input_logits))

    def loss(self, fused: Fused, batch: Batch, criterion: LossOfLogits) -> dict[str, Tensor]:
        """Return the losses of all predictions, and the weighted ranking losses of all inputs."""
        assert batch.target is not None
        losses = {"fused": criterion(fused.logits)}
        for name in self.names:
            logits, present = fused.input_logits[name], batch.present[name]
            probability = logits.detach().softmax(-1).gather(-1, batch.target.unsqueeze(-1)).squeeze(-1)
            confidence = softplus(logits.logsumexp(-1)) / ENERGY_SCALE
            # Differences between each sample and the sample before it.
            margin, difference = probability - probability.roll(1), confidence - confidence.roll(1)
            ranking = (margin.abs() - margin.sign() * difference).relu().masked_fill(~(present & present.roll(1)), 0.0)
            losses[f"unimodal/{name}"] = criterion(logits, present)
            losses[f"head/rank/{name}"] = self.rank * ranking.mean()
        return losses
