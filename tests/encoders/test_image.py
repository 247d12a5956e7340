from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from fusion_pl.encoders import ImageEncoder
from fusion_pl.encoders.image import _fold_padding_into_convolutions
from fusion_pl.types import MissingFileError, UserError
from tests.encoders import contract
from tests.encoders.models import IMAGES, save_image

CONVOLUTIONAL = ("convnext", "resnet", "mobilenet-v2")
TOPS = ("encoder.layernorm", "layernorm", "post_layernorm", "conv_1x1", "encoder.conv")


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(height + width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


PICTURES = [picture(40, 50), picture(32, 32, "L"), picture(61, 33, "RGBA"), picture(20, 20, "P")]


@pytest.fixture(scope="module", params=list(IMAGES))
def named(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_image(request.param, path)
    return request.param, path


@pytest.fixture(scope="module")
def folder(named):
    return named[1]


@pytest.fixture(scope="module")
def encoder(folder):
    made = ImageEncoder(str(folder))
    made.load_pretrained()
    return made


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit")
    save_image("vit", path)
    return path


def test_shapes(encoder):
    contract.check_shapes(encoder, PICTURES)


def test_a_sample_does_not_depend_on_its_batch(encoder):
    contract.check_batch_independence(encoder, PICTURES)


@pytest.mark.parametrize("head", ["tokens", "embedding"])
def test_every_parameter_has_a_gradient(encoder, head):
    contract.check_gradients(encoder, PICTURES, head)


def test_bfloat16(encoder):
    contract.check_bfloat16(encoder, PICTURES)


def test_processor_pickles(encoder):
    contract.check_processor_pickles(encoder, PICTURES)


def test_checkpoint_files(folder, tmp_path):
    contract.check_checkpoint_files(ImageEncoder, folder, PICTURES, tmp_path)


def test_freeze_all(folder):
    contract.check_freeze_all(ImageEncoder, folder, PICTURES)


def test_freeze_bottom(folder):
    contract.check_freeze_blocks(ImageEncoder, folder, PICTURES, TOPS)


def test_invalid_hidden_layers_are_refused(folder):
    contract.check_hidden_layers_errors(ImageEncoder, folder)


@pytest.mark.parametrize(
    ("named", "combine"), contract.families_and_combinations(IMAGES, ["vit", "resnet"]), indirect=["named"]
)
def test_combined_hidden_layers(named, combine):
    contract.check_combined_hidden_layers(ImageEncoder, named[1], PICTURES, combine)


def test_a_pyramid_of_hidden_layers(named):
    name, folder = named
    if name in (*CONVOLUTIONAL, "swin"):
        contract.check_combined_hidden_layers(ImageEncoder, folder, PICTURES, "pyramid")
        return
    with pytest.raises(UserError, match="are sequences, and a pyramid needs feature maps"):
        ImageEncoder(str(folder), hidden_layers=[0, -1], combine="pyramid")


def reference(name, folder, pictures):
    """The saved model, called as its documentation says, on what its own processor makes."""
    model = hf.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    made = hf.AutoImageProcessor.from_pretrained(folder)([p.convert("RGB") for p in pictures], return_tensors="pt")
    with torch.no_grad():
        out = model(**made)
        tokens = out.last_hidden_state
        tokens = tokens.flatten(2).transpose(1, 2) if tokens.dim() == 4 else tokens
        if name == "clip":
            tokens = model.post_layernorm(tokens)
            torch.testing.assert_close(tokens[:, 0], out.pooler_output)
        if name == "convnext":
            tokens = model.layernorm(tokens)
    return tokens


def test_tokens_are_those_of_the_saved_model(named, encoder):
    expected = reference(*named, PICTURES)
    torch.testing.assert_close(contract.encode(encoder, PICTURES).tokens, expected, rtol=1e-3, atol=1e-4)


def test_class_token(named):
    name, folder = named
    if name in {"vit", "dinov2", "clip"}:
        encoder = ImageEncoder(str(folder), pooling="cls")
        out = contract.encode(encoder, PICTURES)
        torch.testing.assert_close(out.embedding, out.tokens[:, 0])
    else:
        with pytest.raises(UserError, match="has no class token"):
            ImageEncoder(str(folder), pooling="cls")


def test_image_size(folder):
    encoder = ImageEncoder(str(folder), image_size=64)
    encoder.load_pretrained()
    assert encoder.processor(PICTURES)["pixel_values"].shape == (4, 3, 64, 64)
    small, large = contract.encode(ImageEncoder(str(folder)), PICTURES), contract.encode(encoder, PICTURES)
    assert large.tokens.shape[1] > small.tokens.shape[1]
    contract.check_shapes(encoder, PICTURES)


def test_the_memory_format_does_not_change_the_result(named):
    name, folder = named
    chosen = ImageEncoder(str(folder))
    assert (chosen.memory_format == torch.channels_last) == (name in CONVOLUTIONAL)
    both = [ImageEncoder(str(folder), channels_last=last) for last in (True, False)]
    for encoder, layout in zip(both, (torch.channels_last, torch.contiguous_format), strict=True):
        encoder.load_pretrained()
        assert encoder.memory_format == layout
    if name in CONVOLUTIONAL:
        weights = [p for p in chosen.parameters() if p.dim() == 4 and min(p.shape) > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    last, first = (contract.encode(encoder, PICTURES).tokens for encoder in both)
    torch.testing.assert_close(last, first, rtol=1e-4, atol=1e-5)


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    save_image("resnet", tmp_path)
    encoder = ImageEncoder(str(tmp_path), freeze=1).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items() if k.endswith("running_mean")}
    encoder(**encoder.processor(PICTURES))
    moved = {k for k, v in before.items() if not torch.equal(v, encoder.state_dict()[k])}
    assert moved
    assert all(".encoder.stages.1." in key for key in moved)


def test_the_processor_returns_bytes(vit):
    made = ImageEncoder(str(vit)).processor(PICTURES)
    assert made["pixel_values"].dtype == torch.uint8
    assert made["pixel_values"].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("shape", [(3000, 2), (2, 3000), (1, 1)])
@pytest.mark.parametrize("name", ["vit", "clip"])
def test_images_of_extreme_shapes(name, shape, tmp_path):
    save_image(name, tmp_path)
    made = ImageEncoder(str(tmp_path)).processor([picture(*shape)])
    assert made["pixel_values"].shape == (1, 3, 32, 32)


def test_architecture_without_a_processor(vit, tmp_path):
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    encoder = ImageEncoder(str(tmp_path), weights=False, image_size=32)
    contract.check_shapes(encoder, PICTURES)
    with pytest.raises(MissingFileError, match=r"no image processor \(preprocessor_config\.json\) could be read"):
        ImageEncoder(str(tmp_path))


def test_image_size_smaller_than_a_patch_is_refused(vit):
    with pytest.raises(UserError, match="image_size: 4 is smaller than one patch"):
        ImageEncoder(str(vit), image_size=4)
    with pytest.raises(UserError, match="image_size is 0, expected a number of pixels"):
        ImageEncoder(str(vit), image_size=0)


@pytest.mark.parametrize("size", [64, 33])
def test_padding_in_the_convolutions_gives_the_same_result(size):
    config = hf.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, output_stride=16)  # dilated, too
    torch.manual_seed(0)
    plain = hf.MobileNetV2Model(config).double().eval()
    folded = copy.deepcopy(plain)
    _fold_padding_into_convolutions(folded)
    pixels = torch.randn(2, 3, size, size, dtype=torch.float64)
    padded = [layer for layer in folded.modules() if isinstance(layer, torch.nn.Conv2d) and any(layer.padding)]
    assert len(padded) > 10
    torch.testing.assert_close(folded(pixels).last_hidden_state, plain(pixels).last_hidden_state)
