"""What encoders over pretrained models share: building, loading, freezing, pooling, and travelling in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.embedded import check_folder
from fusion_pl.encoders.hub import locate, offline, read, saved
from fusion_pl.encoders.layer_mixing import Combine, LayerMixing, build_layer_mixing
from fusion_pl.layers import masked_max, masked_mean
from fusion_pl.messages import short
from fusion_pl.types import Encoded, UserError

Freeze = Literal["all", "none"] | int
Pooling = Literal["mean", "cls", "max"]

UNUSED = ("mask_token", "masked_spec_embed")  # of masked pre-training: no classifier ever gives them a gradient


class PretrainedEncoder(Encoder):
    """An encoder over a model of Hugging Face's; the three kinds differ in their processor and in how they call it.

    The constructor reads configuration files only and starts from random weights; ``load_pretrained`` fills them in.

    Args:
        pretrained: a folder, or a name on the hub.
        weights: whether to use its weights, or only its architecture.
        freeze: "all", "none", or how many blocks from the bottom (then the embeddings are frozen too).
        pooling: how tokens become one vector: their mean, their maximum, or the class token.
        hidden_layers: which of them become the tokens: 0 = embeddings, -1 = last block; None = the last block alone.
        combine: how several become one sequence (see ``fusion_pl.encoders.layer_mixing.LayerMixing``).

    Raises:
        UserError: where the model cannot be read, or an argument does not fit it.
    """

    tower: ClassVar[tuple[str, ...]]  # where this kind's part sits in a model of several kinds, outermost first
    part: ClassVar[str]  # and in its configuration
    example: ClassVar[Any]  # of what its processor takes
    needs: ClassVar[tuple[str, ...]] = ("config.json",)  # files that nothing can stand in for

    def __init__(
        self,
        pretrained: str,
        weights: bool = True,
        freeze: Freeze = "none",
        pooling: Pooling = "mean",
        hidden_layers: list[int] | None = None,
        combine: Combine | None = None,
    ) -> None:
        super().__init__()
        self.source = locate(pretrained)
        self.pretrained_weights = weights
        self.freeze = freeze
        self.pooling = pooling
        self.hidden_layers = list(hidden_layers or [])
        self.combine = combine
        self.layer_mixing: LayerMixing | None = None
        self.config, self._files = self._configure()
        self.model = self._prepare(self._tower_of(self._build()))
        self.dim = int(getattr(self.config, "hidden_size", 0))
        for name, parameter in self.model.named_parameters():
            if name.endswith(UNUSED):
                parameter.requires_grad_(False)
        self._freeze()

    def _configure(self) -> tuple[Any, dict[str, bytes]]:
        from transformers import MODEL_MAPPING, AutoConfig

        config = read(AutoConfig.from_pretrained, self.source, "configuration")
        self._auto = self._auto_class(config)
        part = getattr(config, self.part, None)
        if part is not None and type(part) in MODEL_MAPPING:  # builds one tower, not both
            config = part
        return config, saved(config)

    def _auto_class(self, config: Any) -> Any:
        """Return what builds and loads the saved model as a whole."""
        from transformers import AutoModel

        del config
        return AutoModel

    def _build(self) -> nn.Module:
        try:
            built: nn.Module = self._auto_class(self.config).from_config(
                self.config, dtype=torch.float32, trust_remote_code=False
            )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"pretrained: {self.source} is a {self.config.model_type!r} model, which {type(self).__name__} cannot "
                "build: choose another model, or another encoder"
            ) from error
        return built

    def _tower_of(self, model: Any) -> nn.Module:
        if getattr(model.config, "is_encoder_decoder", False):
            model = getattr(model, "encoder", model)
        for name in self.tower:
            model = getattr(model, name, model)
        assert isinstance(model, nn.Module)
        return model

    def _prepare(self, model: nn.Module) -> nn.Module:
        """Take out what no token passes through: every parameter that stays must receive a gradient."""
        for name in ("pooler", "head"):
            module = getattr(model, name, None)
            if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
                setattr(model, name, None)
        return model

    def load_pretrained(self) -> None:
        """Load the weights into the model that was built.

        Raises:
            UserError: where they cannot be read, or lack a part of the model.
        """
        if not self.pretrained_weights:
            return
        loaded, info = read(
            self._auto.from_pretrained, self.source, "weights", dtype=torch.float32, output_loading_info=True
        )
        tower = self._tower_of(loaded)
        prefix = next(name for name, module in loaded.named_modules() if module is tower)
        own, given = self.model.state_dict(), tower.state_dict()
        missing = {key.removeprefix(f"{prefix}.") for key in info["missing_keys"]}
        lost = [key for key in own if key not in given or (key in missing and not key.endswith(UNUSED))]
        if lost:
            raise UserError(
                f"pretrained: the weights of {self.source} lack {len(lost)} of {len(own)} tensors of this "
                f"{self.config.model_type} (first: {lost[0]}): they belong to another model, or set weights: false"
            )
        self.model.load_state_dict({key: given[key] for key in own})
        self.has_weights = True

    def files(self) -> dict[str, bytes]:
        """Return configuration and processor files; they were read when the encoder was built."""
        return dict(self._files)

    @classmethod
    def from_files(cls, init_args: dict[str, Any], folder: str) -> PretrainedEncoder:
        """Build the encoder from its files alone; it goes by the name that the user gave it.

        Raises:
            UserError: where a file is missing, none of ours, or asks for more than any model needs.
        """
        check_folder(folder)
        if init_args.get("weights", True) and not all((Path(folder) / name).is_file() for name in cls.needs):
            raise UserError(f"the checkpoint lacks {' or '.join(cls.needs)} of {short(str(init_args['pretrained']))}")
        with offline():
            encoder = cls(**{**init_args, "pretrained": folder, "weights": False})
            with torch.no_grad():  # files that do not belong together show now, not with the first sample
                encoder.eval()(**encoder.processor([cls.example]))
            encoder.train()
        encoder.init_args = dict(init_args)
        encoder.source = str(init_args["pretrained"])
        encoder.pretrained_weights = bool(init_args.get("weights", True))
        return encoder

    def _freeze(self) -> None:
        if self.freeze == "none":
            return
        if self.freeze == "all":
            self.model.requires_grad_(False)
            return
        name, blocks = self._blocks()
        if not 0 <= self.freeze <= len(blocks):
            raise UserError(f"freeze: {self.freeze} is not between 0 and the {len(blocks)} blocks of {self.source}")
        for parameter in self._bottom(name, self.freeze):
            parameter.requires_grad_(False)

    def _blocks(self) -> tuple[str, nn.ModuleList]:
        """Find the stack of blocks: the outermost list of modules (of the longest, where there are several)."""
        lists = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and "feature_extractor" not in name
        ]
        return min(lists, key=lambda found: (found[0].count("."), -len(found[1])))

    def _bottom(self, stack: str, count: int) -> Iterator[nn.Parameter]:
        """Yield what lies below block ``count``; modules are registered from the input to the output, but for two."""
        below = True
        last = "encoder.layer_norm" if getattr(self.config, "do_stable_layer_norm", False) else None
        for name, parameter in self.model.named_parameters():
            if name.startswith(f"{stack}."):
                below = False
                if int(name.removeprefix(f"{stack}.").partition(".")[0]) < count:
                    yield parameter
            elif (below and name.rpartition(".")[0] != last) or name.startswith("batch_norm."):  # CLAP's input norm
                yield parameter

    def _call(self, **inputs: Any) -> Any:
        return self.model(**inputs, output_hidden_states=bool(self.hidden_layers), return_dict=True)

    def _encoded(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"], states: Any = ()) -> Encoded:
        """Combine hidden layers where that is wanted, set the padding to zero, and pool."""
        weights = None
        if self.layer_mixing is not None:
            chosen = [states[layer] for layer in self.hidden_layers]
            maps = chosen[0].dim() == 4
            tokens, weights = self.layer_mixing(chosen, None if maps else mask.to(tokens.dtype))
            mask = mask.new_ones(tokens.shape[:2]) if maps else mask
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
        return Encoded(tokens, mask, self._pool(tokens, mask), weights)

    def _pool(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        if self.pooling == "cls":
            return tokens[:, 0]
        return masked_mean(tokens, mask) if self.pooling == "mean" else masked_max(tokens, mask)

    def _finish(self, has_class_token: bool, widths: list[int], maps: bool = False) -> None:
        """Check what needs the whole model, and build what combines its hidden layers.

        Args:
            has_class_token: whether the first token stands for all.
            widths: channels of each hidden layer.
            maps: whether they are maps.
        """
        if self.pooling == "cls" and not has_class_token:
            raise UserError(f"pooling: {self.source} has no class token: choose mean or max")
        self.layer_mixing = build_layer_mixing(self.source, self.hidden_layers, self.combine, widths, maps)
        if self.layer_mixing is not None:
            self.dim = self.layer_mixing.dim
            self._hold_unused()
        self.train()  # as built, but for frozen parts: Lightning keeps the modes that it finds when training starts

    def _hold_unused(self) -> None:
        """Freeze what no chosen layer depends on, such as the blocks above the last one: it never gets a gradient."""
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            tokens = self.eval()(**self.processor([self.example])).tokens
            if learning and tokens.requires_grad:
                for parameter, gradient in zip(
                    learning, torch.autograd.grad(tokens.sum(), learning, allow_unused=True), strict=True
                ):
                    parameter.requires_grad_(gradient is not None)
