"""Base class of the encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from fusion_pl.config import Configurable
from fusion_pl.processors import Processor
from fusion_pl.types import Encoded


def is_frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters and none of them requires a gradient.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> is_frozen(layer), is_frozen(layer.requires_grad_(False))
        (False, True)
    """
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


class Encoder(Configurable, nn.Module, ABC):
    """Encode one input as tokens and a pooled embedding. A subclass sets ``dim``, ``processor`` and ``forward``.

    The constructor takes plain data only (text, numbers, lists, dictionaries), because the checkpoint stores it.

    Frozen modules stay in evaluation mode during training, so that their running statistics do not change and their
    dropout is off. A module is frozen if no parameter has ``requires_grad``, which may change during training.

    Attributes:
        dim: number of channels D of the tokens and of the embedding.
        processor: opens the values of the input and converts them to arguments of ``forward``.
        pretrained_weights: whether ``load_pretrained`` loads model weights; if so, the learning rate is lower.
        hidden_layers: indices of the hidden layers that are combined; empty if only the last one is used.
        has_weights: whether model weights were loaded from the hub or from a checkpoint.
    """

    dim: int
    processor: Processor
    pretrained_weights: bool = False
    hidden_layers: Sequence[int] = ()
    has_weights: bool = False
    _last_requires_grad: tuple[bool, ...] | None = None  # requires_grad of each parameter at the last update of modes
    _frozen_modules: frozenset[nn.Module] = frozenset()  # modules frozen at the last update, and their submodules

    @abstractmethod
    def forward(self, **inputs: Tensor) -> Encoded:
        """Encode the P samples that have the input.

        Args:
            **inputs: tensors that ``processor`` returns.
        """

    def differentiable_input(self) -> str | nn.Module | None:
        """Return what ``fusion-pl explain`` computes gradients of: an argument of ``forward``, or a module's output.

        Returns:
            Name of an argument (P, K, S, S) that may be a float tensor, such as pixels; the module that embeds tokens,
            whose output is (P, T, D); or None if gradients are not supported.
        """
        return None

    def load_pretrained(self) -> None:
        """Load pretrained weights; called once before training, and never for a model from a checkpoint."""

    def fit_statistics(self, values: Iterable[Any]) -> None:
        """Compute statistics of the input, such as means; called once before training, never for a loaded model.

        Args:
            values: opened values of the input in all training samples, not augmented. They are opened while they are
                iterated over, so that an encoder without statistics costs nothing.
        """

    def train(self, mode: bool = True) -> Encoder:
        """Set training or evaluation mode, but keep frozen modules in evaluation mode."""
        super().train(mode)
        if mode:
            self._frozen_modules = frozenset()
            self._apply_frozen_modes()
        return self

    def update_frozen_modes(self) -> None:
        """Set the modes of modules that were frozen or unfrozen since the last call; called in every training step."""
        if self._last_requires_grad != self._requires_grad_flags():
            self._apply_frozen_modes()

    def _requires_grad_flags(self) -> tuple[bool, ...]:
        return tuple(parameter.requires_grad for parameter in self.parameters())

    def _apply_frozen_modes(self) -> None:
        """Set newly frozen modules to evaluation mode and newly unfrozen modules to training mode; change no others."""
        self._last_requires_grad = self._requires_grad_flags()
        previous = self._frozen_modules
        self._frozen_modules = frozenset(child for m in self.modules() if is_frozen(m) for child in m.modules())
        for module in previous ^ self._frozen_modules:
            module.training = module in previous

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Set ``has_weights`` if the checkpoint contains all parameters."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if all(f"{prefix}{name}" in state_dict for name, _ in self.named_parameters()):
            self.has_weights = True

    def files(self) -> dict[str, bytes]:
        """Return the files that the checkpoint must contain to build this encoder: file name -> content."""
        return {}

    @classmethod
    def from_files(cls, init_args: dict[str, Any], folder: str) -> Encoder:
        """Build the encoder from the arguments and files of a checkpoint, without the hub and without model weights.

        Args:
            init_args: arguments of the constructor.
            folder: a temporary folder that contains the output of ``files``.
        """
        del folder
        return cls(**init_args)
