"""Tensor parts that encoders and heads share; each knows what a mask is."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from fusion_pl.types import Encoded, UserError

FAR = -30.0  # below it softplus is the exponential, to the last digit of half of a double's
NO_WEIGHT = -1e4  # log of a weight of zero: its exponential is exactly 0, yet alone it still normalises to 1


def masked_mean(values: Float[Tensor, "*B T D"], mask: Bool[Tensor, "*B T"]) -> Float[Tensor, "*B D"]:
    """Average over the real entries of the second-to-last axis; zeros where there is none.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    kept = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    return kept.sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)


def masked_max(values: Float[Tensor, "*B T D"], mask: Bool[Tensor, "*B T"]) -> Float[Tensor, "*B D"]:
    """Take the maximum over the real entries of the second-to-last axis; zeros where there is none."""
    lowest = torch.finfo(values.dtype).min
    top = values.masked_fill(~mask.unsqueeze(-1), lowest).amax(-2)
    return top.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def masked_softmax(scores: Float[Tensor, "*B M"], mask: Bool[Tensor, "*B M"]) -> Float[Tensor, "*B M"]:
    """Softmax over the real entries of the last axis; zeros where there is none.

    Example:
        >>> masked_softmax(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)


def scatter_rows(encoded: Encoded, present: Bool[Tensor, " B"]) -> Encoded:
    """Give the P rows that an encoder computed their places among the B samples of the batch; the others become zeros.

    A gather with fixed B, so that nothing waits for the GPU to count; the result does not depend on what a blank row
    held.

    Args:
        encoded: P rows, in the order of the present samples.
        present: which of the B samples they are.
    """
    row = (present.cumsum(0) - 1).clamp(min=0)

    def place(rows: Tensor) -> Tensor:
        return rows[row].masked_fill(~present.view(-1, *[1] * (rows.dim() - 1)), 0)

    return Encoded(
        place(encoded.tokens),
        place(encoded.mask),
        place(encoded.embedding),
        None if encoded.layer_weights is None else place(encoded.layer_weights),
    )


def drop_input(encoded: Encoded) -> Encoded:
    """Treat an input as missing in every sample."""
    return Encoded(
        torch.zeros_like(encoded.tokens),
        torch.zeros_like(encoded.mask),
        torch.zeros_like(encoded.embedding),
        None if encoded.layer_weights is None else torch.zeros_like(encoded.layer_weights),
    )


def fill_missing(encoded: Encoded, vector: Float[Tensor, " D"]) -> Encoded:
    """Put a learned vector in the place of a missing input: as its only token, and as what its tokens are summed up to.

    Args:
        encoded: B samples; those without the input have a mask of False throughout.
        vector: what stands for it.
    """
    missing = ~encoded.mask.any(-1, keepdim=True)
    first = torch.arange(encoded.mask.shape[1], device=missing.device) == 0
    vector = vector.to(encoded.embedding.dtype)
    tokens = torch.where((missing & first).unsqueeze(-1), vector, encoded.tokens)
    embedding = torch.where(missing, vector, encoded.embedding)
    return encoded._replace(tokens=tokens, mask=encoded.mask | (missing & first), embedding=embedding)


def pair_products(values: Float[Tensor, "B M *K"]) -> Float[Tensor, "B *K"]:
    """Sum the products of all pairs of the second axis, ``Σ_{m<n} a_m ∘ a_n``, at the price of a sum.

    Source: "Factorization Machines", Rendle 2010, lemma 3.1.

    Example:
        >>> pair_products(torch.tensor([[[2.0], [3.0], [5.0]]]))  # 6 + 10 + 15
        tensor([[31.]])
    """
    wide = upcast(values)  # the squares cancel: where one input is loud, half precision would leave only its rounding
    return ((wide.sum(1).square() - wide.square().sum(1)) / 2).to(values.dtype)


def signed_sqrt(values: Float[Tensor, "*B"], smooth: float = 1e-4) -> Float[Tensor, "*B"]:
    """Take the root of the size and keep the sign: products are large or tiny, their roots lie closer together.

    Args:
        values: of any shape.
        smooth: size below which the curve becomes a line, because the root's gradient at 0 is infinite.
    """
    return values / (values.abs() + smooth).sqrt()


def log_softplus(values: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Take the logarithm of a softplus; far below zero it is the value itself, where softplus alone would underflow."""
    far = values < FAR
    return torch.where(far, values, softplus(values.masked_fill(far, FAR)).log())


