"""Base classes of the fusion heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.attention import TokenProjection
from fusion_pl.config import Configurable
from fusion_pl.layers import EmbeddingProjection, UnimodalClassifiers
from fusion_pl.types import Batch, Encoded, Fused, UserError

Embeddings = Float[Tensor, "B M F"]  # projected embeddings u; zeros if the input is missing
PresenceMask = Bool[Tensor, "B M"]  # True = the sample has the input
Tokens = Float[Tensor, "B _ F"]  # projected tokens x of one input
TokenMask = Bool[Tensor, "B _"]  # True = real token


class FusedEmbedding(NamedTuple):
    """Output of ``EmbeddingFusion.fuse``; the attributes have the same meaning as in ``Fused``."""

    embedding: Float[Tensor, "B _"]
    weights: Float[Tensor, "B M"] | None = None
    extra: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple default, never mutated


@runtime_checkable
class LossOfLogits(Protocol):
    """The loss of logits with the targets of a batch, as ``model.loss`` configures it, such as the cross-entropy."""

    def __call__(self, logits: Float[Tensor, "B C"], mask: Bool[Tensor, " B"] | None = None) -> Float[Tensor, ""]:
        """Return the mean loss over the batch; a sample with ``mask`` False has loss 0."""
        ...


class Fusion(Configurable, nn.Module, ABC):
    """Base of the fusion heads, which classify samples from any number of encoded inputs.

    A subclass defines a constructor and ``forward``. A missing input, whose mask is False and whose tensors are zeros,
    must not change the result. Every forward pass must use every parameter, even if a batch lacks an input, because
    distributed training needs all gradients.

    Args:
        dims: name of the input -> channels D of its embedding and tokens, in the order of ``Fused.weights``.
        num_classes: number of classes C.

    Attributes:
        reads_tokens: whether ``forward`` reads tokens. If not, features of frozen encoders are stored without tokens,
            and each embedding is the only token of its sample.
        needs_softmax: whether the head takes the softmax of its logits, so that it needs a task with one logit per
            class of classes that exclude each other.
        several_labels: whether a head that needs a softmax also fits a task with independent labels, for which it takes
            the sigmoid instead.
        exclusive_classes: whether the classes exclude each other; the model sets it by its task.

    Raises:
        UserError: if there is no input.
    """

    reads_tokens: bool = True
    needs_softmax: bool = False
    several_labels: bool = False
    exclusive_classes: bool = True

    def __init__(self, dims: dict[str, int], num_classes: int) -> None:
        super().__init__()
        if not dims:
            raise UserError("a fusion head needs at least one input: add one to model.encoders")
        self.names = list(dims)
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples.

        Args:
            inputs: name of the input -> output of its encoder, with the same names as ``dims``.
        """

    def loss(self, fused: Fused, batch: Batch, criterion: LossOfLogits) -> dict[str, Float[Tensor, ""]]:
        """Return the terms of the training loss by name: the loss of the logits, unless a head adds terms.

        Their sum is minimised. ``fused`` is the loss of the fused logits, ``unimodal/<input>`` that of the prediction
        from one input; the names of other terms begin with ``head/``. The names are the same for every batch.

        Args:
            fused: output of ``forward`` for the batch.
            batch: the batch, including its targets.
            criterion: function that computes the loss of logits with the targets of the batch.
        """
        del batch
        return {"fused": criterion(fused.logits)}

    def held_out_mask(self, batch: Batch) -> Bool[Tensor, " B"] | None:
        """Return a mask that is True for samples that must not train the encoders; None if all samples train them."""
        del batch
        return None

    def presence_mask(self, inputs: dict[str, Encoded]) -> PresenceMask:
        """Return the presence mask of all inputs, in the order of ``dims``."""
        return torch.stack([inputs[name].mask.any(-1) for name in self.names], dim=-1)


