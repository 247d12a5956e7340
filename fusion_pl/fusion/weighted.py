"""Fusion by a weighted average of vectors."""

from __future__ import annotations

from typing import Literal

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, InputWeights, mlp
from fusion_pl.types import Encoded, Fused


class Weighted(Fusion):
    """Average the inputs' vectors with weights that you give, or that training finds.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = Σ_m w_m u_m``, ``logits = MLP(z)``
    where ``w`` sums to 1 over the present inputs.

    Cost: ``M D F + M F² + F²`` multiply-adds a sample; without ``M F²`` unless weights are ``sample``.

    Source: "Attention-based Deep Multiple Instance Learning", arXiv:1802.04712, equation 8, for ``sample``. Deviation:
    a learned offset for each input.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        weights: where w comes from. ``{text: 2.0, image: 1.0}``: given, one number >= 0 for each input, shared out over
            the present ones. ``global``: learned, one number for each input. ``sample``: learned, from what each sample
            holds, so that a noisy recording can count less (see ``fusion_pl.layers.InputWeights``).
        dim: channels F of the joint embedding z, and of the classifier's hidden layer.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where given weights do not fit the inputs, or a size or the dropout is out of range.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        weights: dict[str, float] | Literal["global", "sample"] = "sample",
        dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Weighted", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.weigh = InputWeights(self.names, dim, weights)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z and ``weights`` are w."""
        vectors, present = self.project(inputs), self.present(inputs)
        weights = self.weigh(vectors, present).exp().masked_fill(~present, 0.0)
        vector = (weights.unsqueeze(-1) * vectors).sum(1)
        return Fused(self.classify(vector), vector, weights)
