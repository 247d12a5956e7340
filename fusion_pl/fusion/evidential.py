"""Fusion of decisions by evidence."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from fusion_pl.fusion.base import CrossEntropy, Fusion, check_sizes
from fusion_pl.layers import UnimodalClassifiers, log_softplus, masked_softmax, upcast
from fusion_pl.types import Batch, Encoded, Fused, UserError


class Evidential(Fusion):
    """Let every input say what it believes and how much it does not know, and combine them as Dempster and Shafer do.

    ``e_m = softplus(f_m)``, zeros where input m is missing; ``α_m = e_m + 1``, ``S_m = Σ_c α_mc``
    belief ``b_m = e_m / S_m``, uncertainty ``u_m = C / S_m``; combined one after the other, with conflict
    ``k = Σ_{i≠j} b_i b'_j``: ``b ⊕ b' = (b ∘ b' + b u' + b' u) / (1 - k)``, ``u ⊕ u' = u u' / (1 - k)``
    ``α = C b / u + 1``, ``P = α / Σ α``, ``logits = log α``

    The conflict cancels in ``b / u``, for which the rule reads ``1 + b / u = Π (1 + b_m / u_m)``. As
    ``b_m / u_m = e_m / C`` that is ``α = C (exp g - 1) + 1`` with ``g = Σ log(1 + e_m / C)``, in any order.

    A missing input believes nothing (b = 0, u = 1), which changes nothing. ``weights`` are the shares of ``1 - u_m``.
    Training minimises the cross-entropy of P and of every present input's own ``α_m / S_m``, plus ``kl_weight``
    times the divergence from the flat Dirichlet of what each believes in wrong classes.

    Cost: ``M D F + M F C`` multiply-adds a sample.

    Source: "Trusted Multi-View Classification", arXiv:2102.02051. Softplus, which does not get stuck at zero, is what
    the authors' code has where the paper writes ReLU. Deviations: the cross-entropy of the expected probabilities
    (type II likelihood of arXiv:1806.01768) instead of the expected cross-entropy; the divergence of the inputs' own
    opinions only, where theirs is of the fused one too; its weight is constant, where theirs rises from 0 to 1 over the
    first epochs and stays there.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        kl_weight: weight of the divergence, 0 or more.
        dim: hidden channels of each input's network f_m.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where ``kl_weight``, a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, kl_weight: float = 0.1, dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Evidential", dropout, dim=dim)
        if not 0 <= kl_weight < math.inf:
            raise UserError(f"Evidential was given kl_weight={kl_weight}, expected a number that is 0 or more")
        self.kl_weight = kl_weight
        self.unimodal = UnimodalClassifiers(dims, num_classes, dim, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are ``log α_m``, zeros (no opinion) where an input is missing."""
        present = self.present(inputs)
        decisions = upcast(self.unimodal(inputs))
        evidence = softplus(decisions).masked_fill(~present.unsqueeze(-1), 0.0)
        classes, total = self.num_classes, log_softplus(decisions).logsumexp(-1)
        gain = (evidence / classes).log1p().sum(1)
        logits = gain + (classes - (classes - 1) * (-gain).exp()).log()  # log α; exp(gain) itself might overflow
        weights = masked_softmax(total - (total.exp() + classes).log(), present)  # of log (1 - u), without underflow
        own = (evidence + 1).log()
        return Fused(logits, None, weights, self.named(own))

    def loss(self, fused: Fused, batch: Batch, cross_entropy: CrossEntropy) -> Tensor:
        """Return the joint and the inputs' own losses, each with its kl_weight."""
        assert batch.target is not None
        parts = [cross_entropy(fused.logits)]
        for name in self.names:
            present, alpha = batch.present[name], fused.input_logits[name].exp()
            wrong = alpha.masked_fill(one_hot(batch.target, self.num_classes).bool(), 1.0)
            kl_weight = from_flat(wrong).masked_fill(~present, 0.0).mean()
            parts.append(cross_entropy(fused.input_logits[name], present) + self.kl_weight * kl_weight)
        return torch.stack(parts).sum()


def from_flat(alpha: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Return the divergence KL(Dir(α) ‖ Dir(1)) of each row; torch's own cannot be compiled."""
    total = alpha.sum(-1)
    volumes = total.lgamma() - math.lgamma(alpha.shape[-1]) - alpha.lgamma().sum(-1)
    return volumes + ((alpha - 1) * (alpha.digamma() - total.digamma().unsqueeze(-1))).sum(-1)
