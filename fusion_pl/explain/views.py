"""Values of the inputs with the effects of their parts in colour, as elements of an HTML page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from fusion_pl.explain.explanation import PartEffects
from fusion_pl.html import image_url, sound_url
from fusion_pl.processors.base import Span
from fusion_pl.types import Waveform

RAISES, LOWERS = (217, 95, 2), (43, 123, 186)  # orange and blue, which colour-blind readers can tell apart
MAX_ALPHA = 0.75
MAX_EDGE, MIN_EDGE = 320, 160  # pixels of an image
MAX_SECONDS = 30.0  # of a sound
WIDTH, HEIGHT, POINTS = 600, 120, 300  # of the drawing of a sound


@dataclass(frozen=True)
class View:
    """One input on the page.

    Attributes:
        note: sentence about the effects; empty if there is nothing to say.
        pieces: text and colour of each piece; the colour is empty if the piece has no effect.
        images: data URLs of the image, and of the image with the effects in colour.
        sound: data URL of the sound.
        outline: points of the waveform in an SVG of ``WIDTH`` x ``HEIGHT``.
        bands: left edge, width, colour and effect of each window in the SVG.
        size: width and height of the image on the page, or of the SVG.
    """

    note: str = ""
    pieces: list[tuple[str, str, str]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    sound: str = ""
    outline: str = ""
    bands: list[tuple[float, float, str, str]] = field(default_factory=list)
    size: tuple[int, int] = (WIDTH, HEIGHT)


def make_view(value: Any, parts: PartEffects, scale: float) -> View:
    """Return the view of an opened value.

    Args:
        value: opened value.
        parts: effects of its parts.
        scale: effect with the strongest colour, above 0.
    """
    if isinstance(value, str):
        return View(parts.note, _color_text(value, parts.spans, scale))
    if isinstance(value, Image.Image):
        return _image_view(value, parts, scale)
    if isinstance(value, Waveform):
        return _sound_view(value, parts, scale)
    pieces = [
        (f"{name}: {effect:+.2f}", css_color(effect, scale), "")
        for name, effect in ((_number_name(value, span), effect) for span, effect in parts.spans.items())
    ]
    return View(parts.note, pieces)


def css_color(effect: float, scale: float) -> str:
    """Return the colour of an effect, more opaque the larger it is; empty for less than 2 % of the scale.

    Example:
        >>> css_color(0.5, scale=1.0), css_color(-1.0, scale=1.0)
        ('rgba(217, 95, 2, 0.38)', 'rgba(43, 123, 186, 0.75)')
    """
    strength = min(1.0, abs(effect) / scale)
    if strength < 0.02:
        return ""
    red, green, blue = RAISES if effect > 0 else LOWERS
    return f"rgba({red}, {green}, {blue}, {MAX_ALPHA * strength:.2f})"


def _color_text(text: str, spans: dict[Span, float], scale: float) -> list[tuple[str, str, str]]:
    """Return all characters in order, in pieces; those of a span without the space after it are in its colour."""
    pieces, end = [], 0
    for ((start, stop),), effect in sorted(spans.items()):
        word = text[int(start) : int(stop)].rstrip()
        pieces += [(text[end : int(start)], "", ""), (word, css_color(effect, scale), f"{effect:+.2f}")]
        end = int(start) + len(word)
    return [piece for piece in [*pieces, (text[end:], "", "")] if piece[0]]


def _image_view(image: Image.Image, parts: PartEffects, scale: float) -> View:
    """Return the image, and the image in grey under the effects of its cells."""
    factor = max(min(MAX_EDGE / max(image.size), 1.0), MIN_EDGE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    shown = image.convert("RGB").resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)
    if not parts.spans:
        return View(parts.note, images=[image_url(shown)], size=size)
    heat = np.zeros((image.height, image.width), np.float32)
    for ((top, bottom), (left, right)), effect in parts.spans.items():
        heat[int(top) : int(bottom), int(left) : int(right)] = effect
    effects = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.NEAREST))[..., None]
    alpha = MAX_ALPHA * np.clip(np.abs(effects) / scale, 0, 1)
    colors = np.where(effects > 0, RAISES, LOWERS)
    grey = np.asarray(shown.convert("L"))[..., None]
    mixed = Image.fromarray(np.rint((1 - alpha) * grey + alpha * colors).astype(np.uint8))
    return View(parts.note, images=[image_url(shown), image_url(mixed)], size=size)


def _sound_view(clip: Waveform, parts: PartEffects, scale: float) -> View:
    """Return the waveform over the effects of its windows."""
    samples = clip.samples.numpy()
    seconds = len(samples) / clip.rate
    edges = np.linspace(0, len(samples), min(POINTS, len(samples)) + 1).astype(int)[:-1]
    peaks = np.maximum.reduceat(np.abs(samples), edges)
    heights = HEIGHT / 2 * peaks / max(float(peaks.max()), 1e-9)
    x = np.linspace(0, WIDTH, len(peaks))
    upper = [f"{a:.1f},{HEIGHT / 2 - b:.1f}" for a, b in zip(x, heights, strict=True)]
    lower = [f"{a:.1f},{HEIGHT / 2 + b:.1f}" for a, b in zip(x[::-1], heights[::-1], strict=True)]
    bands = [
        (start / seconds * WIDTH, (end - start) / seconds * WIDTH, css_color(effect, scale), f"{effect:+.2f}")
        for ((start, end),), effect in parts.spans.items()
    ]
    cut = f"The first {MAX_SECONDS:.0f} seconds can be played." if seconds > MAX_SECONDS else ""
    note = " ".join(filter(None, (parts.note, cut)))
    return View(note, sound=sound_url(clip, MAX_SECONDS), outline=" ".join(upper + lower), bands=bands)


def _number_name(value: Any, span: Span) -> str:
    """Return which number or vector a span is, counted from 1, and the value of a number."""
    ((start, end),) = span
    if end - start > 1:
        return f"{int(start) + 1} to {int(end)}"
    return f"{int(start) + 1}" if value.dim() > 1 else f"{int(start) + 1} = {float(value[int(start)]):.4g}"
