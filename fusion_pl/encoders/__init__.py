"""One encoder per input: from the processor's tensors to tokens, mask and a vector."""

from fusion_pl.encoders.base import Encoder

__all__ = ["Encoder"]
