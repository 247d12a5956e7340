"""Base class of pretrained encoders, which builds, loads, freezes and saves a model and pools its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.hub import hub_offline, read_pretrained, resolve_source, serialize_files
from fusion_pl.encoders.layer_mixing import Combine, LayerMixing, build_layer_mixing
from fusion_pl.encoders.saved_files import check_saved_files
from fusion_pl.layers import masked_max, masked_mean
from fusion_pl.messages import truncate
from fusion_pl.types import Encoded, UserError

Freeze = Literal["all", "none"] | int
Pooling = Literal["mean", "cls", "max"]

POOLINGS = {"mean": masked_mean, "max": masked_max}
UNTRAINED = ("mask_token", "masked_spec_embed")  # parameters that are only used in pretraining


class PretrainedEncoder(Encoder):
    """Base of encoders with a Hugging Face model; subclasses differ in their processor and in the call of the model.

    The constructor reads configuration files and initialises random weights; ``load_pretrained`` loads the weights.

    Args:
        pretrained: a folder, or the name of a model on the hub.
        weights: whether to load pretrained model weights; if not, only the architecture is used.
        freeze: "all", "none", or the number of blocks to freeze, counted from the input; the layers before these blocks
            are frozen too. In a convolutional network with stages, each stage counts as one block.
        pooling: how tokens are pooled: mean, max, or cls (the class token).
        hidden_layers: indices of the hidden layers to combine: 0 = input of the first block, -1 = last block; None =
            last block only.
        combine: how hidden layers are combined: concat, sum, attention or, for feature maps, pyramid.

    Raises:
        UserError: if the model cannot be read, or an argument does not match it.
    """

    # Names of the nested attributes that contain this modality's encoder in a multimodal model, outermost first.
    tower_path: ClassVar[tuple[str, ...]]
    config_attribute: ClassVar[str]  # attribute that contains this modality's configuration in a multimodal model
    example_value: ClassVar[Any]  # an input value for the processor
    required_files: ClassVar[tuple[str, ...]] = ("config.json",)  # files that a checkpoint must contain

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
        if pooling not in get_args(Pooling):
            raise UserError(f"pooling: {pooling!r} is unknown, expected mean, max or cls")
        self.source = resolve_source(pretrained)
        self.pretrained_weights = weights
        self.freeze = freeze
        self.pooling = pooling
        self.hidden_layers = list(hidden_layers or [])
        self.combine = combine
        self.layer_mixing: LayerMixing | None = None
        self._load_config()
        self.model = self._prepare_model(self._select_tower(self._build_model()))
        self.dim = int(getattr(self.config, "hidden_size", 0))
        for name, parameter in self.model.named_parameters():
            if name.endswith(UNTRAINED):
                parameter.requires_grad_(False)
        self._freeze_blocks()

    def _load_config(self) -> None:
        from transformers import MODEL_MAPPING, AutoConfig

        config = read_pretrained(AutoConfig.from_pretrained, self.source, "configuration")
        self._auto_class = self._select_auto_class(config)
        part = getattr(config, self.config_attribute, None)
        self.config: Any = part if type(part) in MODEL_MAPPING else config  # for a multimodal model, one encoder only
        self._file_contents = serialize_files(self.config)

    def _select_auto_class(self, config: Any) -> Any:
        """Return the auto class of transformers that builds and loads the complete model."""
        from transformers import AutoModel

        del config
        return AutoModel

    def _build_model(self) -> nn.Module:
        auto = self._select_auto_class(self.config)
        try:
            return cast(nn.Module, auto.from_config(self.config, dtype=torch.float32, trust_remote_code=False))
        except UserError:  # from MemoryBudget
            raise
        except ValueError as error:
            raise UserError(
                f"pretrained: {self.source} is a {self.config.model_type!r} model, which {type(self).__name__} cannot "
                "build: choose another model, or another encoder"
            ) from error

    def _select_tower(self, model: Any) -> nn.Module:
        if getattr(model.config, "is_encoder_decoder", False):
            model = getattr(model, "encoder", model)
        for name in self.tower_path:
            model = getattr(model, name, model)
        return cast(nn.Module, model)

    def _prepare_model(self, model: nn.Module) -> nn.Module:
        """Remove modules that do not affect the tokens, because every parameter must get a gradient."""
        for name in ("pooler", "head"):
            if any(parameter.startswith(f"{name}.") for parameter, _ in model.named_parameters()):
                setattr(model, name, None)
        return model

    def load_pretrained(self) -> None:
        """Load the pretrained weights.

        Raises:
            UserError: if the weights cannot be read, or are incomplete.
        """
        if not self.pretrained_weights:
            return
        loaded, info = read_pretrained(
            self._auto_class.from_pretrained, self.source, "weights", dtype=torch.float32, output_loading_info=True
        )
        tower = self._select_tower(loaded)
        prefix = next(name for name, module in loaded.named_modules() if module is tower)
        own, saved_weights = self.model.state_dict(), tower.state_dict()
        missing = {key.removeprefix(f"{prefix}.") for key in info["missing_keys"]}
        absent = [key for key in own if key not in saved_weights or (key in missing and not key.endswith(UNTRAINED))]
        if absent:
            raise UserError(
                f"pretrained: the weights of {self.source} lack {len(absent)} of {len(own)} tensors of this "
                f"{self.config.model_type} (first: {absent[0]}): choose another model, or set weights: false"
            )
        self.model.load_state_dict({key: saved_weights[key] for key in own})
        self.has_weights = True

    def files(self) -> dict[str, bytes]:
        """Return the configuration, tokenizer and processor files that the constructor has read."""
        return dict(self._file_contents)

    @classmethod
    def from_files(cls, init_args: dict[str, Any], folder: str) -> PretrainedEncoder:
        """Build the encoder from files of a checkpoint; its ``source`` is the original name of the model.

        Raises:
            UserError: if a file is missing or invalid, or describes a model that exceeds the limits.
        """
        check_saved_files(folder)
        source = truncate(str(init_args["pretrained"]))
        if init_args.get("weights", True) and not all((Path(folder) / name).is_file() for name in cls.required_files):
            raise UserError(f"the checkpoint lacks {' or '.join(cls.required_files)} of {source}")
        with hub_offline():
            encoder = cls(**{**init_args, "pretrained": folder, "weights": False})
            with torch.no_grad():  # raises an error if the files belong to different models
                encoder.eval()(**encoder.processor([cls.example_value]))
            encoder.train()
        encoder.init_args = dict(init_args)
        encoder.source = str(init_args["pretrained"])
        encoder.pretrained_weights = bool(init_args.get("weights", True))
        return encoder

    def _freeze_blocks(self) -> None:
        if isinstance(self.freeze, str):
            if self.freeze == "all":
                self.model.requires_grad_(False)
            return
        stack, blocks = self._find_blocks()
        if not 0 <= self.freeze <= len(blocks):
            raise UserError(f"freeze: {self.freeze} is not between 0 and the {len(blocks)} blocks of {self.source}")
        before_blocks = True  # modules are registered in the order of computation, except for two norms
        final_norm = "encoder.layer_norm." if getattr(self.config, "do_stable_layer_norm", False) else None
        for name, parameter in self.model.named_parameters():
            if name.startswith(f"{stack}."):
                before_blocks = False
                frozen = int(name.removeprefix(f"{stack}.").partition(".")[0]) < self.freeze
            elif final_norm is not None and name.startswith(final_norm):
                frozen = False
            else:
                frozen = before_blocks or name.startswith("batch_norm.")  # CLAP's input norm
            if frozen:
                parameter.requires_grad_(False)

    def _find_blocks(self) -> tuple[str, nn.ModuleList]:
        """Return the name and the blocks of the model's stack: the longest ModuleList on the outermost level."""
        lists = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and "feature_extractor" not in name
        ]
        return min(lists, key=lambda item: (item[0].count("."), -len(item[1])))

    def _run_model(self, hidden_states: bool = False, **inputs: Any) -> Any:
        return self.model(**inputs, output_hidden_states=hidden_states or bool(self.hidden_layers), return_dict=True)

    def _to_encoded(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"], states: Any = ()) -> Encoded:
        """Combine hidden layers if ``combine`` is set, set padding to zero, and pool the tokens."""
        weights = None
        if self.layer_mixing is not None:
            selected = [states[layer] for layer in self.hidden_layers]
            maps = selected[0].dim() == 4
            tokens, weights = self.layer_mixing(selected, None if maps else mask)
            mask = mask.new_ones(tokens.shape[:2]) if maps else mask
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
        embedding = tokens[:, 0] if self.pooling == "cls" else POOLINGS[self.pooling](tokens, mask)
        return Encoded(tokens, mask, embedding, weights)

    def _finish_setup(self, has_class_token: bool, widths: list[int], has_feature_maps: bool = False) -> None:
        """Check the pooling, build the layer mixing for hidden layers with ``widths`` channels, and set the modes."""
        if self.pooling == "cls" and not has_class_token:
            raise UserError(f"pooling: {self.source} has no class token: choose mean or max")
        self.layer_mixing = build_layer_mixing(self.source, self.hidden_layers, self.combine, widths, has_feature_maps)
        if self.layer_mixing is not None:
            self.dim = self.layer_mixing.dim
            self._freeze_unused_parameters()
        self.train()  # sets the mode of frozen modules; Lightning does not change modes when training starts

    def _freeze_unused_parameters(self) -> None:
        """Freeze parameters that do not affect the combined layers, such as later blocks: they get no gradient."""
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            tokens = self.eval()(**self.processor([self.example_value])).tokens
            if trainable and tokens.requires_grad:
                gradients = torch.autograd.grad(tokens.sum(), trainable, allow_unused=True)
                for parameter, gradient in zip(trainable, gradients, strict=True):
                    parameter.requires_grad_(gradient is not None)
