"""Self-contained HTML pages: rendering of templates, and pictures and sounds as data URLs."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from fusion_pl.types import Waveform

CLIP_RATE = 16_000  # Hz; sounds of a higher rate are reduced
THUMBNAIL = 160  # pixels
MAX_CLIP_SECONDS = 5.0
MAX_TEXT = 300  # characters


@dataclass(frozen=True)
class Preview:
    """Content of an opened value as an HTML element: a picture or a sound as data URL, or a text."""

    caption: str
    image: str = ""
    sound: str = ""
    text: str = ""


def preview(value: Any, caption: str) -> Preview:
    """Return a small picture, the first seconds of a sound, or the beginning of a text."""
    if isinstance(value, Image.Image):
        image = value.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return Preview(caption, image=image_url(image))
    if isinstance(value, Waveform):
        return Preview(caption, sound=sound_url(value, MAX_CLIP_SECONDS))
    return Preview(caption, text=value[:MAX_TEXT] if isinstance(value, str) else f"{type(value).__name__}")


def render_page(template: Path, **values: Any) -> str:
    """Render a template of an HTML page; values are escaped, and undefined names are errors."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template.name).render(**values)


def image_url(image: Image.Image) -> str:
    """Return an image as data URL, in PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_url("image/png", buffer.getvalue())


def sound_url(clip: Waveform, max_seconds: float) -> str:
    """Return the beginning of a clip as data URL, as 16-bit WAV of at most 16 kHz or a little more."""
    samples = clip.samples.numpy()[: round(max_seconds * clip.rate)]
    step = max(1, math.floor(clip.rate / CLIP_RATE))
    samples = samples[: len(samples) // step * step].reshape(-1, step).mean(axis=1)  # a rough low-pass filter
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), clip.rate // step, format="WAV", subtype="PCM_16")
    return _data_url("audio/wav", buffer.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"
