"""Damaged images and sounds, and files that would take much time or memory."""

from __future__ import annotations

import contextlib
import os
import textwrap

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fusion_pl.encoders import TinyAudio
from fusion_pl.processors.audio import read_audio
from fusion_pl.processors.image import read_image
from fusion_pl.types import UserError
from tests.commands import run_command
from tests.data.conftest import Grey, Length, Level

PROCESSORS = {"text": Length(), "image": Grey(), "audio": Level()}

RATE = 8000
KINDS = {
    "wav": {},
    "flac": {},
    "ogg": {},
    "mp3": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "aiff": {},
    "au": {},
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Five seconds of tone and noise in every format."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    samples = 0.3 * np.sin(np.arange(5 * RATE) * 0.3) + 0.05 * rng.normal(size=5 * RATE)
    for suffix, options in KINDS.items():
        soundfile.write(folder / f"a.{suffix}", samples, RATE, **options)
    return folder


@pytest.mark.parametrize("suffix", KINDS)
def test_truncated_sound_is_refused(sounds, tmp_path, suffix):
    content = (sounds / f"a.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for share in np.linspace(0.02, 0.999, 24):
        path.write_bytes(content[: int(len(content) * share)])
        for crop in (None, lambda samples, rate: (samples // 4, samples // 2)):
            with pytest.raises(UserError, match=rf"cut\.{suffix} "):
                read_audio(path, crop)


@pytest.mark.parametrize("suffix", KINDS)
def test_only_the_part_that_is_used_is_read(sounds, suffix):
    path = sounds / f"a.{suffix}"
    processor = TinyAudio(rate=3000, max_seconds=1.1).processor
    whole = read_audio(path)
    middle = processor.open(path)
    assert len(middle.samples) < len(whole.samples) / 4
    assert torch.allclose(processor([middle])["samples"], processor([whole])["samples"], atol=1e-6)
    torch.manual_seed(3)
    drawn = processor.open(path, training=True)
    torch.manual_seed(3)
    assert torch.allclose(processor([drawn], True)["samples"], processor([whole], True)["samples"], atol=1e-6)


def test_a_stream_of_unknown_length_is_read(sounds, tmp_path):
    """Programs that write to a pipe leave the length open: FLAC 0, WAV the largest size."""
    whole = read_audio(sounds / "a.flac")
    content = bytearray((sounds / "a.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(content)
    assert torch.equal(read_audio(tmp_path / "piped.flac").samples, whole.samples)
    part = read_audio(tmp_path / "piped.flac", lambda samples, rate: (samples // 2, samples // 2 + 7))
    assert torch.equal(part.samples, whole.samples[20_000:20_007])
    content = bytearray((sounds / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    (tmp_path / "piped.wav").write_bytes(content)
    assert torch.equal(read_audio(tmp_path / "piped.wav").samples, read_audio(sounds / "a.wav").samples)


def test_an_mp3_without_a_length_is_counted(tmp_path):
    """libsndfile estimates the length from the first frames, which are silent here, so it is too long."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([np.zeros(80_000), 0.2 * rng.normal(size=80_000), np.zeros(150_000)])
    soundfile.write(tmp_path / "a.mp3", samples, 44_100, bitrate_mode="VARIABLE", compression_level=0.5)
    content = (tmp_path / "a.mp3").read_bytes()
    assert b"Info" in content[:64] or b"Xing" in content[:64]
    (tmp_path / "bare.mp3").write_bytes(content[content.index(content[:2], 4) :])
    bare = read_audio(tmp_path / "bare.mp3")
    assert len(samples) <= len(bare.samples) < len(samples) + 4 * 1152
    part = read_audio(tmp_path / "bare.mp3", lambda samples, rate: (100_000, 100_100))
    assert torch.allclose(part.samples, bare.samples[100_000:100_100], atol=1e-4)


def test_a_wrong_length_in_the_header_is_refused(sounds, tmp_path):
    content = bytearray((sounds / "a.flac").read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4  # 68,719,476,735 samples
    (tmp_path / "lie.flac").write_bytes(content)
    for crop in (None, lambda samples, rate: (samples // 2, samples // 2 + 7)):
        with pytest.raises(UserError, match=r"lie\.flac (is truncated|cannot be read as sound)"):
            read_audio(tmp_path / "lie.flac", crop)


@pytest.mark.parametrize("rate", [1, 999, 384_001, 2_000_000])
def test_a_rate_out_of_range_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(9), rate)
    with pytest.raises(UserError, match=rf"a\.wav has a rate of {rate} Hz, expected 1000 to 384000"):
        read_audio(tmp_path / "a.wav")
    with pytest.raises(UserError, match=rf"a rate of {rate} Hz, expected 1000 to 384000"):
        PROCESSORS["audio"].open((np.zeros(9), rate))


@pytest.mark.parametrize("rate", [44_100, 44_101, 47_999, 8_001, 96_000, 383_999])
def test_a_tone_keeps_its_pitch_at_any_rate(rate):
    """Resampled to 16 kHz, also from rates without a simple ratio; 440 Hz has 880 zero crossings per second."""
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(2 * rate) / rate)
    wave = PROCESSORS["audio"].open((tone, rate))
    found = TinyAudio(rate=16_000, max_seconds=2.0).processor.crop_and_resample(wave, training=False)
    assert abs(len(found) - 32_000) <= 16
    second = found[8_000:24_000]
    assert abs(int((second[1:] * second[:-1] < 0).sum()) - 880) <= 1
    assert second.abs().max() == pytest.approx(1, abs=0.01)


def test_small_files_take_little_memory_and_time(tmp_path):
    """In a process with a limit of 500 MB besides its imports."""
    header = soundfile_header(tmp_path / "long.wav", samples=36_000 * RATE)  # ten hours of 8 bits, all zero: sparse
    os.truncate(tmp_path / "long.wav", header + 36_000 * RATE)
    soundfile.write(tmp_path / "odd.wav", np.zeros(44_101), 44_101)
    Image.new("I;16", (6000, 6000)).save(tmp_path / "deep.png", compress_level=1)
    repeated_scans(tmp_path / "scans.jpg")
    script = f"""
        import resource
        from fusion_pl.processors.audio import read_audio
        from fusion_pl.processors.image import read_image
        from fusion_pl.encoders import TinyAudio
        from fusion_pl.types import UserError

        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 500 * 2**20,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        processor = TinyAudio(rate=16_000, max_seconds=10).processor
        for name in ("long.wav", "odd.wav"):
            sound = processor.open(f"{tmp_path}/{{name}}", training=True)
            print(processor([sound], True)["samples"].shape[1])
        print(read_image("{tmp_path}/deep.png").size)
        try:
            read_image("{tmp_path}/scans.jpg")
        except UserError as error:
            print(error)
    """
    done = run_command(code=textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    long, odd, deep, scans = done.stdout.splitlines()
    assert (int(long), deep) == (160_000, "(6000, 6000)")
    assert abs(int(odd) - 16_000) <= 8
    assert "scans.jpg cannot be read as an image" in scans
    assert "would take too long to decode" in scans


def soundfile_header(path, samples):
    """Write the header of a WAV of 8 bits, and return its length."""
    size = samples.to_bytes(4, "little")
    head = b"WAVEfmt " + (16).to_bytes(4, "little") + (1).to_bytes(2, "little") * 2 + RATE.to_bytes(4, "little") * 2
    head += (1).to_bytes(2, "little") + (8).to_bytes(2, "little") + b"data" + size
    path.write_bytes(b"RIFF" + (samples + len(head)).to_bytes(4, "little") + head)
    return 8 + len(head)


def repeated_scans(path):
    """Write a progressive JPEG with its last scan repeated 400 times."""
    Image.new("L", (3000, 3000)).save(path, progressive=True)
    content = path.read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + 400 * last + content[-2:])


def test_only_listed_formats_are_tried(tmp_path):
    """EPS would start Ghostscript."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image \(expected one of PNG, JPEG"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of tags that a picture can do without
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "avif", "ppm", "jp2"])
def test_a_damaged_image_is_refused_with_one_sentence(tmp_path, suffix):
    """Flipped and removed bytes from a seed; every error of a decoder names the file."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged[: int(rng.integers(1, 1 + len(damaged)))] if rng.random() < 0.5 else damaged)
        with contextlib.suppress(UserError):  # anything else would be a traceback
            assert read_image(path).mode in {"L", "RGB"}


def test_reading_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for kind in ("image", "audio"):
        with pytest.raises(UserError, match=r"a\.png is not a file"):
            PROCESSORS[kind].open(tmp_path / "a.png")


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(UserError, match=r"the text contains '\\ud800', which is not a character"):
        PROCESSORS["text"].open("a\ud800b")
