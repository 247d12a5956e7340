"""Send two hours of requests to ``fusion-pl serve`` in minutes, and look for growth.

    python -m benchmarks.serve_soak --requests 14400

14,400 requests are two per second for two hours. They are a mixture of all: samples in JSON and multipart, damaged
ones, explanations, metrics, drift, files of the page, and connections that the client closes too early. After each
tenth, when all are answered, it prints the resident memory, the open files and the threads of all processes of the
server, added up. The first tenth is the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

from benchmarks.fuzz_serve import FORM, JSON, encode_json, encode_parts, make_case, make_sample, write_checkpoint
from benchmarks.measure import print_table
from benchmarks.serve import processes, start_server
from fusion_pl.serve.pages import FOLDER

SHARES = {  # of the kinds of requests, in percent
    **{"json": 45, "multipart": 20, "damaged": 12, "explain": 2, "explain with evidence": 1},
    **{"metrics": 4, "drift": 3, "page": 4, "info": 2, "wrong path": 1, "closed too early": 6},
}
PATHS = {
    "metrics": ["/metrics"],
    "drift": ["/drift"],
    "page": ["/", "/examples", *(f"/{path.name}" for path in FOLDER.iterdir() if path.suffix != ".html")],
    "info": ["/info", "/openapi.json", "/health", "/ready"],
    "wrong path": ["/predict", "/none", "/info/"],
}
OWN_CONNECTION = ("damaged", "closed too early")  # the server closes the connection after some of them
STEPS = 10


class Size(NamedTuple):
    """What the processes of a server take.

    Attributes:
        mib: resident memory; pages that processes share count once for each of them.
        files: open files, connections included.
        threads: threads.
    """

    mib: float
    files: int
    threads: int


def measure(session: int) -> Size:
    """Return what the processes of a session take, added up."""
    folders = processes(session)
    status = [
        dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        for folder in folders
    ]
    mib = sum(int(one["VmRSS"].split()[0]) for one in status) / 1024
    files = sum(len(list((folder / "fd").iterdir())) for folder in folders)
    return Size(mib, files, sum(int(one["Threads"]) for one in status))


def make_large_files() -> dict[str, bytes]:
    """Return a photo of 640 pixels and a sound of three seconds."""
    rng, photo, voice = np.random.default_rng(0), io.BytesIO(), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (480, 640, 3), np.uint8)).save(photo, "JPEG")
    soundfile.write(voice, 0.3 * rng.standard_normal(48_000), 16_000, format="WAV")
    return {"photo": photo.getvalue(), "voice": voice.getvalue()}


LARGE_FILES = make_large_files()


def make_request(number: int) -> tuple[str, bytes]:
    """Return the kind and the bytes of the request of a number."""
    rng = random.Random(number)
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if kind in PATHS:
        return kind, f"GET {rng.choice(PATHS[kind])} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    if kind == "damaged":
        case = make_case(1, number)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in case.headers)
        return kind, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + head + b"\r\n" + case.body
    sample = make_sample(rng) or {"title": ""}
    if "title" in sample:
        sample["title"] = " ".join(["word"] * rng.randint(0, 60))
    if rng.random() < 0.1:
        sample |= LARGE_FILES
    path = "/explain" if kind.startswith("explain") else "/predict"
    is_multipart = kind == "multipart" or path == "/explain"
    content_type, body = (FORM, encode_parts(sample)) if is_multipart else (JSON, encode_json(sample, rng))
    query = "?evidence=true" if kind.endswith("evidence") else ""
    head = f"POST {path}{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    return kind, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def read_status(reader: asyncio.StreamReader) -> int:
    """Read an answer, and return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].split(None, 1)
    await (reader.readexactly(int(length[0])) if length else reader.read())
    return int(head.split(None, 2)[1])


async def send_alone(port: int, kind: str, request: bytes, rng: random.Random) -> str:
    """Send a request on a new connection; return the status, or when the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if kind == "damaged":
            writer.write(request)
            return str(await read_status(reader))
        whole = rng.random() < 0.5
        writer.write(request if whole else request[: rng.randrange(len(request))])
        await writer.drain()
        await asyncio.sleep(rng.choice([0, 0.01]))
        return "before the answer" if whole else "in the request"
    except ConnectionResetError:  # a server that does not read a wrong request to its end
        return "closed by the server"
    finally:
        writer.close()


async def run_client(port: int, numbers: Iterator[int], counts: Counter[tuple[str, str]]) -> None:
    """Send requests, each after the answer to the one before it, until there are no more numbers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in numbers:
        kind, request = make_request(number)
        if kind in OWN_CONNECTION:
            result = await send_alone(port, kind, request, random.Random(f"alone {number}"))
        else:
            writer.write(request)
            result = str(await read_status(reader))
        counts[kind, result] += 1
    writer.close()
    await writer.wait_closed()


async def send_all(port: int, numbers: range, clients: int, counts: Counter[tuple[str, str]]) -> None:
    """Let a number of clients share requests."""
    shared = iter(numbers)
    await asyncio.gather(*(run_client(port, shared, counts) for _ in range(clients)))
    await asyncio.sleep(1)  # until the server has noticed the closed connections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=14_400)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=8766)
    arguments = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder, "best.ckpt"))
        command = ["-m", "fusion_pl", "serve", "--ckpt_path", str(Path(folder, "best.ckpt")), "--device", "cpu"]
        command += ["--port", str(arguments.port), "--workers", str(arguments.workers), "--page", "--reference"]
        with start_server(command, arguments.port, 1) as pid:
            start = time.monotonic()
            for step in range(STEPS):
                first, end = (arguments.requests * part // STEPS for part in (step, step + 1))
                asyncio.run(send_all(arguments.port, range(first, end), arguments.clients, counts))
                size = measure(pid)
                rows.append([f"{end:,}", f"{time.monotonic() - start:.0f}", f"{size.mib:.0f}", *map(str, size[1:])])
                print(", ".join(rows[-1]), flush=True)
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind}: {result}: {count}")
    print_table("fusion-pl serve", ["requests", "seconds", "MiB", "open files", "threads"], rows)
    return int(any(result.startswith("5") for _, result in counts))


if __name__ == "__main__":
    raise SystemExit(main())
