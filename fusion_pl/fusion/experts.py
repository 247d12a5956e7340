"""Fusion by specialists."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion_pl.fusion.base import CrossEntropy, Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp
from fusion_pl.types import Batch, Encoded, Fused, UserError


class Experts(Fusion):
    """Send each sample to the few of K networks that suit it: a mixture of experts, with its load shared out.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``c = [u_1 … u_M, p_1 … p_M]`` (``p_m = 1`` where input m is present, else 0)
    ``q = softmax(G · c + d)``; ``g``: the ``top_k`` largest of q, made to sum to 1, and 0 for the others
    ``z = Σ_k g_k E_k(c)``, where each expert ``E_k`` is a network of one hidden layer; ``logits = V · GELU(z) + b``

    Training adds ``balance · K Σ_k f_k P_k``: f_k is the share of the batch whose first choice is expert k, P_k the
    mean of q_k. The sum times K is 1 where all experts are asked equally often, and K where one is asked always.

    Cost: ``M D F + K (M F² + F²)`` multiply-adds a sample: all experts run, since a batch holds work for each.

    Source: "Outrageously Large Neural Networks", arXiv:1701.06538, with the loss of "Switch Transformers",
    arXiv:2101.03961, equation 4. No noise is added to the router.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of every input, of the hidden layers and of the joint embedding z.
        num_experts: K.
        top_k: experts that a sample is sent to, from 2 to K.
        balance: weight of the balancing loss, 0 or more.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size, ``top_k``, ``balance`` or the dropout is out of range.
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
        super().__init__(dims, num_classes)
        check_sizes("Experts", dropout, dim=dim, num_experts=num_experts)
        if not 2 <= top_k <= num_experts:
            raise UserError(
                f"Experts was given top_k={top_k}, expected at least 2 (the share of a single expert is always 1, from "
                f"which the choice cannot be learned) and at most num_experts={num_experts}"
            )
        if not (math.isfinite(balance) and balance >= 0):
            raise UserError(f"Experts was given balance={balance}, expected a number that is 0 or more")
        self.top_k, self.balance = top_k, balance
        self.project = EmbeddingProjection(dims, dim)
        read = len(dims) * (dim + 1)
        self.route = nn.Linear(read, num_experts)
        self.experts = nn.ModuleList(mlp(read, dim, dim, dropout) for _ in range(num_experts))
        self.classify = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, num_classes))

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vectors, present = self.project(inputs), self.present(inputs)
        context = torch.cat([vectors.flatten(1), present.to(vectors.dtype)], dim=-1)
        routed: Float[Tensor, "B K"] = self.route(context).softmax(-1)
        chosen, which = routed.topk(self.top_k, dim=-1)
        shares = torch.zeros_like(routed).scatter(-1, which, chosen / chosen.sum(-1, keepdim=True))
        said = torch.stack([expert(context) for expert in self.experts], dim=1)
        vector = (shares.unsqueeze(-1) * said).sum(1)
        return Fused(self.classify(vector), vector, extra={"routed": routed})

    def loss(self, fused: Fused, batch: Batch, cross_entropy: CrossEntropy) -> Tensor:
        """Return the cross-entropy plus the balancing loss."""
        del batch
        routed = fused.extra["routed"]
        asked = nn.functional.one_hot(routed.argmax(-1), routed.shape[-1]).to(routed.dtype).mean(0)
        return cross_entropy(fused.logits) + self.balance * routed.shape[-1] * (asked * routed.mean(0)).sum()
