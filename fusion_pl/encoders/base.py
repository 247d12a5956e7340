"""What an encoder promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fusion_pl.config import Configurable
from fusion_pl.types import Encoded, Processor


def is_frozen(module: nn.Module) -> bool:
    """Say whether a module has parameters and none of them learns: what "frozen" means throughout.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> is_frozen(layer), is_frozen(layer.requires_grad_(False))
        (False, True)
    """
    found = False
    for parameter in module.parameters():
        if parameter.requires_grad:
            return False
        found = True
    return found


class Encoder(Configurable, nn.Module, ABC):
    """Turns one input into tokens and a vector. To write your own, set two attributes and ``forward``.

    A constructor takes plain data only (text, numbers, lists, dictionaries): it is what the checkpoint carries.

    Every part of which no parameter learns stays in evaluation mode while the rest is trained: its running statistics
    must not drift, nor its outputs be dropped. That follows ``requires_grad``, which may change during training.

    Attributes:
        dim: channels D of tokens and vector.
        processor: turns opened values into keyword arguments of ``forward``; its ``kind`` says how a file is opened.
        pretrained_weights: whether ``load_pretrained`` has weights to load; such an encoder learns at a lower rate.
        hidden_layers: those that it combines; none where only the last one is used.
        has_weights: whether the weights were loaded, from the hub or from a checkpoint; then training starts from them.
    """

    dim: int
    processor: Processor
    pretrained_weights: bool = False
    hidden_layers: Sequence[int] = ()
    has_weights: bool = False
    _learning: tuple[bool, ...] | None = None  # which parameters learnt when the modes were last set
    _frozen: frozenset[nn.Module] = frozenset()  # the frozen parts of that time, with all that is in them

    @abstractmethod
    def forward(self, **inputs: Tensor) -> Encoded:
        """Encode P rows, as ``processor`` makes them."""

    def load_pretrained(self) -> None:
        """Load pretrained weights; called once, before training, and never for a model that comes from a checkpoint."""

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, except in frozen parts."""
        super().train(mode)
        if mode:
            self._frozen = frozenset()
            self._set_changed_modes()
        return self

    def follow_requires_grad(self) -> None:
        """Set the modes of what was frozen or unfrozen since the last call; called in every training step."""
        if self._learning != self._flags():
            self._set_changed_modes()

    def _flags(self) -> tuple[bool, ...]:
        return tuple(parameter.requires_grad for parameter in self.parameters())

    def _set_changed_modes(self) -> None:
        """Leave all other modules in the mode that the user has set."""
        self._learning = self._flags()
        before = self._frozen
        self._frozen = frozenset(part for one in self.modules() if is_frozen(one) for part in one.modules())
        for part in before ^ self._frozen:
            part.training = part in before

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Note that the weights came from a checkpoint, where it has all of them."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if all(f"{prefix}{name}" in state_dict for name, _ in self.named_parameters()):
            self.has_weights = True

    def files(self) -> dict[str, bytes]:
        """Return what the checkpoint must carry besides weights and arguments: file name -> content."""
        return {}

    @classmethod
    def from_files(cls, init_args: dict[str, Any], folder: str) -> Encoder:
        """Build the encoder from a checkpoint's arguments and ``files``, without a hub and without weights.

        Args:
            init_args: the constructor's.
            folder: a temporary folder that holds ``files``.
        """
        del folder
        return cls(**init_args)
