"""Fusion by messages between inputs."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, masked_mean, mlp
from fusion_pl.types import Encoded, Fused


class Graph(Fusion):
    """Make every input a node that tells all others what it holds, for some rounds, and read the nodes' mean.

    ``h_m = W_m · LayerNorm(x_m) + b_m + e_m``, where ``e_m`` is a learned embedding of input m; L times:
    ``t_m = mean of GELU(A · h_m + a + B · h_k) over the present k other than m``, ``h_m = GRU(t_m, h_m)``
    ``z = mean over the present m of h_m``, ``logits = MLP(z)``

    Cost: ``M D F + L (8 M F² + M² F) + F²`` multiply-adds a sample.

    Source: "Neural Message Passing for Quantum Chemistry", arXiv:1704.01212, with the gated update of
    arXiv:1511.05493, on the complete graph of a sample's inputs.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of the nodes and of the joint embedding z.
        num_rounds: L; A, a, B and the GRU are the same in all of them.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 64, num_rounds: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Graph", dropout, dim=dim, num_rounds=num_rounds)
        self.num_rounds = num_rounds
        self.project = EmbeddingProjection(dims, dim)
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.listen = nn.Linear(dim, dim)
        self.tell = nn.Linear(dim, dim, bias=False)
        self.update = nn.GRUCell(dim, dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        present = self.present(inputs)
        count = len(self.names)
        other = ~torch.eye(count, dtype=torch.bool, device=present.device) & present.unsqueeze(1)  # B M M: m hears k
        nodes = self.project(inputs) + self.embedding
        for _ in range(self.num_rounds):
            messages = nn.functional.gelu(self.listen(nodes).unsqueeze(2) + self.tell(nodes).unsqueeze(1))  # B M M F
            heard = masked_mean(messages, other)
            nodes = self.update(heard.flatten(0, 1), nodes.flatten(0, 1).to(heard.dtype)).unflatten(0, (-1, count))
        vector = masked_mean(nodes, present)
        return Fused(self.classify(vector), vector)
