"""Fusion by the product of the class probabilities that the inputs' classifiers predict."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import LateFusion
from fusion_pl.types import Encoded, Fused


class ProductOfExperts(LateFusion):
    """Multiply the inputs' predicted probabilities, as Bayes' rule does if the inputs are independent given the class.

    ``f_m = V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m``, with learned a: ``logits = a + Σ (f_m - a)`` over present m

    With ``P_m = softmax(f_m)`` and ``q = softmax(a)``, the probabilities are proportional to ``q · Π (P_m / q)``: q is
    the class prior, which is a factor of every ``P_m`` and must be a factor of the product only once. A sample without
    any input gets the probabilities q. Of independent labels, the odds of each label are such a product of odds, that
    is, of Bernoulli experts.

    Cost: ``M D F + M F C`` multiply-adds per sample.

    Source: "Training Products of Experts by Minimizing Contrastive Divergence", Hinton 2002. Deviations: the experts
    are classifiers, trained by cross-entropy; the product is divided by the prior q, as in arXiv:1802.05335.
    """

    several_labels = True

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.prior = nn.Parameter(torch.zeros(num_classes))

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are zeros if an input is missing."""
        input_logits, present = self.unimodal(inputs), self.presence_mask(inputs).unsqueeze(-1)
        ratios = (input_logits - self.prior).masked_fill(~present, 0.0)
        return Fused(self.prior + ratios.sum(1), input_logits=self.logits_by_input(input_logits))
