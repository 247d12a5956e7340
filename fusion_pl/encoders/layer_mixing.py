"""Several hidden layers of an encoder, combined into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fusion_pl.layers import InputWeights
from fusion_pl.types import UserError

Combine = Literal["concat", "sum", "attention", "pyramid"]


class LayerMixing(nn.Module):
    r"""Combine L hidden layers of a network, so that a head sees edges beside objects, or spelling beside meaning.

    With :math:`y_l = P_l\, \mathrm{LayerNorm}(x_l)` for layer l, and :math:`P_l` a learned matrix where the layers
    differ in width, else the identity:

    - ``concat``: ``[LayerNorm(x_1) … LayerNorm(x_L)]``, as wide as all of them together.
    - ``sum``: :math:`\sum_l y_l`.
    - ``attention``: :math:`\sum_l w_l y_l`, with :math:`w = \mathrm{softmax}_l(o_l + v \cdot \tanh(V \bar y_l))` for
      each sample, :math:`\bar y` the mean over positions.
    - ``pyramid``, for maps: torchvision's feature pyramid, which adds what deep layers know to the fine maps of early
      ones; its maps are averaged to the grid of the coarsest, then over layers, so that there are no more tokens.

    Maps of several sizes are first averaged to the grid of the last one.

    Source: concat and sum of normalised layers as in "BERT", arXiv:1810.04805, table 7; learned weights by layer as in
    "Deep contextualized word representations", arXiv:1802.05365, but for each sample; "Feature Pyramid Networks for
    Object Detection", arXiv:1612.03144, with its hidden_layers joined as in "Panoptic Feature Pyramid Networks",
    arXiv:1901.02446, on the coarsest instead of the finest grid.

    Args:
        widths: channels of each of the L layers.
        combine: as above.

    Attributes:
        dim: channels of the result: all together for ``concat``, of the last layer otherwise.
    """

    def __init__(self, widths: Sequence[int], combine: Combine) -> None:
        super().__init__()
        self.combine = combine
        self.dim = sum(widths) if combine == "concat" else widths[-1]
        self.project: nn.ModuleList | None = None
        self.weigh = self.pyramid = None
        if combine == "pyramid":
            from torchvision.ops import FeaturePyramidNetwork

            self.pyramid = FeaturePyramidNetwork(list(widths), self.dim)
        elif combine != "concat" and len(set(widths)) > 1:
            self.project = nn.ModuleList(nn.Linear(width, self.dim) for width in widths)
        if combine == "attention":
            self.weigh = InputWeights([str(layer) for layer in range(len(widths))], self.dim, "sample")

    def forward(
        self, states: Sequence[Tensor], real: Float[Tensor, "P T"] | None = None
    ) -> tuple[Float[Tensor, "P T D"], Float[Tensor, "P L"] | None]:
        """Combine.

        Args:
            states: L sequences (P, T, D), or maps (P, D, H, W).
            real: 1 for each position that is real, else 0; None = all are. Sequences only.

        Returns:
            The sequence, row by row where it was a map, and the weight of each layer (``attention`` only).
        """
        if self.pyramid is not None:
            maps = self.pyramid({str(layer): state for layer, state in enumerate(states)}).values()
            grid = min(((one.shape[-2], one.shape[-1]) for one in maps), key=lambda size: size[0] * size[1])
            return torch.stack([_sequence(one, grid) for one in maps]).mean(0), None
        grid = states[-1].shape[-2], states[-1].shape[-1]
        normed = [nn.functional.layer_norm(one, one.shape[-1:]) for one in (_sequence(state, grid) for state in states)]
        if self.project is not None:
            normed = [project(one) for project, one in zip(self.project, normed, strict=True)]
        if self.combine == "concat":
            return torch.cat(normed, dim=-1), None
        stacked = torch.stack(normed, dim=1)
        if self.weigh is None:
            return stacked.sum(1), None
        ones = stacked.new_ones(stacked.shape[0], 1, stacked.shape[2], 1) if real is None else real[:, None, :, None]
        means = (stacked * ones).sum(2) / ones.sum(2).clamp(min=1)
        weights = self.weigh(means, torch.ones_like(means[..., 0], dtype=torch.bool)).exp()
        return (weights[..., None, None] * stacked).sum(1), weights


def _sequence(state: Tensor, grid: tuple[int, int]) -> Float[Tensor, "P T D"]:
    return as_tokens(adaptive_avg_pool2d(state, grid) if state.dim() == 4 else state)


def as_tokens(state: Tensor) -> Float[Tensor, "P T D"]:
    """Lay a map (P, D, H, W) out row by row; leave a sequence as it is."""
    return state.flatten(2).transpose(1, 2) if state.dim() == 4 else state


def build_layer_mixing(
    encoder: str, hidden_layers: Sequence[int], combine: Combine | None, widths: Sequence[int], maps: bool
) -> LayerMixing | None:
    """Build what combines hidden layers of an encoder; None where its last one is used alone.

    Args:
        encoder: its class or model, for messages.
        hidden_layers: the ones to combine.
        combine: see ``LayerMixing``.
        widths: channels of every hidden layer that there is.
        maps: whether they are maps.

    Raises:
        UserError: where a layer does not exist, ``combine`` does not fit, or one of the two is given without the other.
    """
    count = len(widths)
    for layer in hidden_layers:
        if not -count <= layer < count:
            raise UserError(
                f"hidden_layers: {layer} is not among the {count} hidden layers of {encoder} (0 to {count - 1})"
            )
    if combine is None:
        if hidden_layers:
            raise UserError(f"hidden_layers: {encoder} also needs combine, one of {', '.join(get_args(Combine))}")
        return None
    if not hidden_layers:
        raise UserError(f"combine: {combine} also needs hidden_layers, some of 0 to {count - 1} in {encoder}")
    indices = [layer % count for layer in hidden_layers]
    if indices != sorted(set(indices)):
        raise UserError(
            f"hidden_layers: {list(hidden_layers)} of {encoder} must go from the input to the output, each layer once"
        )
    if combine == "pyramid" and not maps:
        raise UserError(f"combine: {encoder} has sequences, and a pyramid needs maps: choose concat, sum or attention")
    return LayerMixing([widths[layer] for layer in hidden_layers], combine)
