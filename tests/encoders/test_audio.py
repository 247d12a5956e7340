from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from fusion_pl.encoders import AudioEncoder
from fusion_pl.types import UserError, Waveform
from tests.encoders import contract
from tests.encoders.models import AUDIOS, SAMPLED, save_audio, save_text

TOPS = ("encoder.layer_norm", "layernorm", "layer_norm", "norm")


def sound(seconds: float, rate: int = 16000, seed: int = 0) -> Waveform:
    noise = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)) + 0.05  # an offset, as cheap gear has
    return Waveform(torch.tensor(noise, dtype=torch.float32), rate)


CLIPS = [sound(0.31), sound(0.6, 8000), sound(0.0), sound(0.0005), sound(0.13, 22050)]


@pytest.fixture(scope="module", params=list(AUDIOS))
def named(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_audio(request.param, path)
    return request.param, path


@pytest.fixture(scope="module")
def folder(named):
    return named[1]


@pytest.fixture(scope="module")
def encoder(folder):
    made = AudioEncoder(str(folder))
    made.load_pretrained()
    return made


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory):
    path = tmp_path_factory.mktemp("wav2vec2")
    save_audio("wav2vec2-group", path)
    return path


def test_shapes(encoder):
    contract.check_shapes(encoder, CLIPS)


def test_a_sample_does_not_depend_on_its_batch_and_padding(encoder):
    contract.check_batch_independence(encoder, CLIPS)


@pytest.mark.parametrize("head", ["tokens", "embedding"])
def test_every_parameter_has_a_gradient(encoder, head):
    contract.check_gradients(encoder, CLIPS, head)  # the saved models would drop nine layers of ten


def test_bfloat16(encoder):
    contract.check_bfloat16(encoder, CLIPS)


def test_processor_pickles(encoder):
    contract.check_processor_pickles(encoder, CLIPS)


def test_checkpoint_files(folder, tmp_path):
    contract.check_checkpoint_files(AudioEncoder, folder, CLIPS, tmp_path)


def test_freeze_all(folder):
    contract.check_freeze_all(AudioEncoder, folder, CLIPS)


def test_freeze_bottom(folder):
    contract.check_freeze_blocks(AudioEncoder, folder, CLIPS, TOPS)


def test_invalid_hidden_layers_are_refused(named):
    name, folder = named
    if name == "clap":
        with pytest.raises(UserError, match="hidden_layers: the feature maps of CLAP"):
            AudioEncoder(str(folder), hidden_layers=[0], combine="sum")
        return
    contract.check_hidden_layers_errors(AudioEncoder, folder)


@pytest.mark.parametrize(
    ("named", "combine"),
    contract.families_and_combinations([name for name in AUDIOS if name != "clap"], ["wav2vec2-layer", "ast"]),
    indirect=["named"],
)
def test_combined_hidden_layers(named, combine):
    contract.check_combined_hidden_layers(AudioEncoder, named[1], CLIPS, combine)


def test_tokens_are_those_of_the_saved_model(named, encoder):
    """A clip by itself, through the model and the feature extractor as their documentation says."""
    name, folder = named
    clip = sound(0.4, seed=3)
    extractor = hf.AutoFeatureExtractor.from_pretrained(folder)
    made = extractor(clip.samples.numpy(), sampling_rate=16000, return_tensors="pt")
    model = hf.AutoModel.from_pretrained(folder).eval()
    if name == "clap":
        model, made["is_longer"] = model.audio_model, torch.tensor([[False]])
    model = model.encoder if name == "whisper" else model
    with torch.no_grad():
        expected = model(**made).last_hidden_state
    expected = expected.flatten(2).transpose(1, 2) if name == "clap" else expected
    out = contract.encode(encoder, [clip])
    real = out.mask[0]
    torch.testing.assert_close(out.tokens[0][real], expected[0, : len(real)][real], rtol=1e-3, atol=1e-4)


def test_mask_follows_the_length(named, encoder):
    name, _ = named
    seconds = (0.1, 0.3, 0.6)
    real = contract.encode(encoder, [sound(s) for s in seconds]).mask.sum(-1).tolist()
    if name in SAMPLED:  # windows of 10, 3 and 2 at strides of 5, 2 and 2
        expected = [(((round(s * 16000) - 10) // 5 + 1 - 3) // 2 + 1 - 2) // 2 + 1 for s in seconds]
    elif name == "whisper":  # a token per 20 ms
        expected = [5, 15, 30]
    elif name == "ast":  # 2 class tokens, 2 rows of patches: a patch begins every 10 of the 8, 28 and 58 frames
        expected = [2 + 2 * 1, 2 + 2 * 3, 2 + 2 * 5]
    else:  # 2 rows of 32 tokens a second, filled by repetition: 10 · 0.1 s, 3 · 0.3 s, 1 · 0.6 s
        expected = [2 * 32, 2 * 29, 2 * 20]
    assert real == expected


def test_padding_is_masked_whatever_the_settings_say(wav2vec2):
    """The control: the saved model itself changes its mind when a clip is padded; the encoder does not."""
    clip = sound(0.2, seed=5).samples
    model = hf.AutoModel.from_pretrained(wav2vec2).eval()
    mask = (torch.arange(6400) < len(clip)).long()[None]
    with torch.no_grad():
        alone = model(clip[None]).last_hidden_state
        padded = model(torch.nn.functional.pad(clip, (0, 3200))[None], attention_mask=mask).last_hidden_state
    assert (alone - padded[:, : alone.shape[1]]).abs().max() > 1e-2


def test_long_clips_are_cropped(encoder):
    two = sound(2.0, seed=1)
    longest = encoder.processor.features.max_samples
    limited = AudioEncoder(encoder.source, max_seconds=0.25)
    kept = limited.processor._crop_and_pad(two, training=False)
    assert len(kept) == 4000
    torch.testing.assert_close(kept, two.samples[14000:18000])
    if longest is not None:
        assert len(encoder.processor._crop_and_pad(two, training=False)) == longest
        contract.check_shapes(encoder, [two, sound(0.1)])


def test_training_crops_at_random(wav2vec2):
    processor = AudioEncoder(str(wav2vec2), max_seconds=0.25).processor
    clip = Waveform(torch.arange(32000) / 32000, 16000)
    starts = {float(processor._crop_and_pad(clip, training=True)[0]) for _ in range(8)}
    assert len(starts) > 4
    assert len({float(processor._crop_and_pad(clip, training=False)[0]) for _ in range(3)}) == 1


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_any_rate_gives_the_same_pitch(wav2vec2, rate):
    processor = AudioEncoder(str(wav2vec2)).processor
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)
    heard = processor._crop_and_pad(Waveform(tone, rate), training=False)
    assert abs(len(heard) - 16000) <= 1
    peak = torch.fft.rfft(heard).abs().argmax() * 16000 / len(heard)
    assert abs(float(peak) - 440) < 2


def test_an_unsupported_model_is_refused(tmp_path):
    save_text("bert", tmp_path)
    with pytest.raises(UserError, match="is a 'bert' model; AudioEncoder supports wav2vec2"):
        AudioEncoder(str(tmp_path))


def test_max_seconds_of_zero_is_refused(wav2vec2):
    with pytest.raises(UserError, match=r"max_seconds is 0\.0, expected"):
        AudioEncoder(str(wav2vec2), max_seconds=0.0)
