"""Fusion by one transformer over everything."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.attention import TokenProjection, TransformerLayer
from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import keep_variance
from fusion_pl.types import Encoded, Fused


class SelfAttention(Fusion):
    """Put the tokens of all inputs behind one class token and let a transformer read the whole: model-level fusion.

    ``x_{m,t} = W_m · LayerNorm(token_t of m) + e_m + p_t``, with learned embeddings of input m and of place t
    ``[z, …] = L transformer layers over [class token, x_1, …, x_M]``, ``logits = V · LayerNorm(z) + c``

    Cost: ``S D F + (L - 1) (12 S F² + 2 S² F) + 2 S F²`` multiply-adds a sample, S = 1 + all tokens: in the last layer
    only the class token asks.

    Source: "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", arXiv:2102.03334, here
    for any inputs and after their encoders.

    Args:
        dims: name of the input -> channels D of its tokens.
        num_classes: C.
        dim: channels F of the transformer; its MLPs are four times as wide.
        num_heads: H, a divisor of ``dim``.
        num_layers: L.
        positions: places that have an embedding; the last one is shared by all later tokens.
        dropout: probability in residual branches and before the classifier, in training.

    Raises:
        UserError: where ``num_heads`` does not divide ``dim``, or a size or the dropout is out of range.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        positions: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("SelfAttention", dropout, dim=dim, num_heads=num_heads, num_layers=num_layers, positions=positions)
        self.project = TokenProjection(dims, dim, positions)
        self.class_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        keep_variance(self)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is the normalised z."""
        tokens = self.project(inputs)
        first = self.class_token.expand(tokens[0].shape[0], 1, -1).to(tokens[0].dtype)
        x = torch.cat([first, *tokens], dim=1)
        # A sample without any input keeps its class token to look at.
        real = torch.cat([inputs[name].mask for name in self.names], dim=1)
        attention_mask = nn.functional.pad(real, (1, 0), value=True).unsqueeze(1)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, attention_mask)
        vector = self.norm(last(x, attention_mask, first=1)[:, 0])  # nobody looks at the others any more
        return Fused(self.classify(vector), vector)
