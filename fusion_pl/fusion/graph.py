"""Fusion by message passing between inputs."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import masked_mean, mlp


class Graph(EmbeddingFusion):
    """Pass messages on a complete graph, whose nodes are the inputs of a sample, and average the nodes.

    ``h_m = W_m · LayerNorm(x_m) + b_m + e_m``, where ``e_m`` is a learned embedding of input m; L times:
    ``t_m = mean of GELU(A · h_m + a + B · h_k) over present inputs k other than m``, ``h_m = GRU(t_m, h_m)``
    ``z = mean of h_m over present inputs m``, ``logits = MLP(z)``

    Cost: ``M D F + L (8 M F² + M² F) + F²`` multiply-adds per sample.

    Source: "Neural Message Passing for Quantum Chemistry", arXiv:1704.01212, with the gated update of
    arXiv:1511.05493.

    Args:
        num_rounds: number of rounds L of message passing, which share their parameters.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 64, num_rounds: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, num_rounds=num_rounds)
        self.num_rounds = num_rounds
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.target_linear = nn.Linear(dim, dim)
        self.source_linear = nn.Linear(dim, dim, bias=False)
        self.update = nn.GRUCell(dim, dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        count = len(self.names)
        adjacency = ~torch.eye(count, dtype=torch.bool, device=present.device) & present.unsqueeze(1)  # B M M
        nodes = embeddings + self.embedding
        for _ in range(self.num_rounds):
            messages = nn.functional.gelu(
                self.target_linear(nodes).unsqueeze(2) + self.source_linear(nodes).unsqueeze(1)
            )  # B M M F
            mean = masked_mean(messages, adjacency)
            nodes = self.update(mean.flatten(0, 1), nodes.flatten(0, 1).to(mean.dtype)).unflatten(0, (-1, count))
        return FusedEmbedding(masked_mean(nodes, present))
