"""What every small encoder contract, checked for each ``Tiny…`` that ``fusion_pl.encoders`` exports, now and later."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from PIL import Image
from torchaudio.transforms import MelSpectrogram

import fusion_pl.encoders
from fusion_pl.config import config_of, import_class
from fusion_pl.encoders import Encoder, TinyAudio, TinyImage, TinyText
from fusion_pl.processors import AudioProcessor, ImageProcessor, Processor, TextProcessor
from fusion_pl.types import Encoded, UserError, Waveform

KINDS = [getattr(fusion_pl.encoders, name) for name in fusion_pl.encoders.__all__ if name.startswith("Tiny")]


def sound(seconds: float, rate: int = 8000) -> Waveform:
    generator = torch.Generator().manual_seed(round(seconds * rate))
    return Waveform(torch.randn(round(seconds * rate), generator=generator) * 0.1, rate)


def picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    generator = torch.Generator().manual_seed(size[0])
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert(mode)


# Of each kind: ordinary values of several lengths, then the least that can come out of a file.
VALUES: dict[str, list[Any]] = {
    "text": ["seven", "a much longer sentence, naïve and 日本語 🙂", "x", ""],
    "image": [picture((28, 28)), picture((70, 41), "L"), picture((33, 90), "RGBA"), picture((1, 1), "1")],
    "audio": [sound(0.5), sound(1.31, 16_000), sound(0.0301), sound(0.002), Waveform(torch.zeros(0), 8000)],
}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
COMBINES = [(kind, combine) for kind in KINDS for combine in (None, "concat", "sum", "attention")] + [
    (TinyImage, "pyramid")
]
every_combine = pytest.mark.parametrize(
    ("kind", "combine"), COMBINES, ids=lambda one: getattr(one, "__name__", str(one))
)


@pytest.fixture
def combine() -> str | None:
    """Return how hidden layers are combined; tests may override it."""
    return None


@pytest.fixture
def encoder(kind: type[Encoder], combine: str | None) -> Encoder:
    torch.manual_seed(0)
    return kind(combine=combine).eval()


def modality(encoder: Encoder) -> str:
    bases = {"text": TextProcessor, "image": ImageProcessor, "audio": AudioProcessor}
    return next(name for name, base in bases.items() if isinstance(encoder.processor, base))


def values_of(encoder: Encoder) -> list[Any]:
    return VALUES[modality(encoder)]


def assert_same_row(found: Encoded, row: int, wanted: Encoded) -> None:
    real = found.mask[row]
    assert int(real.sum()) == int(wanted.mask.sum())
    torch.testing.assert_close(found.tokens[row][real], wanted.tokens[0][wanted.mask[0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.embedding[row], wanted.embedding[0], rtol=1e-4, atol=1e-5)


def test_all_kinds_of_encoders_are_found() -> None:
    assert {modality(kind()) for kind in KINDS} == {"text", "image", "audio"}


@every_combine
def test_shapes_and_masks(encoder: Encoder) -> None:
    values = values_of(encoder)
    out = encoder(**encoder.processor(values))
    assert out.tokens.shape == (*out.mask.shape, encoder.dim)
    assert out.embedding.shape == (len(values), encoder.dim)
    assert out.mask.dtype == torch.bool
    assert out.mask.any(-1).all()
    assert not out.tokens[~out.mask].any()
    assert out.tokens.isfinite().all()
    assert out.embedding.isfinite().all()


@every_kind
def test_different_values_have_different_embeddings(encoder: Encoder) -> None:
    embedding = encoder(**encoder.processor(values_of(encoder))).embedding
    apart = torch.cdist(embedding, embedding) + torch.eye(len(embedding))
    assert apart.min() > 1e-3


@every_combine
@pytest.mark.parametrize("training", [False, True])
def test_a_sample_does_not_depend_on_its_batch(kind: type[Encoder], combine: str | None, training: bool) -> None:
    """Padding to the longest changes nothing; nor do a batch's statistics, in training either."""
    encoder = kind(dropout=0.0, combine=combine).train(training)
    values = values_of(encoder)
    together = encoder(**encoder.processor(values))
    for row, value in enumerate(values):
        assert_same_row(together, row, encoder(**encoder.processor([value])))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not TinyImage])  # which pads nothing
