"""Fusion by a mixture of experts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, LossOfLogits, PresenceMask
from fusion_pl.layers import mlp
from fusion_pl.types import Batch, Fused, UserError


class Experts(EmbeddingFusion):
    """Route each sample to the top-k of K expert networks: a sparse mixture of experts with a load-balancing loss.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``c = [u_1 … u_M, p_1 … p_M]`` (``p_m = 1`` if input m is present, else 0)
    ``q = softmax(G · c + d)``; ``g``: the ``top_k`` largest of q, normalised to sum to 1, and 0 for the others
    ``z = Σ_k g_k E_k(c)``, where each expert ``E_k`` is an MLP with one hidden layer; ``logits = V · GELU(z) + b``

    Training adds the load-balancing loss ``balance · K Σ_k f_k P_k``, where ``f_k`` is the fraction of the samples of a
    batch whose top-1 expert is k, and ``P_k`` is the mean of ``q_k`` over the batch. ``K Σ_k f_k P_k`` is 1 if the
    experts are used equally, and K if all samples are routed to one expert.

    Cost: ``M D F + K (M F² + F²)`` multiply-adds per sample: all experts are computed for all samples.

    Source: "Outrageously Large Neural Networks", arXiv:1701.06538, with the loss of "Switch Transformers",
    arXiv:2101.03961, equation 4. Deviation: no noise in the router.

    Args:
        num_experts: number of experts K.
        top_k: number of experts per sample, from 2 to K.
        balance: weight of the load-balancing loss, 0 or more.

    Raises:
        UserError: if ``top_k`` or ``balance`` is out of range.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 64,
        num_experts: int = 4,
        top_k: int = 2,
        balance: float = 0.01,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, num_experts=num_experts)
        if not 2 <= top_k <= num_experts:
            raise UserError(
                f"Experts was given top_k={top_k}, expected at least 2 (the weight of a single expert is always 1, so "
                f"that the router gets no gradient) and at most num_experts={num_experts}"
            )
        if not (math.isfinite(balance) and balance >= 0):
            raise UserError(f"Experts was given balance={balance}, expected a number that is 0 or more")
        self.top_k, self.balance = top_k, balance
        channels = len(dims) * (dim + 1)
        self.router = nn.Linear(channels, num_experts)
        self.experts = nn.ModuleList(mlp(channels, dim, dim, dropout) for _ in range(num_experts))
        self.classifier = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, num_classes))

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z, and the routing probabilities q for the loss."""
        context = torch.cat([embeddings.flatten(1), present.to(embeddings.dtype)], dim=-1)
        probabilities = self.router(context).softmax(-1)
        largest, index = probabilities.topk(self.top_k, dim=-1)
        gates = torch.zeros_like(probabilities).scatter(-1, index, largest / largest.sum(-1, keepdim=True))
        outputs = torch.stack([expert(context) for expert in self.experts], dim=1)
        embedding = (gates.unsqueeze(-1) * outputs).sum(1)
        return FusedEmbedding(embedding, extra={"router_probabilities": probabilities})

    def loss(self, fused: Fused, batch: Batch, criterion: LossOfLogits) -> dict[str, Tensor]:
        """Return the loss of the logits and the load-balancing loss."""
        del batch
        probabilities = fused.extra["router_probabilities"]
        num_experts = probabilities.shape[-1]
        load = nn.functional.one_hot(probabilities.argmax(-1), num_experts).to(probabilities.dtype).mean(0)
        balance = self.balance * num_experts * (load * probabilities.mean(0)).sum()
        return {"fused": criterion(fused.logits), "head/balance": balance}
