"""Fusion of decisions by multiplication."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import UnimodalClassifiers
from fusion_pl.types import Encoded, Fused


class ProductOfExperts(Fusion):
    """Multiply the inputs' probabilities, as Bayes' rule asks of independent witnesses: who is sure rules out much.

    ``P_m = softmax(V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m)``, ``q = softmax(a)`` with a learned
    ``logits = log q + Σ (log P_m - log q) over the present m``

    q is how frequent the classes are: each P_m has it inside, and it must count once. A sample without any input gets
    q.

    Cost: ``M D F + M F C`` multiply-adds a sample.

    Source: "Training Products of Experts by Minimizing Contrastive Divergence", Hinton 2002, with classifiers as
    experts and trained by cross-entropy; the division by q as for the posteriors of arXiv:1802.05335.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: hidden channels of each input's classifier.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes)
        check_sizes("ProductOfExperts", dropout, dim=dim)
        self.unimodal = UnimodalClassifiers(dims, num_classes, dim, dropout)
        self.prior = nn.Parameter(torch.zeros(num_classes))

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are the inputs' own, zeros (no opinion) where an input is missing."""
        decisions, present = self.unimodal(inputs), self.present(inputs).unsqueeze(-1)
        prior = self.prior.log_softmax(-1)
        beyond = (decisions.log_softmax(-1) - prior).masked_fill(~present, 0.0)
        return Fused(prior + beyond.sum(1), input_logits=self.named(decisions))
