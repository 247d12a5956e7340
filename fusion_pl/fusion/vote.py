"""Fusion of decisions by majority."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion_pl.fusion.base import CrossEntropy, Fusion, check_sizes
from fusion_pl.layers import UnimodalClassifiers, masked_mean, upcast
from fusion_pl.types import Batch, Encoded, Fused

TIE = 0.01  # what the mean probability counts beside the votes: enough to break a tie, too little to overrule one


class Vote(Fusion):
    """Let every input train a classifier of its own, and take the class that most of the present ones choose.

    ``P_m = softmax(V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m)``, ``v_m`` = 1 at the largest P_m, else 0
    ``P = (mean of v_m + 0.01 · mean of P_m, over the present m) / 1.01``, ``logits = log P``

    Ties go to the class with the larger mean probability. A sample without any input gets equal probabilities. A vote
    has no gradient, so training looks at each classifier alone: ``loss = Σ cross-entropy of P_m over the present m``.

    Cost: ``M D F + M F C`` multiply-adds a sample.

    Source: "On Combining Classifiers", Kittler et al. 1998 (IEEE TPAMI 20), the majority vote rule.

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
        check_sizes("Vote", dropout, dim=dim)
        self.unimodal = UnimodalClassifiers(dims, num_classes, dim, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are the inputs' own, zeros (no opinion) where an input is missing."""
        decisions, present = upcast(self.unimodal(inputs)), self.present(inputs)  # half precision cannot tell a tie
        votes = nn.functional.one_hot(decisions.argmax(-1), self.num_classes).to(decisions.dtype)
        shares = masked_mean(votes, present) + TIE * masked_mean(decisions.softmax(-1), present)
        known = present.any(-1, keepdim=True)
        # Where nobody voted for a class its probability may underflow, and its logit shall stay finite.
        shares = torch.where(known, shares.clamp(min=torch.finfo(shares.dtype).tiny), 1.0)
        logits = shares.log().log_softmax(-1)
        return Fused(logits, input_logits=self.named(decisions))

    def loss(self, fused: Fused, batch: Batch, cross_entropy: CrossEntropy) -> Tensor:
        """Return the sum of the classifiers' own losses."""
        return torch.stack([cross_entropy(fused.input_logits[name], batch.present[name]) for name in self.names]).sum()
