"""Masked layers and functions shared by encoders and fusion heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from fusion_pl.types import Encoded, UserError

MIN_SOFTPLUS = -30.0  # for x below this number, softplus(x) equals exp(x) up to a relative error of 1e-13
LOG_ZERO = -1e4  # log of an input weight of 0: exp is exactly 0, but a softmax over such entries is finite


def masked_mean(values: Float[Tensor, "*B T D"], mask: Bool[Tensor, "*B T"]) -> Float[Tensor, "*B D"]:
    """Average over the real entries of the second-to-last axis; zeros if no entry is real.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    masked = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    return masked.sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)


def masked_max(values: Float[Tensor, "*B T D"], mask: Bool[Tensor, "*B T"]) -> Float[Tensor, "*B D"]:
    """Take the maximum over the real entries of the second-to-last axis; zeros if no entry is real."""
    lowest = torch.finfo(values.dtype).min
    maximum = values.masked_fill(~mask.unsqueeze(-1), lowest).amax(-2)
    return maximum.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def masked_softmax(scores: Float[Tensor, "*B M"], mask: Bool[Tensor, "*B M"]) -> Float[Tensor, "*B M"]:
    """Compute the softmax over the real entries of the last axis; zeros if no entry is real.

    Example:
        >>> masked_softmax(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)


def scatter_rows(encoded: Encoded, present: Bool[Tensor, " B"]) -> Encoded:
    """Scatter the P rows of an encoder's output to the B samples of the batch; samples without the input get zeros.

    The implementation gathers B rows, because a scatter would have to wait for the GPU.

    Args:
        encoded: P rows, in the order of the samples that have the input.
        present: which of the B samples have the input.
    """
    if present.device.type == "cpu" and present.all():
        return encoded
    index = (present.cumsum(0) - 1).clamp(min=0)

    def scatter(rows: Tensor) -> Tensor:
        return rows[index].masked_fill(~present.view(-1, *[1] * (rows.dim() - 1)), 0)

    return _map_tensors(encoded, scatter)


def mark_missing(encoded: Encoded) -> Encoded:
    """Zero an encoder's output, as if the input were missing in every sample."""
    return _map_tensors(encoded, torch.zeros_like)


def keep_rows(encoded: Encoded, rows: Bool[Tensor, " B"]) -> Encoded:
    """Zero an encoder's output of the samples outside a mask, as if the input were missing in them."""

    def keep(tensor: Tensor) -> Tensor:
        kept = rows.reshape(-1, *[1] * (tensor.ndim - 1))
        return tensor & kept if tensor.dtype == torch.bool else tensor.masked_fill(~kept, 0)

    return _map_tensors(encoded, keep)


def _map_tensors(encoded: Encoded, function: Callable[[Tensor], Tensor]) -> Encoded:
    tokens, mask, embedding, weights = encoded
    weights = None if weights is None else function(weights)
    return Encoded(function(tokens), function(mask), function(embedding), weights)


def fill_missing(encoded: Encoded, missing_embedding: Float[Tensor, " D"]) -> Encoded:
    """Replace a missing input by a learned embedding, which becomes its only token and its pooled embedding."""
    missing = ~encoded.mask.any(-1, keepdim=True)
    first = torch.arange(encoded.mask.shape[1], device=missing.device) == 0
    missing_embedding = missing_embedding.to(encoded.embedding.dtype)
    tokens = torch.where((missing & first).unsqueeze(-1), missing_embedding, encoded.tokens)
    embedding = torch.where(missing, missing_embedding, encoded.embedding)
    return encoded._replace(tokens=tokens, mask=encoded.mask | (missing & first), embedding=embedding)


