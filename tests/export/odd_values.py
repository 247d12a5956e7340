"""Values of each kind of input that are unusual, missing or wrong."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import soundfile
from PIL import Image

RNG = np.random.default_rng(0)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def array_file(save=np.save, *arrays, **named):
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def sound_file(samples, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, **{"format": "WAV"} | options)
    return file.getvalue()


def odd_texts():
    nan = float("nan")
    numbers = [nan, np.float32(nan), np.float32(2.5), np.bool_(True), Fraction(1, 2), 1j, np.complex64(1)]
    return ["", " ", "nan", "\ud800", None, *numbers, b"a", ["a"], io.BytesIO(b"a"), io.StringIO("a")]


def odd_images():
    pixels = RNG.integers(0, 255, (30, 47, 4), dtype=np.uint8)
    colour, grey = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
    modes = [colour.convert(mode) for mode in ("1", "P", "CMYK", "YCbCr", "HSV", "LAB")]
    modes += [Image.fromarray(pixels).convert(mode) for mode in ("LA", "PA", "RGBA", "RGBa")]
    numbers = [np.float32(pixels[..., 0]) / scale for scale in (255, 100, -255)]
    numbers += [np.where(numbers[0] > 0.5, np.nan, 0).astype(np.float32), np.int32(pixels[..., 0]) * 500 - 9]
    arrays = [pixels, pixels[..., :3], pixels[..., :2], pixels[..., :1], pixels[..., 0], pixels[:0], pixels[None]]
    arrays += [pixels / 255, np.float16(pixels / 255), pixels / 200, pixels > 9, np.uint16(pixels), pixels.tolist()]
    exif = Image.Exif()
    exif[0x0112] = 6
    oriented = encoded(colour, "JPEG", exif=exif)
    progressive = encoded(colour, "JPEG", progressive=True)
    files = [oriented, encoded(colour, "PNG")[:-900], encoded(colour, "JPEG")[:-400], b"", b"no image", progressive]
    files += [encoded(colour, "GIF", save_all=True, append_images=[grey]), encoded(Image.new("L", (99, 99)), "PNG")]
    files += [encoded(Image.new("L", (600, 600)), "PNG"), progressive + b"\xff\xda" * 2**20, encoded(colour, "EPS")]
    others = [Image.open(io.BytesIO(oriented)), io.BytesIO(oriented), io.StringIO("a"), 3, "none.png", "", "."]
    others += [Image.new("RGB", (0, 5)), Image.new("LA", (5, 0)), memoryview(b"a")]
    return [*modes, *(Image.fromarray(values) for values in numbers), *numbers, *arrays, *files, *others]


def odd_sounds():
    clip = RNG.normal(0, 0.1, (9_000, 2)).astype(np.float32)
    deep = np.round(clip * 2**15).astype(np.int16)
    samples = [clip, clip.T, clip.T.astype(np.float64), np.float16(clip.T), deep, deep.T, deep[:, 0], np.int32(deep.T)]
    samples += [np.uint8(deep.T), np.int64(deep.T), clip.T > 0, clip.T * 1e39, clip.T[None], clip[:0].T, clip[0, 0]]
    samples += [clip[:, 0].tolist(), np.where(clip.T > 0.3, np.nan, 0)]
    rates = [0, -8000, 500, 400_000, 8000.0, 8000.5, float("nan"), "8000", None, np.int64(8000), float("inf")]
    ends, middle = np.float64(clip), np.float64(clip)  # 4,000 samples in the middle are used
    ends[0] = middle[4500] = np.nan
    files = [sound_file(values, subtype="FLOAT") for values in (clip, ends, middle, clip[:0])]
    files += [sound_file(clip), sound_file(clip)[:-5000], b"", b"no sound"]
    mp3 = sound_file(clip, format="MP3")
    tag = b"ID3\x04\0\0\0\0\x07\x6c" + bytes(1004)  # longer than the part of the file in which the header is
    streamed = bytearray(sound_file(clip, format="FLAC"))
    streamed[22:26] = bytes(4)  # its length is not known
    files += [bytes(streamed), bytes(streamed[:-4000]), mp3, mp3[:-2000], tag + mp3, tag + mp3[:-1500]]
    files += [sound_file(clip, format="FLAC"), sound_file(clip, format="FLAC")[:-5000]]
    files += [
        sound_file(clip, format="OGG"),
        sound_file(clip, format="OGG")[:-2000],
        sound_file(clip, format="AIFF")[:-9],
    ]
    others = [io.BytesIO(files[0]), (clip.T, 8000, 1), [clip.T, 8000], clip.T, 3, "none.wav", memoryview(b"a")]
    return [*((values, 8000) for values in samples), *((clip.T, rate) for rate in rates), *files, *others]


def odd_vectors():
    nan, ones = float("nan"), np.ones((6, 3))
    lists = [
        [],
        [[]],
        [1, 2],
        [1, None, 3],
        [nan, None, nan],
        [1, "2", "3.5"],
        [1, "nan", 3],
        [1, "a", 3],
        [1, True, 3],
    ]
    lists += [[[1, 2, 3], [4, nan, 6]], [[1, 2, 3], [None] * 3], [[1, 2, 3], [4, 5]], [[[1, 2, 3]]], [1, np.inf, 3]]
    lists += [
        [1, 1e39, 3],
        (1, 2, 3),
        [ones[0], ones[1] * nan],
        [1, np.float32(nan), 3],
        [1, None, "nan"],
        [1, 2, 3, 4, 5, 6],
        [10**400, 2, 3],
    ]
    arrays = [ones[0], np.float16(ones), ones[:0], ones[None], ones > 0, ones * 1j, ones.astype(str), ones * 1e39]
    arrays += [np.array([1, nan, 3]), ones.astype(object), np.uint8(ones), np.array(1.0)]
    late = np.where(np.arange(6)[:, None] > 4, nan, ones)  # after the vectors that are used
    files = [array_file(np.save, values) for values in (*arrays[:9], late)]
    files += [
        array_file(np.savez, a=ones),
        array_file(np.savez, a=ones, b=ones),
        array_file(np.savez, key=ones, b=ones),
    ]
    files += [array_file(np.savez), array_file(np.savez, a=late), files[0][:-4], b"", b"no array"]
    others = [
        None,
        nan,
        np.float32(nan),
        3,
        3.0,
        np.float32(3),
        {"a": 1},
        "none.npy",
        io.BytesIO(files[0]),
        memoryview(b"a"),
    ]
    return [*lists, *arrays, late, *files, *others]
