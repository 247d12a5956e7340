"""Fusion by a block-term decomposition of the bilinear form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp, pair_products, signed_sqrt
from fusion_pl.types import Encoded, Fused, UserError


class Block(Fusion):
    """Cut the inputs into chunks and multiply chunk with chunk: between one big tensor and single channels.

    ``u_m = W_m · LayerNorm(x_m) + b_m`` in R chunks ``u_{m,r}``; each becomes ``rank`` vectors ``A_{m,r,k} · u_{m,r}``
    ``p_r = Σ_k Σ (A_{m,r,k} u_{m,r}) ∘ (A_{n,r,k} u_{n,r}) over the present pairs m < n``
    ``z = O · [signed√(p_r) / ‖signed√(p_r)‖ of each r] + o + Σ u_m over the present m``, ``logits = MLP(z)``

    A norm below 0.01 counts as 0.01; for the root see ``fusion_pl.layers.signed_sqrt``.

    Cost: ``M D F + M rank F² / R + 2 F²`` multiply-adds a sample.

    Source: "BLOCK: Bilinear Superdiagonal Fusion for Visual Question Answering and Visual Relationship Detection",
    arXiv:1902.00038, for two inputs. For M of them the pairs are added, each input using the same A in all of its
    pairs. Deviations: the A have no biases, which the authors' code gives them: they would add each input alone to its
    products, and a missing one would not be left out; the inputs themselves are added instead, so that a sample with
    one input, which has no pair, is not blind; an MLP classifies where theirs ends with O.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of the joint embedding z.
        num_chunks: R, a divisor of ``dim``.
        rank: of each chunk's bilinear form.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where ``num_chunks`` does not divide ``dim``, or a size or the dropout is out of range.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 128,
        num_chunks: int = 8,
        rank: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Block", dropout, dim=dim, num_chunks=num_chunks, rank=rank)
        if dim % num_chunks:
            raise UserError(
                f"Block was given dim={dim} and num_chunks={num_chunks}: chunks are equally large, so dim must be a "
                "multiple of num_chunks"
            )
        size = dim // num_chunks
        self.num_chunks, self.rank = num_chunks, rank
        self.project = EmbeddingProjection(dims, dim)
        self.merge = nn.Parameter(torch.randn(len(dims), num_chunks, rank, size, size) * size**-0.5)
        self.join = nn.Linear(dim, dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vectors = self.project(inputs)
        chunks = vectors.unflatten(-1, (self.num_chunks, -1))
        merged = torch.einsum("bmci,mcrio->bmcro", chunks, self.merge)
        pairs = pair_products(merged).sum(2)  # B R F/R
        # Without a pair the norm is 0: a smaller eps than this gives gradients that half precision cannot hold.
        normed = F.normalize(signed_sqrt(pairs), dim=-1, eps=0.01)
        vector = self.join(normed.flatten(1)) + vectors.sum(1)
        return Fused(self.classify(vector), vector)