def upcast(values: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Leave half precision, for sums of exponentials and quotients that need the digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def mlp(dim: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    """Build ``Linear -> GELU -> Dropout -> Linear``."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out))


def keep_variance(module: nn.Module) -> None:
    """Draw every matrix of a module anew from N(0, 1 / its columns): its outputs vary as much as its inputs.

    torch's own start leaves a third of the variance at every linear map. Through projection, values, output projection
    and the two maps of an MLP little is left of what the inputs say to each other, all tokens are attended to alike,
    and training must first make the weights larger.

    Source: "Efficient BackProp", LeCun et al. 1998, section 4.6.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.LSTM):
            for parameter in part.parameters(recurse=False):
                if parameter.ndim == 2:
                    nn.init.kaiming_normal_(parameter, nonlinearity="linear")


class Projection(nn.Module):
    """Bring real vectors to another width, and give zeros where there is none, whatever stood there.

    ``y = W · LayerNorm(x) + b``

    Args:
        dim: channels D of x.
        out: channels F of y.
        bias: whether there is a b.
    """

    def __init__(self, dim: int, out: int, bias: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, out, bias=bias)

    def forward(self, values: Float[Tensor, "*B D"], real: Bool[Tensor, "*B"]) -> Float[Tensor, "*B F"]:
        """Projection; ``real`` says which vectors to believe."""
        blank = ~real.unsqueeze(-1)
        # Before, so that no NaN enters the arithmetic (nor its gradient); after, because the bias is not zero.
        projected: Tensor = self.linear(self.norm(values.masked_fill(blank, 0.0)))
        return projected.masked_fill(blank, 0.0)


class EmbeddingProjection(nn.ModuleDict):
    """Bring every input's embedding vector to one width; zeros where the input is missing.

    Args:
        dims: name of the input -> its channels D.
        dim: the common width F.
    """

    def __init__(self, dims: dict[str, int], dim: int) -> None:
        super().__init__({name: Projection(channels, dim) for name, channels in dims.items()})

    def forward(self, inputs: dict[str, Encoded]) -> Float[Tensor, "B M F"]:
        """Projection and stack, in the order of ``dims``."""
        encoded = [(project, inputs[name]) for name, project in self.items()]
        return torch.stack([project(one.embedding, one.mask.any(-1)) for project, one in encoded], dim=1)


class UnimodalClassifiers(nn.Module):
    """Give every input a classifier of its own: ``V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m``.

    Args:
        dims: name of the input -> its channels D.
        num_classes: C.
        dim: hidden channels F.
        dropout: probability with which hidden channels are dropped in training.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.project = EmbeddingProjection(dims, dim)
        self.activate = nn.Sequential(nn.GELU(), nn.Dropout(dropout))
        self.classify = nn.ModuleDict({name: nn.Linear(dim, num_classes) for name in dims})

    def forward(self, inputs: dict[str, Encoded]) -> Float[Tensor, "B M C"]:
        """UnimodalClassifiers; zeros (no opinion) where an input is missing."""
        return self.from_hidden(self.hidden(inputs), inputs)

    def hidden(self, inputs: dict[str, Encoded]) -> Float[Tensor, "B M F"]:
        """Return the hidden channels, for a head that weighs by them."""
        found: Tensor = self.activate(self.project(inputs))
        return found

    def from_hidden(self, hidden: Float[Tensor, "B M F"], inputs: dict[str, Encoded]) -> Float[Tensor, "B M C"]:
        """UnimodalClassifiers from the hidden channels."""
        decisions = [classify(one) for classify, one in zip(self.classify.values(), hidden.unbind(1), strict=True)]
        present = torch.stack([inputs[name].mask.any(-1) for name in self.classify], dim=1)
        return torch.stack(decisions, dim=1).masked_fill(~present.unsqueeze(-1), 0.0)


class InputWeights(nn.Module):
    """Say how much each input of a sample counts: the softmax of its scores over the inputs that are present.

    The score of input m with the vector ``u_m`` is, by ``weights``:

    - a number for each input: ``log w_m``, so that the present ones share in the proportion that was given. Where all
      present ones were given 0 they count equally.
    - ``"equal"``: 0.
    - ``"global"``: ``o_m``, one learned number for each input.
    - ``"sample"``: ``o_m + v · tanh(V u_m)``, learned, from what this sample's input holds.

    Source: "Attention-based Deep Multiple Instance Learning", arXiv:1802.04712, equation 8, for ``"sample"``; the
    offset ``o_m`` is ours, because inputs, unlike the members of a bag, differ in kind.

    Args:
        names: of the inputs, in the order of M.
        dim: channels F of ``u_m``.
        weights: as above.

    Raises:
        UserError: where given weights are not one number >= 0 for each input, or are all 0.
    """

    given: Tensor | None

    def __init__(self, names: list[str], dim: int, weights: dict[str, float] | str) -> None:
        super().__init__()
        learned = isinstance(weights, str) and weights != "equal"
        if learned and weights not in {"global", "sample"}:
            raise UserError(
                f"the fusion head has weights: {weights!r}, expected global, sample, or a number for each input: "
                f"{{{', '.join(f'{name}: 1.0' for name in names)}}}"
            )
        scores = (
            None if learned else _scores(names, weights if isinstance(weights, dict) else dict.fromkeys(names, 1.0))
        )
        self.register_buffer("given", scores, persistent=False)  # the configuration carries it
        self.offset = nn.Parameter(torch.zeros(len(names))) if learned else None
        self.gate = None
        if weights == "sample":
            self.gate = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))

    def forward(self, vectors: Float[Tensor, "B M F"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        """Return the logarithms of the weights; where an input is missing they are too low to count.

        A sample without any input gets equal weights, which its caller has to blank: no logarithm says "none" and has a
        gradient.
        """
        scores = self.given if self.offset is None else self.offset
        assert scores is not None
        if self.gate is not None:
            scores = scores + self.gate(vectors).squeeze(-1)
        lowest = torch.finfo(scores.dtype).min
        return scores.expand(present.shape).masked_fill(~present, lowest).log_softmax(-1)


def _scores(names: list[str], weights: dict[str, float]) -> Float[Tensor, " M"]:
    if set(weights) != set(names):
        raise UserError(
            f"the fusion head's weights name {', '.join(weights) or 'nothing'}, but the model's inputs are "
            f"{', '.join(names)}: give one number for each of them"
        )
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"the fusion head's weight of {name} is {weight}, expected a number that is 0 or more")
    if not any(weights.values()):
        raise UserError("the fusion head's weights are all 0: give at least one input a weight above 0")
    return torch.tensor([math.log(weights[name]) if weights[name] else NO_WEIGHT for name in names])