def test_more_padding_changes_nothing(encoder: Encoder) -> None:
    batch = encoder.processor(values_of(encoder))
    widen = torch.nn.functional.pad  # by seven tokens, or by seven frames of sound; lengths have no time axis
    more = 7 * 80 if "lengths" in batch else 7
    wider = {key: widen(value, (0, more)) if value.dim() > 1 else value for key, value in batch.items()}
    narrow, wide = encoder(**batch), encoder(**wider)
    torch.testing.assert_close(wide.tokens[:, : narrow.tokens.shape[1]], narrow.tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wide.embedding, narrow.embedding, rtol=1e-4, atol=1e-5)
    assert int(wide.mask.sum()) == int(narrow.mask.sum())


@every_combine
@pytest.mark.parametrize("head", ["tokens", "embedding"])
def test_every_parameter_gets_a_gradient(kind: type[Encoder], combine: str | None, head: str) -> None:
    torch.manual_seed(0)
    encoder = kind(combine=combine).train()
    out = getattr(encoder(**encoder.processor(values_of(encoder))), head)
    (out * torch.randn_like(out)).sum().backward()
    dead = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}
    assert dead == ({"pool.projection.weight", "pool.projection.bias"} if head == "tokens" else set())


@every_kind
def test_evaluation_is_deterministic_and_training_has_dropout(encoder: Encoder) -> None:
    batch = encoder.processor(values_of(encoder))
    assert torch.equal(encoder(**batch).embedding, encoder(**batch).embedding)
    encoder.train()
    assert not torch.equal(encoder(**batch).embedding, encoder(**batch).embedding)


@every_kind
def test_processor_can_be_pickled(encoder: Encoder) -> None:
    assert isinstance(encoder.processor, Processor)
    arrived = pickle.loads(pickle.dumps(encoder.processor))
    values = values_of(encoder)
    for key, tensor in encoder.processor(values).items():
        assert torch.equal(arrived(values)[key], tensor)


@every_combine
def test_config_builds_the_same_encoder(kind: type[Encoder], combine: str | None) -> None:
    encoder = kind(dim=32, combine=combine).eval()
    config = json.loads(json.dumps(config_of(encoder)))
    again = import_class(config["class_path"], Encoder).from_files(config["init_args"], "no folder is needed").eval()
    again.load_state_dict(encoder.state_dict())
    assert encoder.files() == {}
    values = values_of(encoder)
    assert torch.equal(again(**again.processor(values)).embedding, encoder(**encoder.processor(values)).embedding)


@every_kind
def test_deep_copy_and_bfloat16(encoder: Encoder) -> None:
    batch = encoder.processor(values_of(encoder))
    exact = encoder(**batch).embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = copy.deepcopy(encoder)(**batch).embedding
    assert rough.isfinite().all()
    assert torch.cosine_similarity(rough.float(), exact, dim=-1).min() > 0.98


@every_kind
def test_bad_arguments_are_refused(kind: type[Encoder]) -> None:
    bad = {"text": ("max_tokens", 0), "image": ("image_size", 4), "audio": ("max_seconds", 0.0)}
    name, value = bad[modality(kind())]
    with pytest.raises(UserError, match=rf"{kind.__name__}\({name}={value}\): expected"):
        kind(**{name: value})
    with pytest.raises(UserError, match=rf"{kind.__name__}\(dim=30\): expected a positive multiple of 8"):
        kind(dim=30)


def test_text_becomes_its_bytes_after_a_begin_token() -> None:
    batch = TinyText().processor(["añ", ""])
    assert batch["ids"].tolist() == [[256, *"añ".encode()], [256, 0, 0, 0]]
    assert batch["mask"].tolist() == [[True] * 4, [True, False, False, False]]


def test_long_text_is_truncated() -> None:
    assert TinyText(max_tokens=4).processor(["abcdef"])["ids"].tolist() == [[256, *b"abc"]]