class EmbeddingFusion(Fusion):
    """Base of heads that fuse one embedding per input: a subclass sets ``classifier`` and implements ``fuse``.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = fuse(u_1 … u_M)``, ``logits = classifier(z)``

    Args:
        dims: name of the input -> channels D of its embedding.
        num_classes: number of classes C.
        dim: number of channels F of the projected embeddings u and of the classifier's hidden layer.
        dropout: probability that a hidden channel of the classifier is dropped, in training.
        **sizes: name of an argument of the subclass -> its value, an integer of at least 1.

    Raises:
        UserError: if a size or the dropout is out of range.
    """

    reads_tokens = False
    classifier: nn.Module

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1, **sizes: int
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes(type(self).__name__, dropout, dim=dim, **sizes)
        self.projection = EmbeddingProjection(dims, dim)

    @abstractmethod
    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z, and the input weights if the head computes them.

        Args:
            embeddings: projected embeddings u; zeros if the input is missing.
            present: presence mask; True = the sample has the input.
        """

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        embedding, weights, extra = self.fuse(self.projection(inputs), self.presence_mask(inputs))
        return Fused(self.classifier(embedding), embedding, weights, extra=extra)


class TokenFusion(Fusion):
    """Base of heads that fuse the tokens of all inputs: a subclass sets ``classifier`` and implements ``fuse``.

    ``x_{m,t} = W_m · LayerNorm(token_t of m) + e_m + p_t``, ``z = fuse(x_1 … x_M)``, ``logits = classifier(z)``

    ``e_m`` is a learned embedding of input m, ``p_t`` a learned position embedding if the head has one. Subclasses
    initialise their matrices by ``fusion_pl.layers.init_variance_preserving``.

    Args:
        dims: name of the input -> channels D of its tokens.
        num_classes: number of classes C.
        dim: number of channels F of the transformer and of z; its MLPs have 4 F hidden channels.
        num_heads: number of attention heads H, a divisor of ``dim``.
        num_layers: number of transformer layers L.
        dropout: probability of dropout in residual branches and before the classifier, in training.
        positions: length of the position embedding; all later tokens share the last entry. 0 = none.
        **sizes: name of an argument of the subclass -> its value, an integer of at least 1.

    Raises:
        UserError: if ``num_heads`` does not divide ``dim``, or a size or the dropout is out of range.
    """

    classifier: nn.Module

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        dropout: float,
        positions: int = 0,
        **sizes: int,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes(type(self).__name__, dropout, dim=dim, num_heads=num_heads, num_layers=num_layers, **sizes)
        self.projection = TokenProjection(dims, dim, positions)

    @abstractmethod
    def fuse(self, tokens: list[Tokens], masks: list[TokenMask]) -> Float[Tensor, "B F"]:
        """Return the fused embedding z.

        Args:
            tokens: projected tokens x of each input.
            masks: mask of each input; True = real token.
        """

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        embedding = self.fuse(self.projection(inputs), [inputs[name].mask for name in self.names])
        return Fused(self.classifier(embedding), embedding)


class LateFusion(Fusion):
    """Base of heads that combine the predictions of one classifier per input; a subclass implements ``forward``.

    ``f_m = V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m``, the logits of input m

    Args:
        dims: name of the input -> channels D of its embedding.
        num_classes: number of classes C.
        dim: number of hidden channels F of each classifier.
        dropout: probability that a hidden channel is dropped, in training.

    Raises:
        UserError: if ``dim`` or the dropout is out of range.
    """

    reads_tokens = False
    needs_softmax = True

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes)
        check_sizes(type(self).__name__, dropout, dim=dim)
        self.unimodal = UnimodalClassifiers(dims, num_classes, dim, dropout)

    def logits_by_input(self, logits: Float[Tensor, "B M C"]) -> dict[str, Float[Tensor, "B C"]]:
        """Split the logits by input: name of the input -> logits, as in ``Fused.input_logits``."""
        return dict(zip(self.names, logits.unbind(1), strict=True))

    def split_decisions(self, logits: Float[Tensor, "B M C"]) -> Float[Tensor, "B M K A"]:
        """Return the logits of K decisions between A alternatives each: one between all classes, or one per label.

        The alternatives of a label are its absence, whose logit is 0, and its presence: their softmax is the sigmoid.
        """
        return (
            logits.unsqueeze(2) if self.exclusive_classes else torch.stack([torch.zeros_like(logits), logits], dim=-1)
        )

    def join_decisions(self, logits: Float[Tensor, "B K A"]) -> Float[Tensor, "B C"]:
        """Return the logits of the classes or labels, the inverse of ``split_decisions``."""
        return logits.squeeze(1) if self.exclusive_classes else logits[..., 1] - logits[..., 0]


def check_sizes(head: str, dropout: float, **sizes: int) -> None:
    """Check the sizes and the dropout of a constructor.

    Args:
        head: class name of the head, for the message.
        dropout: dropout probability.
        **sizes: name of an argument -> its value, at least 1; ``dim`` must be a multiple of ``num_heads``.

    Raises:
        UserError: if an argument is out of range; the message contains the first such argument.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{head} was given {name}={size}, expected a whole number of at least 1")
    if not 0 <= dropout < 1:
        raise UserError(f"{head} was given dropout={dropout}, expected a probability: at least 0 and below 1")
    if "num_heads" in sizes and sizes["dim"] % sizes["num_heads"]:
        raise UserError(
            f"{head} was given dim={sizes['dim']} and num_heads={sizes['num_heads']}: the heads share the channels "
            "equally, so dim must be a multiple of num_heads"
        )
