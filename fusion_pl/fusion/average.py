"""Fusion by the mean of the class probabilities that the inputs' classifiers predict."""

from __future__ import annotations

from typing import Literal

from fusion_pl.fusion.base import LateFusion
from fusion_pl.layers import InputWeights
from fusion_pl.types import Encoded, Fused


class Average(LateFusion):
    """Average the class probabilities that one classifier per input predicts.

    ``h_m = GELU(W_m · LayerNorm(x_m) + b_m)``, ``P_m = softmax(V_m · h_m + c_m)``
    ``P = Σ_m w_m P_m``, ``logits = log P``; ``w`` sums to 1 over the present inputs.

    The logits are computed in log space, ``logsumexp_m(log w_m + log P_m)``, so that a confident wrong prediction keeps
    its gradient. A sample without any input gets equal probabilities. Of independent labels, ``P_m = sigmoid(…)`` and
    ``logits = log P - log(1 - P)``.

    Cost: ``M D F + M F C`` multiply-adds per sample, and ``M F²`` more for ``weights: sample``.

    Source: "On Combining Classifiers", Kittler et al. 1998 (IEEE TPAMI 20), the sum rule. Deviation: the input weights.

    Args:
        weights: ``equal``; ``{text: 2.0, image: 1.0}``: fixed, one number >= 0 per input, normalised over the present
            inputs; ``global``: learned, one number per input; ``sample``: learned, computed from each sample's hidden
            channels (see ``fusion_pl.layers.InputWeights``).

    Raises:
        UserError: if fixed input weights do not match the inputs.
    """

    several_labels = True

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        weights: dict[str, float] | Literal["equal", "global", "sample"] = "equal",
        dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.weighting = InputWeights(self.names, dim, weights)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are zeros if an input is missing."""
        hidden, present = self.unimodal.compute_hidden(inputs), self.presence_mask(inputs)
        input_logits = self.unimodal.logits_from_hidden(hidden, inputs)
        log_weights = self.weighting(hidden, present)
        log_probabilities = self.split_decisions(input_logits).log_softmax(-1)
        logits = self.join_decisions((log_weights[..., None, None] + log_probabilities).logsumexp(1))
        weights = log_weights.exp().masked_fill(~present, 0.0)
        return Fused(logits, None, weights, self.logits_by_input(input_logits))