def sum_pairwise_products(values: Float[Tensor, "B M *K"]) -> Float[Tensor, "B *K"]:
    """Sum the products of all pairs of the second axis, ``Σ_{m<n} a_m ∘ a_n``, at linear cost.

    Source: "Factorization Machines", Rendle 2010, lemma 3.1.

    Example:
        >>> sum_pairwise_products(torch.tensor([[[2.0], [3.0], [5.0]]]))  # 6 + 10 + 15
        tensor([[31.]])
    """
    upcast_values = upcast(values)  # the difference of squares loses too many digits in half precision
    return ((upcast_values.sum(1).square() - upcast_values.square().sum(1)) / 2).to(values.dtype)


def signed_sqrt(values: Float[Tensor, "*B"], epsilon: float = 1e-4) -> Float[Tensor, "*B"]:
    """Compute ``sign(x) · √|x|``, which reduces the range of products.

    Args:
        values: x, of any shape.
        epsilon: magnitude below which the function is linear, because the gradient of the root at 0 is infinite.
    """
    return values / (values.abs() + epsilon).sqrt()


def log_softplus(values: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Compute ``log(softplus(x))``; if softplus(x) would underflow, return x, which is equal up to rounding."""
    small = values < MIN_SOFTPLUS
    return torch.where(small, values, softplus(values.masked_fill(small, MIN_SOFTPLUS)).log())


def upcast(values: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Convert half precision to single precision; leave other types unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mlp(dim: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    """Build ``Linear -> GELU -> Dropout -> Linear``."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out))


def init_variance_preserving(module: nn.Module) -> None:
    """Initialise every matrix of a module from N(0, 1 / columns), so that outputs have the variance of the inputs.

    The default initialisation of torch reduces the variance to a third at every linear layer. After five linear layers
    (the input projection, the value and output projections of attention, and an MLP), attention is nearly uniform and
    the inputs hardly affect each other, until training has increased the parameters.

    Source: "Efficient BackProp", LeCun et al. 1998, section 4.6.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.LSTM):
            for parameter in child.parameters(recurse=False):
                if parameter.ndim == 2:
                    nn.init.kaiming_normal_(parameter, nonlinearity="linear")


class Projection(nn.Module):
    """Normalise and project vectors; zeros where the mask is False, independent of the values there.

    ``y = W · LayerNorm(x) + b``

    Args:
        dim: channels D of x.
        out: channels F of y.
        bias: whether to add b.
    """

    def __init__(self, dim: int, out: int, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, out, bias=bias)

    def forward(self, values: Float[Tensor, "*B D"], mask: Bool[Tensor, "*B"]) -> Float[Tensor, "*B F"]:
        """Project the vectors; ``mask`` is True for real vectors."""
        padding = ~mask.unsqueeze(-1)
        # A NaN in the padding must affect neither result nor gradient; the result is masked because of the bias.
        projected: Tensor = self.linear(self.norm(values.masked_fill(padding, 0.0)))
        return projected.masked_fill(padding, 0.0)


class EmbeddingProjection(nn.ModuleDict):
    """Project every input's embedding to a common dimension; zeros if the input is missing.

    Args:
        dims: name of the input -> channels D of its embedding.
        dim: common number of channels F.
    """

    def __init__(self, dims: dict[str, int], dim: int) -> None:
        super().__init__({name: Projection(channels, dim) for name, channels in dims.items()})

    def forward(self, inputs: dict[str, Encoded]) -> Float[Tensor, "B M F"]:
        """Return the projected embeddings, in the order of ``dims``."""
        return torch.stack(
            [project(inputs[name].embedding, inputs[name].mask.any(-1)) for name, project in self.items()], dim=1
        )


class UnimodalClassifiers(nn.Module):
    """Classify each input on its own: ``V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m``.

    Args:
        dims: name of the input -> channels D of its embedding.
        num_classes: number of classes C.
        dim: hidden channels F.
        dropout: probability that a hidden channel is dropped, in training.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.projection = EmbeddingProjection(dims, dim)
        self.activate = nn.Sequential(nn.GELU(), nn.Dropout(dropout))
        self.classifier = nn.ModuleDict({name: nn.Linear(dim, num_classes) for name in dims})

    def forward(self, inputs: dict[str, Encoded]) -> Float[Tensor, "B M C"]:
        """Return the logits of each input; zeros if the input is missing."""
        return self.logits_from_hidden(self.compute_hidden(inputs), inputs)

    def compute_hidden(self, inputs: dict[str, Encoded]) -> Float[Tensor, "B M F"]:
        """Return the hidden activations of each input's classifier."""
        activations: Tensor = self.activate(self.projection(inputs))
        return activations

    def logits_from_hidden(self, hidden: Float[Tensor, "B M F"], inputs: dict[str, Encoded]) -> Float[Tensor, "B M C"]:
        """Return the logits of each input from its hidden activations; zeros if the input is missing."""
        logits = [linear(channels) for linear, channels in zip(self.classifier.values(), hidden.unbind(1), strict=True)]
        present = torch.stack([inputs[name].mask.any(-1) for name in self.classifier], dim=1)
        return torch.stack(logits, dim=1).masked_fill(~present.unsqueeze(-1), 0.0)


class InputWeights(nn.Module):
    """Compute the input weights of each sample: the softmax of scores over the inputs that are present.

    The score of input m with the embedding ``u_m`` depends on the argument ``weights``:

    - one number ``w_m`` per input: ``log w_m``, so that the fixed weights are normalised over the present inputs (equal
      weights if the weights of all present inputs are 0).
    - ``"equal"``: 0.
    - ``"global"``: ``o_m``, one learned number per input.
    - ``"sample"``: ``o_m + v · tanh(V u_m)``, learned, computed from the embeddings of each sample.

    Source: "Attention-based Deep Multiple Instance Learning", arXiv:1802.04712, equation 8, for ``"sample"``.
    Deviation: the offset ``o_m``, because inputs, unlike the instances of a bag, are of different modalities.

    Args:
        names: names of the M inputs, in order.
        dim: channels F of ``u_m``.
        weights: ``"equal"``, ``"global"``, ``"sample"``, or one number per input.

    Raises:
        UserError: if fixed weights are not one number >= 0 per input, or are all 0.
    """

    fixed_scores: Tensor | None

    def __init__(self, names: list[str], dim: int, weights: dict[str, float] | str) -> None:
        super().__init__()
        if isinstance(weights, str) and weights not in {"equal", "global", "sample"}:
            raise UserError(
                f"the fusion head has weights: {weights!r}, expected global, sample, or a number per input: "
                f"{{{', '.join(f'{name}: 1.0' for name in names)}}}"
            )
        learned = weights in ("global", "sample")
        fixed = weights if isinstance(weights, dict) else dict.fromkeys(names, 1.0)
        scores = None if learned else _log_weights(names, fixed)
        self.register_buffer("fixed_scores", scores, persistent=False)  # not saved: the configuration has the weights
        self.offset = nn.Parameter(torch.zeros(len(names))) if learned else None
        self.gate = None
        if weights == "sample":
            self.gate = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))

    def forward(self, embeddings: Float[Tensor, "B M F"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        """Return the log input weights; the weight of a missing input is 0 up to rounding.

        A sample without any input gets equal weights, which the caller must mask; log 0 would have no gradient.
        """
        scores = self.fixed_scores if self.offset is None else self.offset
        assert scores is not None
        if self.gate is not None:
            scores = scores + self.gate(embeddings).squeeze(-1)
        lowest = torch.finfo(scores.dtype).min
        return scores.expand(present.shape).masked_fill(~present, lowest).log_softmax(-1)


def _log_weights(names: list[str], weights: dict[str, float]) -> Float[Tensor, " M"]:
    if set(weights) != set(names):
        raise UserError(
            f"the fusion head has weights for {', '.join(weights) or 'no input'}, but the model's inputs are "
            f"{', '.join(names)}: give one number per input"
        )
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"the fusion head's weight of {name} is {weight}, expected a number that is 0 or more")
    if not any(weights.values()):
        raise UserError("the fusion head's weights are all 0: give at least one input a weight above 0")
    return torch.tensor([math.log(weights[name]) if weights[name] else LOG_ZERO for name in names])
