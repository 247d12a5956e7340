"""Send damaged requests to the application of ``fusion-pl serve``, and look for faults.

    python -m benchmarks.fuzz_serve --cases 10000 --seed 0

Bodies, JSON values, parts, media, headers and the division into chunks are changed. Each case is a function of seed and
number. Faults: an answer that is not documented, an error that is not one sentence, a failure that the server logs, a
case that takes longer than 20 seconds, and memory that grows.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image

from benchmarks.fuzz import damage
from fusion_pl.encoders import FeatureEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.fusion import Weighted
from fusion_pl.module import FusionClassifier
from fusion_pl.serve.app import create_app
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.openapi import ERRORS
from fusion_pl.serve.service import ServeOptions, Service
from fusion_pl.uncertainty.validation_scores import ValidationScores

JSON, FORM = "application/json", "multipart/form-data; boundary=edge"
LIMITS = Limits(megabytes=1.0, samples=8, values=5_000, characters=5_000, megapixels=1.0, seconds=30.0)
MAX_SECONDS, MAX_GROWTH = 20, 64  # of a case; MiB of memory after the first tenth of the cases
STRANGE = (
    *(None, True, 0, -1, 1e308, 10**400, "", " ", "\ud800", "\0", "x" * 6_000, [], {}, [[]], [None], ["a"], {"a": 1}),
    *("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/a.png", "../best.ckpt", "data:,", "data:;base64,", "="),
    *(
        "data:image/png;base64,AAAA",
        "AAAA",
        "data:",
        [1, 2, 3],
        [[1, 2, 3]] * 50,
        [1e39, 0, 0],
        [[[1, 2, 3]]],
        [1] * 400,
    ),
)
TYPES = (
    *("", ";", JSON, FORM, "text/plain", "application/JSON; charset=utf-16", "multipart/form-data", f"{FORM}\0"),
    *("multipart/form-data; boundary=", "multipart/mixed; boundary=edge"),
    f'multipart/form-data; boundary="{"x" * 300}"',
)


class Case(NamedTuple):
    """One request."""

    kind: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Answer(NamedTuple):
    """The answer of the application."""

    status: int
    body: bytes


def make_media() -> dict[str, list[bytes]]:
    """Return images and sounds in several formats."""
    rng = np.random.default_rng(0)
    image, images, sounds = Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8)), [], []
    for name in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        image.save(file := io.BytesIO(), name)
        images.append(file.getvalue())
    for name, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)):
        soundfile.write(file := io.BytesIO(), np.sin(np.arange(4000) / 5) / 2, 8000, format=name, subtype=subtype)
        sounds.append(file.getvalue())
    return {"photo": images, "voice": sounds}


MEDIA = make_media()


def make_sample(rng: random.Random) -> dict[str, Any]:
    """Return a valid sample with some of the inputs, whose files are bytes."""
    values = {"title": "a short text", "photo": rng.choice(MEDIA["photo"]), "voice": rng.choice(MEDIA["voice"])}
    values["sensors"] = [0.5, -1, 2]
    return {name: value for name, value in values.items() if rng.random() < 0.7}


def make_case(seed: int, number: int) -> Case:
    """Return the request of a number."""
    rng = random.Random(f"{seed} {number}")
    kind = ("json bytes", "json values", "media", "parts", "headers", "depth")[number % 6]
    sample = make_sample(rng)
    if kind == "media" and (names := [name for name in MEDIA if name in sample]):
        name = rng.choice(names)
        sample[name] = damage(sample[name], rng)
    content_type, body = (FORM, encode_parts(sample)) if rng.random() < 0.3 else (JSON, encode_json(sample, rng))
    if kind == "json bytes":
        content_type, body = JSON, damage(encode_json(sample, rng), rng)
    elif kind == "json values":
        content_type, body = JSON, encode_json(change_values(sample, rng), rng)
    elif kind == "parts":
        content_type, body = FORM, damage(encode_parts(sample), rng)
    elif kind == "depth":
        content_type, body = JSON, nest(rng).encode()
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    if kind == "headers":
        lengths = (b"-1", b"1e3", b"99999999999999999999999", b"0", "²".encode("latin-1"), b"")
        changes = {"type": rng.choice(TYPES).encode("latin-1"), "length": rng.choice(lengths)}
        change = rng.choice(sorted(changes))
        headers = [(name, changes[change] if name.endswith(change.encode()) else value) for name, value in headers]
        headers += [(b"content-type", damage(b"application/json", rng))] if rng.random() < 0.3 else []
    return Case(kind, headers, body)


def encode_json(sample: dict[str, Any], rng: random.Random) -> bytes:
    """Return a JSON body with one or several samples."""
    values = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in sample.items()
    }
    return json.dumps({"samples": [values] * rng.choice([1, 3, 9])} if rng.random() < 0.5 else values).encode()


def encode_parts(sample: dict[str, Any]) -> bytes:
    """Return a multipart body."""
    body = b""
    for name, value in sample.items():
        file = '; filename="a.bin"' if isinstance(value, bytes) else ""
        body += f'--edge\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += (value if isinstance(value, bytes) else str(value).encode()) + b"\r\n"
    return body + b"--edge--\r\n"


def change_values(sample: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Replace values and names by strange ones."""
    changed = dict(sample)
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(["title", "photo", "voice", "sensors", "samples", "", "pictures"])
        changed[name] = rng.choice(STRANGE)
    return changed


