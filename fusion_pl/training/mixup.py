"""Mixup: train on weighted means of pairs of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import Beta

from fusion_pl.types import Batch, Encoded


class Pairs(NamedTuple):
    r"""Mix every sample i of a batch with its partner j, all inputs with the same weight.

    embedding: :math:`\lambda x_i + (1 - \lambda) x_j` per input, loss: :math:`\lambda L(y_i) + (1 - \lambda) L(y_j)`

    The mean of the losses is the cross-entropy with the soft target :math:`\lambda y_i + (1 - \lambda) y_j`, in which
    each class has its class weight, divided by the sum of the weights of the batch's targets (without class weights:
    B). Unlike that, it is defined for heads whose loss has further terms.

    Both samples have the same inputs, so that presence masks do not change. Tokens are mixed by their position: a token
    of i is not mixed if j has no token at its position, and tokens of j are left out if i has none at theirs, so that
    :math:`\lambda = 1` is sample i exactly.

    Source: "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412, after the encoders as in "Manifold Mixup",
    arXiv:1806.05236, and in all inputs alike as the Multimodal Mixup of arXiv:2510.10986. Deviations: partners have the
    same inputs; the layer that is mixed is always the output of the encoders; :math:`\lambda` is at least 1/2. Each
    sample is i in one pair and j in one, so that this changes the distribution of mixed embeddings and of tokens at
    positions that both samples have in no way; the other tokens are those of the sample with the larger weight.

    Attributes:
        partner: index of the partner of each sample, a permutation.
        weight: λ, the weight of the sample itself, in [1/2, 1].
    """

    partner: Int[Tensor, " B"]
    weight: float

    def mix_inputs(self, encoded: dict[str, Encoded]) -> dict[str, Encoded]:
        """Mix the outputs of the encoders; masks stay the same."""
        return {name: self._mix_input(value) for name, value in encoded.items()}

    def mix_losses(
        self, losses: Callable[[Batch], dict[str, Float[Tensor, ""]]], batch: Batch
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted means of the named losses with the samples' and with their partners' targets."""
        assert batch.target is not None
        partners = batch._replace(target=batch.target[self.partner])
        own, other = losses(batch), losses(partners)
        return {name: torch.lerp(own[name], other[name], 1 - self.weight) for name in own}

    def _mix_input(self, encoded: Encoded) -> Encoded:
        both = encoded.mask & encoded.mask[self.partner]
        tokens = torch.where(both.unsqueeze(-1), self._mix(encoded.tokens), encoded.tokens)
        return encoded._replace(tokens=tokens, embedding=self._mix(encoded.embedding))

    def _mix(self, values: Float[Tensor, "B *K"]) -> Float[Tensor, "B *K"]:
        return torch.lerp(values, values[self.partner], 1 - self.weight)


def draw_pairs(batch: Batch, held_out: Bool[Tensor, " B"] | None, alpha: float) -> Pairs:
    """Draw partners, uniformly among the samples with the same inputs, and one λ for the batch.

    Args:
        batch: the batch; a sample may be its own partner.
        held_out: mask of samples that a head holds out (``Fusion.held_out_mask``), which have held-out partners.
        alpha: both parameters of the Beta distribution of λ, above 0.
    """
    masks = [*batch.present.values(), *([] if held_out is None else [held_out])]
    # One integer per combination of inputs; the number of combinations need not be known on the CPU.
    groups = sum(mask.long() << bit for bit, mask in enumerate(masks))
    assert isinstance(groups, Tensor)
    first, second = _shuffle_groups(groups), _shuffle_groups(groups)
    partner = torch.empty_like(first).scatter(0, first, second)
    concentration = torch.tensor(alpha, dtype=torch.float64, device="cpu")  # bf16-true changes the default type
    weight = float(Beta(concentration, concentration).sample())
    return Pairs(partner, max(weight, 1 - weight))


def _shuffle_groups(groups: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Return the indices of all samples, group by group, and within a group in random order."""
    order = torch.randperm(len(groups), device=groups.device)
    return order[groups[order].argsort(stable=True)]
