from __future__ import annotations

import warnings

import numpy as np
import PIL
import pytest
import soundfile
import torch
from PIL import Image

from fusion_pl.processors.audio import read_audio
from fusion_pl.processors.image import read_image
from fusion_pl.types import MissingFileError, UserError, Waveform
from tests.data.conftest import Grey, Length, Level

PROCESSORS = {"text": Length(), "image": Grey(), "audio": Level()}


def pixel(image, at=(0, 0)):
    return image.convert("RGB").getpixel(at)


def saved(folder, image, name="a picture ü.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


# ------------------------------------------------------------------------------------------------------------ pictures
@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("1", 1, "a.png", (255, 255, 255)),
        ("L", 77, "a.png", (77, 77, 77)),
        ("LA", (77, 255), "a.png", (77, 77, 77)),
        ("LA", (77, 0), "a.png", (255, 255, 255)),
        ("RGB", (10, 20, 30), "a.png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), "a.png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "a.webp", (255, 255, 255)),
        ("I;16", 257 * 100, "a.png", (100, 100, 100)),
        ("I;16", 65535, "a.tif", (255, 255, 255)),
        ("I", 257 * 100, "a.pgm", (100, 100, 100)),
        ("F", 0.4, "a.tif", (102, 102, 102)),
        ("CMYK", (0, 255, 255, 0), "a.tif", (255, 0, 0)),
        pytest.param(
            "YCbCr",
            (76, 85, 255),
            "a.tif",
            (254, 0, 0),
            marks=pytest.mark.skipif(
                int(PIL.__version__.split(".")[0]) < 13, reason="this Pillow cannot read the file it writes"
            ),
        ),
        ("RGB", (10, 20, 30), "a.bmp", (10, 20, 30)),
    ],
)
def test_every_mode_becomes_eight_bit(tmp_path, mode, colour, name, expected):
    image = read_image(saved(tmp_path, Image.new(mode, (5, 3), colour), name))
    assert image.size == (5, 3)
    assert image.mode in ("L", "RGB")
    assert np.abs(np.subtract(pixel(image), expected)).max() <= 1


def test_an_image_in_memory_with_a_mode_that_files_do_not_have():
    image = PROCESSORS["image"].open(Image.new("YCbCr", (5, 3), (76, 85, 255)))
    assert (image.mode, pixel(image)) == ("RGB", (254, 0, 0))


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    image = read_image(saved(tmp_path, Image.fromarray(ramp)))
    assert np.array_equal(np.asarray(image).ravel(), np.arange(256))


def test_transparent_pixels_are_composited_on_white(tmp_path):
    image = read_image(saved(tmp_path, Image.new("RGBA", (2, 2), (0, 0, 0, 51))))
    assert pixel(image) == (204, 204, 204)


