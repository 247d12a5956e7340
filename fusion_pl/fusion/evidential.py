"""Trusted Multi-View Classification (TMC): fusion by evidence."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from fusion_pl.fusion.base import LateFusion, LossOfLogits
from fusion_pl.layers import log_softplus, masked_softmax, upcast
from fusion_pl.types import Batch, Encoded, Fused, UserError


class Evidential(LateFusion):
    """Predict evidence and uncertainty per input, and combine them by Dempster's rule: TMC.

    ``e_m = softplus(f_m)``, zeros if input m is missing; ``α_m = e_m + 1``, ``S_m = Σ_c α_mc``
    belief ``b_m = e_m / S_m``, uncertainty ``u_m = C / S_m``; the inputs are combined one after the other, with the
    conflict ``k = Σ_{i≠j} b_i b'_j``: ``b ⊕ b' = (b ∘ b' + b u' + b' u) / (1 - k)``, ``u ⊕ u' = u u' / (1 - k)``
    ``α = C b / u + 1``, ``P = α / Σ α``, ``logits = log α``

    The factor ``1 - k`` cancels in ``b / u``, so that ``1 + b / u = Π (1 + b_m / u_m)`` in any order of the inputs.
    With ``b_m / u_m = e_m / C``, this is computed as ``α = C (exp g - 1) + 1``, ``g = Σ log(1 + e_m / C)``.

    A missing input has b = 0 and u = 1, which changes nothing. Input weights are ``1 - u_m``, normalised over inputs.
    Training minimises the cross-entropy of P and of the prediction ``α_m / S_m`` of every present input m, plus
    ``kl_weight`` times the KL divergence between the input's Dirichlet distribution over the wrong classes and the
    uniform Dirichlet distribution.

    Cost: ``M D F + M F C`` multiply-adds per sample.

    Source: "Trusted Multi-View Classification", arXiv:2102.02051; softplus as in the authors' code (ReLU in the paper).
    Deviations: the cross-entropy of the expected probabilities (type II likelihood of arXiv:1806.01768) instead of the
    expected cross-entropy; the KL divergence of the inputs' distributions only, not of the fused distribution; a
    constant weight of the KL divergence instead of a weight that rises from 0 to 1 over the first epochs.

    Args:
        kl_weight: weight of the KL divergence, 0 or more.

    Raises:
        UserError: if ``kl_weight`` is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, kl_weight: float = 0.1, dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        if not 0 <= kl_weight < math.inf:
            raise UserError(f"Evidential was given kl_weight={kl_weight}, expected a number that is 0 or more")
        self.kl_weight = kl_weight

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are ``log α_m``, zeros if an input is missing."""
        present, classes = self.presence_mask(inputs), self.num_classes
        outputs = upcast(self.unimodal(inputs))
        evidence = softplus(outputs).masked_fill(~present.unsqueeze(-1), 0.0)
        g = (evidence / classes).log1p().sum(1)
        logits = g + (classes - (classes - 1) * (-g).exp()).log()  # log α without exp(g), which may overflow
        log_total = log_softplus(outputs).logsumexp(-1)
        log_certainty = log_total - (log_total.exp() + classes).log()  # log (1 - u) without underflow
        weights = masked_softmax(log_certainty, present)
        return Fused(logits, None, weights, self.logits_by_input((evidence + 1).log()))

    def loss(self, fused: Fused, batch: Batch, criterion: LossOfLogits) -> dict[str, Tensor]:
        """Return the losses of all predictions, and the weighted KL divergences of all inputs."""
        assert batch.target is not None
        losses = {"fused": criterion(fused.logits)}
        for name in self.names:
            present, alpha = batch.present[name], fused.input_logits[name].exp()
            wrong_alpha = alpha.masked_fill(one_hot(batch.target, self.num_classes).bool(), 1.0)
            divergence = kl_from_uniform(wrong_alpha).masked_fill(~present, 0.0).mean()
            losses[f"unimodal/{name}"] = criterion(fused.input_logits[name], present)
            losses[f"head/kl/{name}"] = self.kl_weight * divergence
        return losses


def kl_from_uniform(alpha: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Return the KL divergence KL(Dir(α) ‖ Dir(1)) of each row α.

    ``torch.distributions`` is not used, because ``torch.compile`` does not support it.
    """
    total = alpha.sum(-1)
    log_volumes = total.lgamma() - math.lgamma(alpha.shape[-1]) - alpha.lgamma().sum(-1)
    return log_volumes + ((alpha - 1) * (alpha.digamma() - total.digamma().unsqueeze(-1))).sum(-1)
