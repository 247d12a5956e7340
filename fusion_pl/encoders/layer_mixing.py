"""Combine several hidden layers of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fusion_pl.layers import InputWeights, masked_mean
from fusion_pl.types import UserError

Combine = Literal["concat", "sum", "attention", "pyramid"]


class LayerMixing(nn.Module):
    r"""Combine L hidden layers of a network into one sequence of tokens.

    With :math:`y_l = P_l\, \mathrm{LayerNorm}(x_l)` for layer l, where :math:`P_l` is a learned matrix if the layers
    differ in their number of channels, else the identity:

    - ``concat``: ``[LayerNorm(x_1) … LayerNorm(x_L)]``.
    - ``sum``: :math:`\sum_l y_l`.
    - ``attention``: :math:`\sum_l w_l y_l`, with :math:`w = \mathrm{softmax}_l(o_l + v \cdot \tanh(V \bar y_l))` for
      each sample, and :math:`\bar y` the mean over positions.
    - ``pyramid``, for feature maps: torchvision's feature pyramid network, whose maps are average-pooled to the
      smallest size, then averaged over layers, so that the number of tokens does not grow.

    Except for ``pyramid``, feature maps are average-pooled to the size of the last feature map.

    Source: ``concat`` and ``sum``: "BERT", arXiv:1810.04805, table 7, here with layer norms. ``attention``: "Deep
    contextualized word representations", arXiv:1802.05365, here with weights per sample. ``pyramid``: "Feature Pyramid
    Networks for Object Detection", arXiv:1612.03144, combined as in "Panoptic Feature Pyramid Networks",
    arXiv:1901.02446, but at the lowest instead of the highest resolution.

    Args:
        widths: number of channels of each of the L layers.
        combine: how the layers are combined, as described above.

    Attributes:
        dim: output channels: the sum over layers for ``concat``, else the channels of the last layer.
    """

    def __init__(self, widths: Sequence[int], combine: Combine) -> None:
        super().__init__()
        self.combine = combine
        self.dim = sum(widths) if combine == "concat" else widths[-1]
        self.projection: nn.ModuleList | None = None
        self.weighting = self.pyramid = None
        if combine == "pyramid":
            from torchvision.ops import FeaturePyramidNetwork

            self.pyramid = FeaturePyramidNetwork(list(widths), self.dim)
        elif combine != "concat" and len(set(widths)) > 1:
            self.projection = nn.ModuleList(nn.Linear(width, self.dim) for width in widths)
        if combine == "attention":
            self.weighting = InputWeights([str(layer) for layer in range(len(widths))], self.dim, "sample")

    def forward(
        self, states: Sequence[Tensor], mask: Bool[Tensor, "P T"] | None = None
    ) -> tuple[Float[Tensor, "P T D"], Float[Tensor, "P L"] | None]:
        """Combine the layers.

        Args:
            states: L sequences (P, T, D), or feature maps (P, D, H, W).
            mask: True = real position; None = all are real. Used for sequences only.

        Returns:
            The sequence of tokens (of feature maps, row by row), and the weight of each layer; None without weights.
        """
        if self.pyramid is not None:
            maps = self.pyramid({str(layer): state for layer, state in enumerate(states)}).values()
            size = min(((x.shape[-2], x.shape[-1]) for x in maps), key=lambda size: size[0] * size[1])
            return torch.stack([_to_sequence(x, size) for x in maps]).mean(0), None
        size = states[-1].shape[-2], states[-1].shape[-1]
        normed = [nn.functional.layer_norm(x, x.shape[-1:]) for x in (_to_sequence(state, size) for state in states)]
        if self.projection is not None:
            normed = [project(x) for project, x in zip(self.projection, normed, strict=True)]
        if self.combine == "concat":
            return torch.cat(normed, dim=-1), None
        stacked = torch.stack(normed, dim=1)
        if self.weighting is None:
            return stacked.sum(1), None
        real = torch.ones(stacked.shape[:3], dtype=torch.bool, device=stacked.device)
        means = masked_mean(stacked, real if mask is None else real & mask[:, None])
        weights = self.weighting(means, real[..., 0]).exp()
        return (weights[..., None, None] * stacked).sum(1), weights


def _to_sequence(state: Tensor, size: tuple[int, int]) -> Float[Tensor, "P T D"]:
    return as_tokens(adaptive_avg_pool2d(state, size) if state.dim() == 4 else state)


def as_tokens(state: Tensor) -> Float[Tensor, "P T D"]:
    """Flatten a feature map (P, D, H, W) row by row; return a sequence unchanged."""
    return state.flatten(2).transpose(1, 2) if state.dim() == 4 else state


def build_layer_mixing(
    encoder_name: str,
    hidden_layers: Sequence[int],
    combine: Combine | None,
    widths: Sequence[int],
    has_feature_maps: bool,
) -> LayerMixing | None:
    """Build the layer mixing of an encoder; None if only its last layer is used.

    Args:
        encoder_name: name of the encoder's class or model, for messages.
        hidden_layers: indices of the layers to combine.
        combine: see ``LayerMixing``.
        widths: number of channels of each hidden layer.
        has_feature_maps: whether hidden layers are feature maps.

    Raises:
        UserError: if a layer does not exist, the encoder does not support ``combine``, or only one of ``hidden_layers``
            and ``combine`` is given.
    """
    count = len(widths)
    for layer in hidden_layers:
        if not -count <= layer < count:
            raise UserError(
                f"hidden_layers: {layer} is not among the {count} hidden layers of {encoder_name} (0 to {count - 1})"
            )
    if combine is None:
        if hidden_layers:
            raise UserError(f"hidden_layers: {encoder_name} also needs combine, one of {', '.join(get_args(Combine))}")
        return None
    if not hidden_layers:
        raise UserError(f"combine: {combine} also needs hidden_layers, some of 0 to {count - 1} in {encoder_name}")
    indices = [layer % count for layer in hidden_layers]
    if indices != sorted(set(indices)):
        raise UserError(
            f"hidden_layers: {list(hidden_layers)} of {encoder_name} must be in ascending order, from the input to the "
            "output, without repetition"
        )
    if combine == "pyramid" and not has_feature_maps:
        raise UserError(
            f"combine: the layers of {encoder_name} are sequences, and a pyramid needs feature maps: choose concat, "
            "sum or attention"
        )
    return LayerMixing([widths[layer] for layer in hidden_layers], combine)