def test_conversion_in_strips_is_exact(tmp_path):
    """Large images are converted in strips."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (600, 5, 4), dtype=np.uint8), "RGBA")
    at_once = Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image).convert("RGB")
    assert read_image(saved(tmp_path, image)).tobytes() == at_once.tobytes()
    deep = rng.integers(0, 65536, (600, 5), dtype=np.uint16)
    read = np.asarray(read_image(saved(tmp_path, Image.fromarray(deep), "deep.png")))
    assert (read == np.rint(deep.astype(float) * 255 / 65535)).all()


def test_a_palette_and_its_transparent_colour(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    opaque = read_image(saved(tmp_path, palette))
    assert [pixel(opaque), pixel(opaque, (1, 0))] == [(10, 20, 30), (200, 100, 50)]
    clear = read_image(saved(tmp_path, palette, "clear.png", transparency=0))
    assert [pixel(clear), pixel(clear, (1, 0))] == [(255, 255, 255), (200, 100, 50)]


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    image.paste((0, 0, 255), (2, 0, 4, 2))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    upright = read_image(saved(tmp_path, image, exif=exif))
    assert upright.size == (2, 4)
    assert [pixel(upright, (0, 0)), pixel(upright, (0, 3))] == [(255, 0, 0), (0, 0, 255)]
    assert PROCESSORS["image"].open(Image.open(tmp_path / "a picture ü.png")).size == (2, 4)


def test_an_animation_gives_its_first_frame_and_closes_its_file(tmp_path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(path)
        assert pixel(image) == (255, 0, 0)
        assert image.resize((6, 6)).size == (6, 6)
        del image
    assert not caught  # an open file would say ResourceWarning
    path.unlink()


def test_a_damaged_image_is_refused_by_name(tmp_path):
    noise = Image.effect_noise((64, 64), 90)
    for name in ("cut.png", "cut.jpg"):
        path = saved(tmp_path, noise, name)
        path.write_bytes(path.read_bytes()[:600])
        with pytest.raises(UserError, match=f"{name} cannot be read as an image"):
            read_image(path)
    for name, content in {"empty.png": b"", "text.png": b"not a picture", "half.png": b"\x89PNG\r\n\x1a\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} cannot be read as an image \(.+\): replace it or"):
            read_image(tmp_path / name)
    with pytest.raises(MissingFileError, match=r"none\.png does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="is a folder: give the path of a file"):
        read_image(tmp_path)


def test_grey_values_out_of_range_are_refused(tmp_path):
    with pytest.raises(UserError, match="are in 70000 to 70000, expected 0 to 65535"):
        read_image(saved(tmp_path, Image.new("I", (2, 2), 70_000), "a.tif"))
    with pytest.raises(UserError, match=r"are in 3\.0 to 3\.0, expected 0 to 1"):
        read_image(saved(tmp_path, Image.new("F", (2, 2), 3.0), "b.tif"))


@pytest.mark.parametrize("limit", [150, 50])  # Pillow warns above its limit and raises above twice the limit
@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_a_too_large_image_is_refused(tmp_path, monkeypatch, limit, recwarn):
    path = saved(tmp_path, Image.new("L", (20, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"a picture ü\.png cannot be read as an image \(.*(exceed|more than Pillow)"):
        read_image(path)


# --------------------------------------------------------------------------------------------------------------- sound
def tone(rate, channels=1, seconds=0.5):
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2)])
def test_every_format_is_read_as_mono(tmp_path, suffix, rate, channels):
    path = tmp_path / f"a tone ü.{suffix}"
    soundfile.write(path, tone(rate, channels), rate)
    wave = read_audio(path)
    assert wave.rate == rate
    assert wave.samples.dtype == torch.float32
    assert wave.samples.dim() == 1
    spectrum = np.abs(np.fft.rfft(wave.samples.numpy()))
    assert spectrum.argmax() * rate / len(wave.samples) == pytest.approx(440, abs=5)
    assert wave.samples.abs().max() == pytest.approx(0.5, abs=0.1)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 8000)
    assert torch.allclose(read_audio(tmp_path / "a.wav").samples, torch.full((100,), 0.125), atol=1e-4)


def test_unusable_sound_is_refused_by_name(tmp_path):
    for name, content in {"empty.wav": b"", "text.wav": b"not sound", "a.raw": b"\0\0", "a.mp3": b"nothing"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} cannot be read as sound \(.+\): expected wav, flac, ogg or mp3"):
            read_audio(tmp_path / name)
    with pytest.raises(MissingFileError, match=r"none\.wav does not exist"):
        read_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "silent.wav", np.zeros((0, 1)), 8000)
    with pytest.raises(UserError, match=r"silent\.wav has no samples"):
        read_audio(tmp_path / "silent.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan\.wav contains NaN or infinite samples"):
        read_audio(tmp_path / "nan.wav")


# ------------------------------------------------------------------------------------------------------ cells, values
@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_a_placeholder_is_a_value_of_its_kind(kind):
    value = PROCESSORS[kind].placeholder()
    assert type(PROCESSORS[kind].open(value)) is type(value)


ROW = np.array([[0, 51, 255]], dtype=np.uint8)  # H = 1, W = 3
COLOUR = np.stack([ROW, ROW // 2, ROW // 3], axis=-1)


@pytest.mark.parametrize(
    ("value", "mode", "last"),
    [
        (ROW, "L", (255, 255, 255)),
        (ROW[..., None], "L", (255, 255, 255)),
        (ROW / 255, "L", (255, 255, 255)),
        (torch.from_numpy(ROW), "L", (255, 255, 255)),
        (torch.from_numpy(ROW)[None] / 255, "L", (255, 255, 255)),
        (COLOUR, "RGB", (255, 127, 85)),
        ((COLOUR / 255).astype(np.float32), "RGB", (255, 127, 85)),
        (COLOUR[::-1, :, :], "RGB", (255, 127, 85)),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), "RGB", (255, 127, 85)),
        (torch.from_numpy(COLOUR).permute(2, 0, 1).half() / 255, "RGB", (255, 127, 85)),
        (torch.from_numpy(COLOUR).permute(2, 0, 1).bfloat16() / 255, "RGB", (255, 127, 85)),
        (np.concatenate([COLOUR, np.zeros_like(ROW)[..., None]], axis=-1), "RGB", (255, 255, 255)),
        (Image.fromarray(COLOUR).convert("RGBA"), "RGB", (255, 127, 85)),
    ],
)
def test_images_in_memory(value, mode, last):
    image = PROCESSORS["image"].open(value)
    assert image.mode == mode
    assert image.size == (3, 1)
    assert pixel(image, (2, 0)) == last


def test_the_callers_image_is_not_changed():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    assert PROCESSORS["image"].open(image).size == (2, 4)
    assert image.size == (4, 2)


LEFT = np.array([0.5, -0.5, 0.25, 0.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("samples", "mono"),
    [
        (LEFT, LEFT),
        (LEFT[::-1], LEFT[::-1]),
        (torch.from_numpy(LEFT), LEFT),
        (torch.from_numpy(LEFT).double(), LEFT),
        (np.stack([LEFT, LEFT / 2]), LEFT * 0.75),
        (torch.stack([torch.from_numpy(LEFT)] * 2), LEFT),
        ((LEFT * 32768).astype(np.int16), LEFT),
        (torch.from_numpy((LEFT * 32768).astype(np.int16)), LEFT),
        ((LEFT * 2.0**31).astype(np.int32), LEFT),
    ],
)
def test_sound_in_memory(samples, mono):
    wave = PROCESSORS["audio"].open((samples, 8000))
    assert isinstance(wave, Waveform)
    assert wave.rate == 8000
    assert wave.samples.dtype == torch.float32
    assert np.allclose(wave.samples, mono)


def test_paths_in_memory(tmp_path):
    path = saved(tmp_path, Image.new("L", (3, 2), 9))
    assert pixel(PROCESSORS["image"].open(path)) == pixel(PROCESSORS["image"].open(str(path))) == (9, 9, 9)
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)
    assert PROCESSORS["audio"].open(tmp_path / "a.wav").rate == 8000
    assert PROCESSORS["text"].open("a.png") == "a.png"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("text", ["a"], "a text input takes a str or a number, got list"),
        ("text", None, "got NoneType"),
        ("image", 3, "an image input takes a path, bytes, a PIL image, .*got int"),
        ("image", np.zeros((3, 8, 8), dtype=np.uint8), r"got ndarray of shape \(3, 8, 8\) and type uint8"),
        ("image", torch.zeros(8, 8, 3), r"got Tensor of shape \(8, 8, 3\) and type torch.float32"),
        ("image", np.zeros((0, 8)), "an image input takes"),
        ("image", np.zeros((8, 8), dtype=np.int64), "type int64"),
        ("image", torch.full((3, 8, 8), 255.0), r"floats must lie in \[0, 1\], got 255 to 255: divide by 255"),
        ("image", np.full((8, 8), np.nan), r"floats must lie in \[0, 1\], got nan"),
        ("audio", LEFT, r"an audio input takes a path, bytes, a Waveform, or a pair .* got ndarray of shape \(4,\)"),
        ("audio", (LEFT, 8000, 1), "got tuple"),
        ("audio", ([0.5], 8000), "got tuple"),
        ("audio", (LEFT, 0), "the rate of an audio input must be a positive whole number of Hz, got 0"),
        ("audio", (LEFT, "8000"), "got '8000'"),
        ("audio", (np.zeros((4, 2)), 8000), r"got ndarray of shape \(4, 2\) .*: transpose the array"),
        ("audio", (np.zeros((1, 1, 4)), 8000), r"the first value of the pair is ndarray of shape \(1, 1, 4\)"),
        ("audio", (np.zeros(4, dtype=np.uint8), 8000), "type uint8"),
        ("audio", (np.zeros(0), 8000), "the audio input has no samples"),
        ("audio", (np.full(4, np.inf), 8000), "the audio input contains NaN or infinite samples"),
        ("audio", (np.full(4, 1e300), 8000), "the audio input contains NaN or infinite samples"),
    ],
)
def test_other_values_are_refused(kind, value, message):
    with pytest.raises(UserError, match=message):
        PROCESSORS[kind].open(value)


# ------------------------------------------------------------------------------------------- bytes, files, other values
def test_bytes_and_open_files_are_opened_like_paths(tmp_path):
    Image.new("RGB", (3, 2), (9, 8, 7)).save(tmp_path / "a.png")
    tone = np.sin(np.arange(4000) / 5).astype(np.float32)
    for name in ("a.wav", "a.flac", "a.mp3"):
        soundfile.write(tmp_path / name, tone, 8000)
    for name in ("a.png", "a.wav", "a.flac", "a.mp3"):
        path = tmp_path / name
        processor = PROCESSORS["image" if name == "a.png" else "audio"]
        with path.open("rb") as file:
            by_path, by_bytes, by_file = map(processor.open, (path, path.read_bytes(), file))
        if name == "a.png":
            assert by_path == by_bytes == by_file
        else:
            assert torch.equal(by_path.samples, by_bytes.samples)
            assert torch.equal(by_path.samples, by_file.samples)


def test_damaged_bytes_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 8000)
    cut = (tmp_path / "a.wav").read_bytes()[:4000]
    with pytest.raises(UserError, match="the sound of 4000 bytes is truncated"):
        PROCESSORS["audio"].open(cut)
    with pytest.raises(UserError, match="the image of 4000 bytes cannot be read as an image"):
        PROCESSORS["image"].open(cut)