def seen(encoder: TinyImage, picture: Image.Image) -> torch.Tensor:
    """What the first layer is given."""
    given: list[torch.Tensor] = []
    encoder.layers[0].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    encoder(**encoder.processor([picture]))
    return given[0]


def test_the_processor_returns_bytes() -> None:
    assert TinyImage().processor([picture((40, 30))])["pixels"].dtype == torch.uint8


def test_pixels_are_the_picture_scaled() -> None:
    grey = Image.linear_gradient("L")
    pixels = seen(TinyImage(image_size=256, channels=1), grey)
    assert pixels.shape == (1, 1, 256, 256)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert pixels.mean() == pytest.approx(0, abs=1e-4)


def test_colours_are_preserved() -> None:
    red = Image.new("RGB", (9, 9), "red")
    pixels = seen(TinyImage(channels=3), red)
    assert pixels.amin((0, 2, 3)).tolist() == pixels.amax((0, 2, 3)).tolist() == [1, -1, -1]
    with pytest.raises(UserError, match=r"TinyImage\(channels=2\): expected 1 \(grey\) or 3 \(RGB\)"):
        TinyImage(channels=2)


def test_a_token_depends_on_its_patch() -> None:
    """Position (y, x) of the feature map depends on the pixels around (4 y, 4 x); a token is the mean of four."""
    torch.manual_seed(0)
    encoder = TinyImage(image_size=64, channels=1).eval()
    maps: list[torch.Tensor] = []
    encoder.layers[0][0].register_forward_hook(lambda module, args, out: maps.append(out.detach()))
    black = torch.zeros((1, 1, 64, 64), dtype=torch.uint8)
    marked = black.clone()
    marked[..., :4, :4] = 255
    before, after = encoder(black).tokens, encoder(marked).tokens
    changed = (maps[0] != maps[1]).any(1)[0]
    assert changed[:4, :4].any()
    assert not changed[4:, 4:].any()
    assert after.shape == (1, 8 * 8, 64)
    changed = (before != after).any(-1)[0].unflatten(0, (8, 8))
    assert changed[0, 0]  # row by row: the opposite corner is the last