def nest(rng: random.Random) -> str:
    """Return deeply nested or very wide JSON."""
    depth = rng.choice([10, 100, 900, 1100, 4000, 100_000])
    opening, inner, closing = rng.choice([("[", "1", "]"), ('{"title":', "1", "}"), ('{"samples":[', "{}", "]}")])
    text = opening * depth + inner + closing * rng.choice([depth, depth - 1])
    return rng.choice([text, f'{{"sensors": {text}}}', f'{{"title": "a", "sensors": [{"1," * depth}1]}}', "1" * depth])


async def send(app: Any, case: Case, rng: random.Random) -> Answer:
    """Send a request to an application, its body in chunks."""
    chunks = [case.body]
    if rng.random() < 0.3:
        cut = rng.randrange(len(case.body) + 1)
        chunks = [case.body[:cut], b"", case.body[cut:]]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def answer(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/predict"}
    scope |= {"raw_path": b"/predict", "query_string": b"", "root_path": "", "scheme": "http", "headers": case.headers}
    await app(scope, receive, answer)
    return Answer(sent[0]["status"], b"".join(message.get("body", b"") for message in sent))


def find_fault(answer: Answer, fields: list[str]) -> str | None:
    """Return what is wrong with an answer."""
    try:
        content = json.loads(answer.body)
    except ValueError:
        return "the answer is not JSON"
    if answer.status != 200:
        error = content.get("error", "")
        documented = str(answer.status) in ERRORS and list(content) == ["error"]
        return None if documented and error and "\n" not in error and len(error) < 600 else f"{answer.status} {error}"
    predictions = content.get("predictions", [content])
    for one in predictions:
        if list(one) != fields or (one["error"] is None) != (one["label"] is not None) or "\n" in (one["error"] or ""):
            return f"the prediction {one}"
    return None


class Failures(logging.Handler):
    """Collects what the server logs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


async def run_cases(service: Service, numbers: Iterable[int], seed: int) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Send cases; return the numbers of answers by kind and status, and the faults."""
    app, counts, faults, failures = create_app(service), Counter(), [], Failures()
    logger = logging.getLogger("fusion_pl.serve")
    logger.addHandler(failures)
    memory: list[int] = []
    try:
        async with app.router.lifespan_context(app):
            for number in numbers:
                case, start = make_case(seed, number), time.perf_counter()
                answer = await send(app, case, random.Random(number))
                counts[case.kind, answer.status] += 1
                fault = find_fault(answer, service.fields)
                fault = fault or (failures.records.pop() if failures.records else None)
                fault = fault or (
                    f"{seconds:.0f} s" if (seconds := time.perf_counter() - start) > MAX_SECONDS else None
                )
                faults += [f"case {number} ({case.kind}): {fault}"] if fault else []
                if number % 500 == 499:
                    memory.append(resident_mib())
                    print(f"{number + 1} cases, {len(faults)} faults, {memory[-1]} MiB", flush=True)
    finally:
        logger.removeHandler(failures)
    if memory and memory[-1] - memory[len(memory) // 10] > MAX_GROWTH:
        faults.append(f"memory grew from {memory[len(memory) // 10]} to {memory[-1]} MiB")
    return counts, faults


def resident_mib() -> int:
    """Return the memory of this process that is resident."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 // 2**20


def write_checkpoint(path: Path) -> None:
    """Write a small model with an input of each kind, and with scores of 100 validation samples."""
    from lightning.pytorch import Trainer

    torch.manual_seed(0)
    encoders = {"title": TinyText(dim=8), "photo": TinyImage(dim=16, image_size=16), "voice": TinyAudio(dim=8)}
    model = FusionClassifier({**encoders, "sensors": FeatureEncoder(features=3, dim=8)}, Weighted, ["high", "low"])
    scores = torch.linspace(0, 0.5, 100, dtype=torch.float64)
    counts = {"high": 50, "low": 50}, {"title+photo+voice+sensors": 100}
    model.validation_scores = ValidationScores(scores, None, {"probability": scores}, *counts)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder, "best.ckpt"))
        service = Service(ServeOptions(str(Path(folder, "best.ckpt")), "cpu", limits=LIMITS))
        numbers = range(arguments.first, arguments.first + arguments.cases)
        counts, faults = asyncio.run(run_cases(service, numbers, arguments.seed))
    for (kind, status), count in sorted(counts.items()):
        print(f"{kind}: {status}: {count}")
    print("\n".join(faults) or "no fault")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
