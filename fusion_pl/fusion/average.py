"""Fusion of decisions."""

from __future__ import annotations

from typing import Literal

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import InputWeights, UnimodalClassifiers
from fusion_pl.types import Encoded, Fused


class Average(Fusion):
    """Let every input decide for itself and average the probabilities: the inputs meet only at the very end.

    ``h_m = GELU(W_m · LayerNorm(x_m) + b_m)``, ``P_m = softmax(V_m · h_m + c_m)``
    ``P = Σ_m w_m P_m``, ``logits = log P``; ``w`` sums to 1 over the present inputs.

    The logarithm is taken without leaving it, ``logsumexp_m(log w_m + log P_m)``, so that a confident mistake keeps its
    gradient. A sample without any input gets equal probabilities.

    Cost: ``M D F + M F C`` multiply-adds a sample, and ``M F²`` more for ``weights: sample``.

    Source: "On Combining Classifiers", Kittler et al. 1998 (IEEE TPAMI 20), the sum rule; with weights it is a mixture.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        weights: where w comes from. ``equal``; ``{text: 2.0, image: 1.0}``: given, one number >= 0 for each input,
            shared out over the present ones; ``global``: learned, one number for each input; ``sample``: learned, from
            what each sample holds (see ``fusion_pl.layers.InputWeights``).
        dim: hidden channels of each input's classifier.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where given weights do not fit the inputs, or a size or the dropout is out of range.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        weights: dict[str, float] | Literal["equal", "global", "sample"] = "equal",
        dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Average", dropout, dim=dim)
        self.unimodal = UnimodalClassifiers(dims, num_classes, dim, dropout)
        self.weigh = InputWeights(self.names, dim, weights)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are the inputs' own, zeros (no opinion) where an input is missing."""
        hidden, present = self.unimodal.hidden(inputs), self.present(inputs)
        decisions = self.unimodal.from_hidden(hidden, inputs)
        log_weights = self.weigh(hidden, present)
        logits = (log_weights.unsqueeze(-1) + decisions.log_softmax(-1)).logsumexp(1)
        weights = log_weights.exp().masked_fill(~present, 0.0)
        return Fused(logits, None, weights, self.named(decisions))
