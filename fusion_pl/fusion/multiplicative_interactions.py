"""Fusion by a full bilinear form."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp
from fusion_pl.types import Encoded, Fused


class MultiplicativeInteractions(Fusion):
    """Join the inputs one after the other by a layer in which every channel of one meets every channel of the other.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z_1 = u_1``
    ``z_m = LayerNorm(z_{m-1}ᵀ T_m u_m + U_m · z_{m-1} + V_m · u_m + c_m)``, ``logits = MLP(z_M)``

    An input that is missing leaves z as it was; the first present one starts it.

    Cost: ``M D F + (M - 1) F³ + F h`` multiply-adds a sample, h = ``hidden``, and about as many parameters: keep
    ``dim`` small.

    Source: "Multiplicative Interactions and Where to Find Them", Jayakumar et al., ICLR 2020, equation 1, for two
    inputs. For M of them it is folded from the left, in the order of ``model.encoders``; the norms are ours.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of every input and of the joint embedding z.
        hidden: channels of the classifier's hidden layer.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 32, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("MultiplicativeInteractions", dropout, dim=dim, hidden=hidden)
        self.project = EmbeddingProjection(dims, dim)
        joints = len(dims) - 1
        self.meet = nn.ParameterList(torch.randn(dim, dim, dim) / dim for _ in range(joints))
        self.add = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(joints))
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(joints))
        self.classify = mlp(dim, hidden, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        first, *rest = self.project(inputs).unbind(1)
        begun, *present = self.present(inputs).unsqueeze(-1).unbind(1)
        joint = first
        for vector, here, meet, add, norm in zip(rest, present, self.meet, self.add, self.norm, strict=True):
            # Two by two: where opt_einsum is installed, three at once are ordered by their sizes, the batch's too.
            met = torch.einsum("bjo,bj->bo", torch.einsum("bi,ijo->bjo", joint, meet), vector)
            met = norm(met + add(torch.cat([joint, vector], dim=-1)))
            joint = torch.where(begun & here, met, torch.where(here, vector, joint).to(met.dtype))
            begun = begun | here
        return Fused(self.classify(joint), joint)
