"""What is found in single values, through the processors of the package and of a user."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fusion_pl.data.rows import InputColumn
from fusion_pl.data_check import values
from fusion_pl.data_check.findings import Kind
from fusion_pl.data_check.values import content_bytes, inspect_cell
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.processors import Processor
from fusion_pl.types import Waveform

PROCESSORS = {
    "text": TinyText(max_tokens=8).processor,
    "image": TinyImage().processor,
    "audio": TinyAudio(max_seconds=0.5).processor,
}
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def inspect(name, cell):
    return inspect_cell(InputColumn(name, name, PROCESSORS[name], []), cell if name == "text" else str(cell))


def kinds(inspection):
    return [flaw.kind for flaw in (inspection.error, *inspection.warnings) if flaw]


def tone(seconds=0.4, rate=8000):
    return 0.3 * np.sin(2 * np.pi * 300 * np.arange(int(seconds * rate)) / rate)


def test_intact_values_have_no_flaws(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", tone(), 8000)
    for name, cell in (("text", "words"), ("image", tmp_path / "a.png"), ("audio", tmp_path / "a.wav")):
        inspection = inspect(name, cell)
        assert kinds(inspection) == []
        assert inspection.content
        assert bool(inspection.grey) == (name == "image")


@pytest.mark.parametrize(
    ("name", "cell", "length", "limit", "unit"),
    [("text", "äbc", 5, 8, "tokens"), ("audio", "a.wav", 0.7, 0.5, "seconds"), ("image", "a.png", None, None, None)],
)
def test_lengths_are_those_of_the_whole_value(tmp_path, name, cell, length, limit, unit):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", tone(0.7), 8000)
    found = inspect(name, cell if name == "text" else tmp_path / cell).length
    assert (found is None) == (length is None)
    if found:
        assert found == pytest.approx((length, limit, unit))


def test_equal_content_in_other_files_is_equal(tmp_path):
    for suffix in ("png", "bmp", "tiff"):
        Image.fromarray(NOISE).save(tmp_path / f"a.{suffix}")
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / f"a.{suffix}", (2**15 * tone()).astype(np.int16), 8000)
    images = {inspect("image", tmp_path / f"a.{suffix}").content for suffix in ("png", "bmp", "tiff")}
    sounds = {inspect("audio", tmp_path / f"a.{suffix}").content for suffix in ("wav", "flac")}
    texts = {inspect("text", text).content for text in ("One  Two", " one two", "ＯＮＥ two\n")}
    assert (len(images), len(sounds), len(texts)) == (1, 1, 1)
    assert len(images | sounds | texts | {inspect("text", "onetwo").content}) == 4
    assert content_bytes(Waveform(torch.ones(3), 8000)) != content_bytes(Waveform(torch.ones(3), 8001))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.zeros((9, 9), np.uint8), [Kind.CONSTANT]),
        (np.full((9, 9, 3), (10, 200, 30), np.uint8), [Kind.CONSTANT]),
        (NOISE[:5, :20], [Kind.UNUSUAL]),
        (np.tile(NOISE, (1, 30, 1)), [Kind.UNUSUAL]),
    ],
)
def test_images_of_one_colour_or_of_an_unusual_size(tmp_path, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert kinds(inspect("image", tmp_path / "a.png")) == expected


def test_a_large_image_is_unusual_and_a_decompression_bomb_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "MAX_PIXELS", 64 * 64 - 1)
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    assert kinds(inspect("image", tmp_path / "a.png")) == [Kind.UNUSUAL]
    for side, words in ((10_000, "10000 × 10000 pixels"), (20_000, "400000000 pixels")):
        Image.new("1", (side, side)).save(tmp_path / "bomb.png")
        assert (tmp_path / "bomb.png").stat().st_size < 100_000
        inspection = inspect("image", tmp_path / "bomb.png")
        assert kinds(inspection) == [Kind.ABSURD]
        assert words in inspection.error.text


@pytest.mark.parametrize("turn", [None, Image.Transpose.ROTATE_180])
@pytest.mark.parametrize(("grey", "expected"), [((128,) * 3, [Kind.PARTLY_GREY]), ((90,) * 3, [])])
def test_one_grey_side_of_a_jpeg_is_that_of_a_cut_file(tmp_path, turn, grey, expected):
    image = Image.fromarray(NOISE)
    image.paste(grey, (0, 40, 64, 64))
    image = image.transpose(turn) if turn is not None else image
    image.save(tmp_path / "a.jpg", quality=95)
    assert kinds(inspect("image", tmp_path / "a.jpg")) == expected
    image.save(tmp_path / "a.png")  # decoders fill in nothing
    assert kinds(inspect("image", tmp_path / "a.png")) == []


def test_a_grey_frame_is_no_fault(tmp_path):
    image = Image.new("RGB", (96, 96), (128, 128, 128))
    image.paste(Image.fromarray(NOISE), (16, 16))
    image.save(tmp_path / "a.jpg", quality=95)
    assert kinds(inspect("image", tmp_path / "a.jpg")) == []


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (np.full(4000, 0.2), 8000, [Kind.SILENT]),  # an offset cannot be heard
        (tone(0.02), 8000, [Kind.UNUSUAL]),
        (tone(0.4, 2000), 2000, [Kind.UNUSUAL]),
        (tone(), 500, [Kind.ABSURD]),
        (np.zeros(0), 8000, [Kind.UNREADABLE]),
    ],
)
def test_sounds_that_are_silent_or_unusual(tmp_path, samples, rate, expected):
    soundfile.write(tmp_path / "a.wav", samples, rate)
    assert kinds(inspect("audio", tmp_path / "a.wav")) == expected


def test_pictures_of_phones_and_long_sounds_have_the_right_ending(tmp_path):
    """A JPEG with a second picture, and a WAV file whose size takes 64 bits."""
    image = Image.fromarray(NOISE)
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image.resize((32, 32))])
    soundfile.write(tmp_path / "a.wav", tone(), 8000, format="RF64")
    assert kinds(inspect("image", tmp_path / "a.jpg")) == kinds(inspect("audio", tmp_path / "a.wav")) == []
    for name, wrong in (("image", "png"), ("audio", "flac")):
        right = {"image": "jpg", "audio": "wav"}[name]
        (tmp_path / f"a.{right}").rename(tmp_path / f"a.{wrong}")
        assert kinds(inspect(name, tmp_path / f"a.{wrong}")) == [Kind.WRONG_ENDING]
    image.paste((128,) * 3, (0, 40, 64, 64))
    image.save(tmp_path / "a.jpg", format="MPO", quality=95, save_all=True, append_images=[image.resize((32, 32))])
    assert kinds(inspect("image", tmp_path / "a.jpg")) == [Kind.PARTLY_GREY]


def test_of_a_very_long_recording_only_what_the_encoder_reads_is_opened(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(3), 8000)
    monkeypatch.setattr(values, "MAX_WHOLE_SAMPLES", 20_000)
    monkeypatch.setattr(type(PROCESSORS["audio"]), "open_whole", None)
    inspection = inspect("audio", tmp_path / "a.wav")
    assert kinds(inspection) == [Kind.UNUSUAL]
    assert "24000 audio samples" in inspection.warnings[0].text


@pytest.mark.parametrize("name", ["image", "audio"])
def test_a_pipe_does_not_block_the_check(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    assert kinds(inspect(name, tmp_path / "pipe")) == [Kind.UNREADABLE]


def test_the_content_of_a_file_is_inspected_like_the_file(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    Image.fromarray(NOISE).save(buffer, "PNG")
    column = InputColumn("image", "image", PROCESSORS["image"], [])
    assert inspect_cell(column, buffer.getvalue()) == inspect("image", tmp_path / "a.png")
    assert kinds(inspect_cell(column, b"")) == [Kind.EMPTY_FILE]
    assert "the image of 100 bytes cannot be read" in inspect_cell(column, buffer.getvalue()[:100]).error.text


class Node:
    """Node of a graph, with an edge to itself."""

    def __init__(self, numbers):
        self.numbers, self.neighbours = numbers, [self]


class Arrays(Processor):
    reads_files = True

    def __init__(self, convert):
        self.convert = convert
        self.opened = []  # at different addresses, which a pickle of a tensor contains

    def open(self, value, training=False):
        self.opened.append(self.convert(np.load(value)))
        return self.opened[-1]

    def placeholder(self):
        return np.zeros(2)

    def __call__(self, values, training=False):
        return {"vectors": torch.tensor(np.stack(values))}


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        torch.from_numpy,
        lambda array: {"faces": [torch.from_numpy(array), array.tolist()], "of": "".join(map(str, array))},
        lambda array: Node(array.tolist()),
    ],
)
def test_the_values_of_other_processors_are_opened_and_compared(tmp_path, convert):
    column = InputColumn("array", "array", Arrays(convert), [])
    for number, array in enumerate((np.ones(99), np.ones(99), np.zeros(99))):
        np.save(tmp_path / f"{number}.npy", array)
    (tmp_path / "3.npy").write_bytes(b"no array")
    one, two, other, wrong = (inspect_cell(column, str(tmp_path / f"{number}.npy")) for number in range(4))
    assert one == two != other
    assert kinds(one) == []
    assert kinds(wrong) == [Kind.UNREADABLE]
