"""Fusion by majority vote."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion_pl.fusion.base import LateFusion, LossOfLogits
from fusion_pl.layers import masked_mean, upcast
from fusion_pl.types import Batch, Encoded, Fused

TIE_BREAK = 0.01  # weight of the mean probability: it breaks ties but cannot change a majority


class Vote(LateFusion):
    """Predict the class that most of the present inputs' classifiers predict.

    ``P_m = softmax(V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m)``, ``v_m`` = 1 at the largest P_m, else 0
    ``P = (mean of v_m + 0.01 · mean of P_m, over present inputs m) / 1.01``, ``logits = log P``

    Ties are broken by the larger mean probability. A sample without any input gets equal probabilities. Of independent
    labels, ``P_m = sigmoid(…)``, ``v_m`` = 1 for a label if P_m is above 0.5, and ``logits = log P - log(1 - P)``.

    A vote has no gradient, so the loss is that of the classifiers: ``loss = Σ cross-entropy of P_m over present m``.

    Cost: ``M D F + M F C`` multiply-adds per sample.

    Source: "On Combining Classifiers", Kittler et al. 1998 (IEEE TPAMI 20), the majority vote rule.
    """

    several_labels = True

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are zeros if an input is missing."""
        input_logits, present = upcast(self.unimodal(inputs)), self.presence_mask(inputs)  # half precision causes ties
        decisions = self.split_decisions(input_logits)
        votes = nn.functional.one_hot(decisions.argmax(-1), decisions.shape[-1]).to(decisions.dtype)
        scores = masked_mean((votes + TIE_BREAK * decisions.softmax(-1)).flatten(2), present)
        # The probability of a class without votes may underflow; its logit must be finite.
        scores = scores.clamp(min=torch.finfo(scores.dtype).tiny)
        scores = torch.where(present.any(-1, keepdim=True), scores, 1.0)
        logits = scores.log().view_as(decisions[:, 0]).log_softmax(-1)
        return Fused(self.join_decisions(logits), input_logits=self.logits_by_input(input_logits))

    def loss(self, fused: Fused, batch: Batch, criterion: LossOfLogits) -> dict[str, Tensor]:
        """Return the loss of each input's classifier."""
        logits, present = fused.input_logits, batch.present
        return {f"unimodal/{name}": criterion(logits[name], present[name]) for name in self.names}
