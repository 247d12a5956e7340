"""Fusion by one transformer over the tokens of all inputs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion_pl.attention import TransformerLayer
from fusion_pl.fusion.base import TokenFusion, TokenMask, Tokens, check_sizes
from fusion_pl.layers import init_variance_preserving


class SelfAttention(TokenFusion):
    """Apply a transformer to a class token and the tokens of all inputs.

    ``x_{m,t} = W_m · LayerNorm(token_t of m) + e_m + p_t``, with learned embeddings of input m and of position t
    ``[z, …] = L transformer layers over [class token, x_1, …, x_M]``, ``logits = V · LayerNorm(z) + c``

    Cost: ``S D F + (L - 1) (12 S F² + 2 S² F) + 2 S F²`` multiply-adds per sample, S = 1 + all tokens: the last layer
    computes the class token only.

    Source: "ViLT: Vision-and-Language Transformer Without Convolution or Region Supervision", arXiv:2102.03334.
    Deviation: the tokens are the outputs of encoders, and the inputs may have any modality.

    Args:
        positions: length of the position embedding; all later tokens share the last entry.
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
        check_sizes("SelfAttention", dropout, positions=positions)
        super().__init__(dims, num_classes, dim, num_heads, num_layers, dropout, positions)
        self.class_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.layers = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        init_variance_preserving(self)

    def fuse(self, tokens: list[Tokens], masks: list[TokenMask]) -> Float[Tensor, "B F"]:
        """Return the normalised fused embedding z."""
        class_token = self.class_token.expand(tokens[0].shape[0], 1, -1).to(tokens[0].dtype)
        x = torch.cat([class_token, *tokens], dim=1)
        # Tokens always attend to the class token, so no softmax is over zero entries.
        attention_mask = nn.functional.pad(torch.cat(masks, dim=1), (1, 0), value=True).unsqueeze(1)
        *layers, last = self.layers
        for layer in layers:
            x = layer(x, attention_mask)
        embedding: Tensor = self.norm(last(x, attention_mask, num_queries=1)[:, 0])
        return embedding
