"""The tensor-only core of the model: what is exported takes and returns tensors, without ids, files or text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fusion_pl.encoders.base import Encoder, is_frozen
from fusion_pl.fusion.base import Fusion
from fusion_pl.layers import fill_missing, keep_rows, mark_missing, scatter_rows
from fusion_pl.processors import Processor
from fusion_pl.types import Encoded, Fused

Inputs = Mapping[str, dict[str, Tensor] | Encoded]  # name of the input -> arguments of its encoder, or its output
Present = Mapping[str, Bool[Tensor, " B"]]  # name of the input -> presence mask


class FusionCore(nn.Module):
    """One encoder per input, a fusion head, and the learned embeddings of missing inputs.

    Args:
        encoders: name of the input -> encoder.
        fusion: factory of the fusion head, from the encoders' dimensions.
        missing: ``mask``: the head masks missing inputs. ``token``: a learned embedding replaces them.
    """

    def __init__(
        self,
        encoders: dict[str, Encoder],
        fusion: Callable[[dict[str, int]], Fusion],
        missing: Literal["mask", "token"] = "mask",
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.dims = dims = {name: encoder.dim for name, encoder in encoders.items()}
        self.fusion = fusion(dims)
        self.missing = missing
        self.missing_embeddings = nn.ParameterDict()
        if missing == "token":
            self.missing_embeddings.update({name: torch.randn(dim) * 0.02 for name, dim in dims.items()})

    @property
    def processors(self) -> dict[str, Processor]:
        """Name of the input -> processor of its encoder."""
        return {name: encoder.processor for name, encoder in self.named_encoders()}

    def named_encoders(self) -> list[tuple[str, Encoder]]:
        """Return the name and the encoder of each input."""
        return [(name, encoder) for name, encoder in self.encoders.items() if isinstance(encoder, Encoder)]

    def encode_present(self, inputs: Inputs, present: Present) -> dict[str, Encoded]:
        """Encode the rows of samples that have an input; the other samples get zeros with a mask of False.

        Args:
            inputs: P rows per input, in the order of the samples that have it; see ``Batch.inputs``.
            present: which of the B samples have each input.
        """
        encoded = {}
        for name, encoder in self.named_encoders():
            rows = inputs[name]
            if not isinstance(rows, Encoded):
                # Some encoders of transformers draw a number without effect, which would change the head's dropout.
                with torch.random.fork_rng(devices=[], enabled=self.training and is_frozen(encoder)):
                    rows = encoder(**rows)
            encoded[name] = scatter_rows(rows, present[name])
        return encoded

    def encode_all(self, inputs: Mapping[str, dict[str, Tensor]], present: Present) -> dict[str, Encoded]:
        """Encode all rows, and set those of missing inputs to zero: the result of ``encode_present`` with fixed shapes.

        Args:
            inputs: B rows per input, any valid values in those of missing inputs.
            present: which of the B samples have each input.
        """
        return {name: keep_rows(encoder(**inputs[name]), present[name]) for name, encoder in self.named_encoders()}

    def fuse(self, encoded: dict[str, Encoded], subset: Collection[str] | None = None) -> Fused:
        """Apply the fusion head to encoded inputs; inputs outside ``subset`` are treated as missing."""
        if subset is not None:
            encoded = {name: value if name in subset else mark_missing(value) for name, value in encoded.items()}
        filled = {name: fill_missing(encoded[name], vector) for name, vector in self.missing_embeddings.items()}
        fused: Fused = self.fusion(encoded | filled)
        return fused
