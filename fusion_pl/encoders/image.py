"""Pretrained image encoders: transformers and convolutional networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor, nn

from fusion_pl.encoders.hub import read, saved
from fusion_pl.encoders.layer_mixing import Combine, as_tokens
from fusion_pl.encoders.pretrained import Freeze, Pooling, PretrainedEncoder
from fusion_pl.types import Encoded, Kind, MissingFileError, UserError

LONGEST_ASPECT = 4  # of a picture whose shorter edge decides its size
FINAL_NORMS = {"clip_vision_model": "post_layernorm", "convnext": "layernorm", "convnextv2": "layernorm"}


@dataclass
class ImageProcessor:
    """Turns pictures into bytes of one size: a quarter of what floats weigh on the way to the model.

    Attributes:
        size: height and width of the result, in pixels.
        edge: what the shorter edge is resized to before the centre is cut out; None = the whole picture is squeezed.
        resample: Pillow's number of the interpolation.
    """

    size: int
    edge: int | None
    resample: int
    kind: Kind = "image"

    def __call__(self, values: Sequence[Image.Image], training: bool = False) -> dict[str, Tensor]:
        """Process P pictures of any mode and size."""
        del training
        return {"pixel_values": torch.stack([self._one(picture) for picture in values])}

    def _one(self, picture: Image.Image) -> UInt8[Tensor, "3 S S"]:
        from torchvision.transforms.v2 import functional as tv

        pixels = tv.pil_to_tensor(picture if picture.mode == "RGB" else picture.convert("RGB"))
        height, width = self.size, self.size
        if self.edge is not None:
            pixels = _centre(pixels, pixels.shape[2] * LONGEST_ASPECT, pixels.shape[1] * LONGEST_ASPECT)
            short = min(pixels.shape[1:])
            height, width = (int(self.edge * side / short) for side in pixels.shape[1:])
        if pixels.shape[1:] != (height, width):
            pixels = tv.resize(pixels, [height, width], interpolation=self.resample, antialias=True)
        return _centre(pixels, self.size, self.size)


def _centre(pixels: UInt8[Tensor, "3 H W"], height: int, width: int) -> UInt8[Tensor, "3 h w"]:
    top, left = max(0, pixels.shape[1] - height) // 2, max(0, pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _fold_padding(model: nn.Module) -> None:
    """Let MobileNet's convolutions of stride 1 pad by themselves, which copies no map; elsewhere it is lopsided."""
    for layer in model.modules():
        config, convolution = getattr(layer, "config", None), getattr(layer, "convolution", None)
        if getattr(config, "tf_padding", False) and isinstance(convolution, nn.Conv2d) and convolution.stride == (1, 1):
            size = zip(convolution.dilation, convolution.kernel_size, strict=True)
            convolution.padding = tuple(dilation * (width - 1) // 2 for dilation, width in size)
            own: Any = copy.copy(config)
            own.tf_padding = False
            setattr(layer, "config", own)  # noqa: B010


class ImageEncoder(PretrainedEncoder):
    """Encode pictures with a pretrained vision model; a convolutional map of H × W becomes H·W tokens.

    Args:
        pretrained: a folder, or a name on the hub.
        weights: whether to use its weights, or only its architecture.
        freeze: "all", "none", or how many blocks from the bottom (then the embeddings are frozen too); a block of a
            network with stages is a stage.
        pooling: how tokens become one vector: their mean, their maximum, or the class token.
        image_size: height and width in pixels; None = what the model was trained with.
        channels_last: memory layout; None = channels last for convolutional networks, about twice as fast on a CPU.
        hidden_layers: which of them become the tokens: 0 = first, -1 = last; None = the last alone.
        combine: how several become one sequence: concat, sum, attention or, for maps, pyramid.

    Raises:
        UserError: where the model cannot be read, or an argument does not fit it.
    """

    tower = ("vision_model",)
    part = "vision_config"
    example = Image.new("RGB", (64, 64))
    needs = ("config.json", "preprocessor_config.json")
    shift: Tensor
    scale: Tensor
    stretch: bool

    def __init__(
        self,
        pretrained: str,
        weights: bool = True,
        freeze: Freeze = "none",
        pooling: Pooling = "mean",
        image_size: int | None = None,
        channels_last: bool | None = None,
        hidden_layers: list[int] | None = None,
        combine: Combine | None = None,
    ) -> None:
        super().__init__(pretrained, weights, freeze, pooling, hidden_layers, combine)
        if image_size is not None and image_size < 1:
            raise UserError(f"image_size: {image_size} is not a number of pixels: give at least 1, such as 224")
        names = [name.lower() for name, _ in self.model.named_modules()]
        self.convolutional = not any("attention" in name or "attn" in name for name in names)
        self.chosen = channels_last is None and self.convolutional
        self.memory_format = torch.channels_last if channels_last or self.chosen else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        settings = self._settings()
        self.processor = processor = _processor(settings, image_size)
        self._fit(processor.size)
        self._normalise(settings)
        class_token = any(name.endswith(("cls_token", "class_embedding")) for name, _ in self.model.named_parameters())
        blank = self._probe(64 if self.convolutional else processor.size)
        self.dim = as_tokens(blank.last_hidden_state).shape[-1]
        states = _states(blank)
        self._finish(
            class_token, [as_tokens(state).shape[-1] for state in states], maps=bool(states) and states[0].dim() == 4
        )

    def load_pretrained(self) -> None:
        """Load the weights, and say what was chosen for the hardware."""
        super().load_pretrained()
        if self.chosen:
            rank_zero_info(f"Layout: channels last, faster for {self.source} (channels_last: false to switch it off).")

    def _prepare(self, model: nn.Module) -> nn.Module:
        model = super()._prepare(model)
        if hasattr(model, "use_head"):  # SigLIP's attention pooling
            setattr(model, "use_head", False)  # noqa: B010 - to a checker, only a Module can be set on a Module
        _fold_padding(model)
        return model

    def _settings(self) -> dict[str, Any]:
        from transformers import AutoImageProcessor

        try:
            found = read(AutoImageProcessor.from_pretrained, self.source, "image processor (preprocessor_config.json)")
        except MissingFileError:
            if self.pretrained_weights:
                raise
            return {"size": {"height": 224, "width": 224}}  # an architecture alone: any sensible processing will do
        self._files |= saved(found)
        return dict(found.to_dict())

    def _fit(self, size: int) -> None:
        """See to it that a transformer trained at another size stretches its position table."""
        trained = getattr(self.config, "image_size", size)
        self.stretch = not self.convolutional and size != (trained if isinstance(trained, int) else trained[0])
        patch = getattr(self.config, "patch_size", 1)
        if not self.convolutional and size < patch:
            raise UserError(f"image_size: {size} is smaller than one patch ({patch} pixels) of {self.source}")

    def _normalise(self, settings: dict[str, Any]) -> None:
        """Keep (pixel · factor - mean) / std as one multiplication and one addition."""
        plain = settings.get("do_normalize", True) is False
        mean = torch.tensor([0.0] * 3 if plain else settings.get("image_mean") or [0.485, 0.456, 0.406])
        std = torch.tensor([1.0] * 3 if plain else settings.get("image_std") or [0.229, 0.224, 0.225])
        factor = float(settings.get("rescale_factor") or 1 / 255)
        self.register_buffer("scale", (factor / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def _probe(self, size: int) -> Any:
        """Look at a blank picture: how wide each depth is no two families of models write down in the same way."""
        training, hidden_layers, self.hidden_layers = self.model.training, self.hidden_layers, [0]
        self.model.eval()
        with torch.no_grad():
            out = self._look(torch.zeros(1, 3, size, size))
        self.model.train(training)
        self.hidden_layers = hidden_layers
        return out

    def _look(self, pixels: Tensor) -> Any:
        return self._call(pixel_values=pixels, **({"interpolate_pos_encoding": True} if self.stretch else {}))

    def forward(self, pixel_values: UInt8[Tensor, "B 3 S S"]) -> Encoded:  # type: ignore[override]
        """Encode P pictures.

        Args:
            pixel_values: red, green and blue in 0 … 255.
        """
        pixels = (pixel_values * self.scale + self.shift).contiguous(memory_format=self.memory_format)
        out = self._look(pixels)
        tokens = as_tokens(out.last_hidden_state)
        norm = FINAL_NORMS.get(self.config.model_type)
        if norm is not None:  # these models apply it to their own embedding vector only
            tokens = getattr(self.model, norm)(tokens)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self._encoded(tokens, mask, _states(out))


def _states(out: Any) -> list[Tensor]:
    """Return what each depth holds: as maps, where the model has maps."""
    return list(getattr(out, "reshaped_hidden_states", None) or out.hidden_states or ())


def _processor(settings: dict[str, Any], image_size: int | None) -> ImageProcessor:
    """Restate the processor of transformers: squeeze, or resize the shorter edge and cut out the centre."""
    size = dict(settings.get("size") or {"height": 224})
    short = size.get("shortest_edge")
    edge: int | None = None
    target = int(short or size.get("height") or size.get("longest_edge") or 224)
    if settings.get("crop_pct") is not None and short:  # ConvNeXt and ResNet
        edge = int(target / settings["crop_pct"]) if target < 384 else None
    elif settings.get("do_center_crop"):
        crop = settings.get("crop_size") or target
        edge, target = target, int(crop if isinstance(crop, int) else crop["height"])
    elif short:
        edge = target
    if image_size is not None:
        edge, target = (None if edge is None else max(image_size, round(edge * image_size / target))), image_size
    resample = settings.get("resample")
    return ImageProcessor(target, edge, Image.Resampling.BILINEAR if resample is None else int(resample))