def test_a_token_is_the_mean_of_four_positions() -> None:
    encoder = TinyImage(image_size=24, channels=1).eval()  # 6 x 6 positions
    grids: list[torch.Tensor] = []
    encoder.layers[-1].register_forward_hook(lambda module, args, out: grids.append(out.detach()))
    tokens = encoder(torch.randint(256, (2, 1, 24, 24), dtype=torch.uint8)).tokens
    for row in range(2):
        for position in range(9):
            y, x = 2 * (position // 3), 2 * (position % 3)
            expected = grids[0][row, :, y : y + 2, x : x + 2].flatten(1).mean(1)
            torch.testing.assert_close(tokens[row, position], expected)


def heard(encoder: TinyAudio, clips: list[Waveform]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first layer is given: spectrograms and mask."""
    return encoder.spectrogram(**encoder.processor(clips))


def test_log_mel_equals_torchaudio() -> None:
    """Each clip alone, normalised by its own loudness and cut into complete windows, computed by torchaudio alone."""
    clips = [sound(0.5), sound(0.731), sound(0.032)]
    spectrograms, masks = heard(TinyAudio(rate=8000, n_mels=24), clips)
    transform = MelSpectrogram(8000, n_fft=256, hop_length=80, n_mels=24, center=False)
    noise = transform.mel_scale(torch.hann_window(256).square().sum().expand(129, 1))  # what white noise has
    for clip, mels, mask in zip(clips, spectrograms, masks, strict=True):
        samples = clip.samples / clip.samples.pow(2).mean().sqrt()
        complete = 1 + (len(samples) - 256) // 80
        wanted = (transform(samples) / noise + 1e-5).log().T
        assert complete == len(wanted)
        assert complete <= int(mask.sum()) <= complete + 1  # one more if the last window is filled with silence
        torch.testing.assert_close(mels[:complete], wanted, rtol=1e-4, atol=1e-4)


def test_log_mel_of_white_noise_is_around_zero() -> None:
    """In every band, so that a network starts from figures of the size that its initialisation expects."""
    mels, mask = heard(TinyAudio(n_mels=64), [sound(4.0)])
    assert mels[mask].exp().mean(0).log().abs().max() < 0.3
    assert mels[mask].std() < 2


def test_loudness_does_not_matter() -> None:
    clip = sound(0.4)
    loud, soft = (heard(TinyAudio(), [Waveform(clip.samples * gain, 8000)])[0] for gain in (5.0, 0.02))
    torch.testing.assert_close(loud, soft, rtol=1e-4, atol=1e-4)


def test_centred_bands_do_not_depend_on_the_microphone() -> None:
    """A filter that stays the same throughout the clip changes the spectrogram, and the centred one hardly at all."""
    clip = sound(2.0)
    spectrum = torch.fft.rfft(clip.samples)
    spectrum *= torch.linspace(1, 3, len(spectrum))
    filtered = Waveform(torch.fft.irfft(spectrum), 8000)
    apart = {}
    for centered in (False, True):
        plain, changed = (heard(TinyAudio(centered=centered), [value])[0] for value in (clip, filtered))
        apart[centered] = float((plain - changed).abs().mean())
    assert apart[False] > 0.2
    assert apart[True] < 0.1 * apart[False]


def test_centred_bands_have_zero_mean_over_real_frames() -> None:
    mels, mask = heard(TinyAudio(centered=True), [sound(0.5), sound(0.9)])
    sums = mels.sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-3)
    assert not mels[~mask].any()


def test_sounds_are_resampled() -> None:
    """The same tone at two rates has its peak in the same band."""
    tones = [Waveform(torch.sin(2 * torch.pi * 1000 * torch.arange(rate) / rate), rate) for rate in (8000, 44_100)]
    mels, mask = heard(TinyAudio(rate=8000), tones)
    loudest = mels.mean(1).argmax(-1)
    assert loudest[0] == loudest[1]
    assert abs(int(mask[0].sum()) - int(mask[1].sum())) <= 1


def test_long_clips_are_cropped_to_the_centre_or_at_random() -> None:
    silence, noise = torch.zeros(8000), sound(1.0).samples
    long = Waveform(torch.cat([silence, noise, silence]), 8000)
    processor = TinyAudio(max_seconds=1.0).processor
    torch.testing.assert_close(processor([long])["samples"], processor([Waveform(noise, 8000)])["samples"])
    torch.manual_seed(0)
    crops = [processor([long], training=True)["samples"] for _ in range(4)]
    assert all(crop.shape == crops[0].shape for crop in crops)
    assert not torch.equal(crops[0], crops[1])
    short = processor([Waveform(noise, 8000)], training=True)["samples"]
    assert torch.equal(short, processor([Waveform(noise, 8000)])["samples"])


def test_the_spectrogram_is_computed_in_single_precision() -> None:
    """Its window and its bands span six orders of magnitude."""
    encoder = TinyAudio()
    clips = encoder.processor([sound(0.5)])
    exact, _ = encoder.spectrogram(**clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = encoder.spectrogram(**clips)
    assert torch.equal(mixed, exact)
    assert encoder.bfloat16()(**clips).embedding.dtype == torch.bfloat16


def test_with_coordinates_the_embedding_depends_on_the_position() -> None:
    """The same square above and below: features of convolutions that are averaged over the image hardly differ."""
    apart = {}
    for coordinates in (False, True):
        torch.manual_seed(0)
        encoder = TinyImage(image_size=64, coordinates=coordinates).eval()
        above = Image.new("RGB", (64, 64))
        above.paste("white", (24, 12, 40, 28))
        below = above.transpose(Image.Transpose.ROTATE_180).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        embeddings = encoder(**encoder.processor([above, below])).embedding.detach()
        apart[coordinates] = float((embeddings[0] - embeddings[1]).norm() / embeddings.norm(dim=-1).mean())
    assert apart[True] > 5 * apart[False]
