"""Compare ``fusion-pl serve`` with a bare batched forward of the same model on the same threads, in one run.

    python -m benchmarks.serve --rounds 3

Prints the median latency of one client, the samples per second with 32 clients (by the clock, and per second of
processor time, which other load on the machine does not change), and latencies and status codes if 200 clients
overload the server. Server, clients and the bare forward take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import print_table
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor

TEXT = "a caption of a picture, as long as captions usually are: some words about what it shows, and where. " * 2
OVERLOAD_CLIENTS = 200


class Load(NamedTuple):
    """What clients measured.

    Attributes:
        latencies: seconds of each request that was answered 200.
        statuses: number of answers by status code.
        seconds: time of all requests, by the clock.
        cpu: seconds of processor time of the server.
    """

    latencies: list[float]
    statuses: Counter[int]
    seconds: float
    cpu: float

    @property
    def p50(self) -> float:
        """Median latency in milliseconds."""
        return 1000 * statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        """99th percentile of the latency in milliseconds."""
        return 1000 * float(np.quantile(self.latencies, 0.99))


def write_checkpoint(path: Path, dim: int) -> None:
    """Write a model with random weights, whose text encoder has four layers of a width."""
    from lightning import Trainer

    torch.manual_seed(0)
    encoders = {"text": TinyText(dim=dim, num_layers=4), "image": TinyImage(dim=dim // 2, image_size=64)}
    trainer = Trainer(max_epochs=0, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(FusionClassifier(encoders, Concat, ["cat", "dog", "bird"]))
    trainer.save_checkpoint(path, weights_only=True)


def make_sample() -> dict:
    """Return a text of 200 characters and a PNG of 64 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return {"text": TEXT, "image": file.getvalue()}


def make_request(sample: dict, path: str = "/predict") -> bytes:
    """Return the bytes of a request with one sample in JSON."""
    body = json.dumps(sample | {"image": base64.b64encode(sample["image"]).decode()}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


async def _client(port: int, request: bytes, count: int, latencies: list[float], statuses: Counter[int]) -> None:
    """Send requests on one connection, each after the answer to the one before it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0])
        await reader.readexactly(length)
        status = int(head.split(None, 2)[1])
        statuses[status] += 1
        if status == 200:
            latencies.append(time.perf_counter() - start)
        else:
            await asyncio.sleep(0.05)
    writer.close()


def send_load(port: int, pid: int, request: bytes, clients: int, count: int) -> Load:
    """Let a number of clients send ``count`` requests each."""

    async def run() -> None:
        await asyncio.gather(*(_client(port, request, count, latencies, statuses) for _ in range(clients)))

    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    start, cpu = time.perf_counter(), cpu_seconds(pid)
    asyncio.run(run())
    return Load(latencies, statuses, time.perf_counter() - start, cpu_seconds(pid) - cpu)


def cpu_seconds(session: int) -> float:
    """Return the processor time of the running processes of a session."""
    fields = processes(session).values()
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def processes(session: int) -> dict[Path, list[str]]:
    """Return the folder in ``/proc`` of each process of a session, and the fields of its state after its name."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found[folder] = fields
    return found


@contextmanager
def start_server(command: Sequence[str], port: int, threads: int) -> Iterator[int]:
    """Start a server in a session of its own, wait until it answers, and yield its process id."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        [sys.executable, *command], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 180
            while subprocess.run(
                ["curl", "-sf", "-o", os.devnull, f"http://127.0.0.1:{port}/health"], check=False
            ).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{' '.join(command)} did not start")
                time.sleep(0.5)
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)


class Bare:
    """Forward passes of the same model in this process, on batches that are ready."""

    def __init__(self, checkpoint: Path, sample: dict) -> None:
        self.predictor, self.sample = Predictor.from_checkpoint(checkpoint, "cpu"), sample
        self.collate = Collate(self.predictor.processors)

    def seconds(self, size: int, count: int, decode: bool) -> tuple[list[float], float]:
        """Return the seconds of ``count`` batches of a size, with or without decoding, and the processor time."""
        samples = [self.sample] * size
        opened = [self.predictor.open_sample("0", sample) for sample in samples]
        batch, seconds, cpu = self.collate(opened), [], time.process_time()
        for _ in range(count):
            start = time.perf_counter()
            if decode:
                self.predictor.predict(samples)
            else:
                list(self.predictor.predict_batches([batch]))
            seconds.append(time.perf_counter() - start)
        return seconds, time.process_time() - cpu


def measure(bare: Bare, port: int, pid: int, request: bytes, count: int) -> dict[str, float]:
    """Return the figures of one round."""
    alone, _ = bare.seconds(1, count, decode=False)
    one = send_load(port, pid, request, 1, count)
    batches, bare_cpu = bare.seconds(32, max(4, count // 16), decode=False)
    decoded, decoded_cpu = bare.seconds(32, max(4, count // 16), decode=True)
    many = send_load(port, pid, request, 32, max(4, count // 16))
    samples = 32 * len(batches)
    return {
        "bare p50 ms": 1000 * statistics.median(alone),
        "p50 ms": one.p50,
        "bare samples/s": samples / sum(batches),
        "bare with decoding, samples/s": samples / sum(decoded),
        "samples/s": sum(many.statuses.values()) / many.seconds,
        "bare samples/CPU s": samples / bare_cpu,
        "bare with decoding, samples/CPU s": samples / decoded_cpu,
        "samples/CPU s": sum(many.statuses.values()) / many.cpu,
        "p99 ms of 32 clients": many.p99,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--count", type=int, default=200, help="requests of one client; a sixteenth of it per client of 32"
    )
    parser.add_argument("--dim", type=int, default=256, help="width of the model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--queue", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, sample = Path(folder, "best.ckpt"), make_sample()
        write_checkpoint(checkpoint, arguments.dim)
        bare, request, port = Bare(checkpoint, sample), make_request(sample), arguments.port
        command = ["-m", "fusion_pl", "serve", "--ckpt_path", str(checkpoint), "--device", "cpu"]
        command += ["--port", str(port), "--queue", str(arguments.queue)]
        with start_server(command, port, arguments.threads) as pid:
            rounds = [measure(bare, port, pid, request, arguments.count) for _ in range(arguments.rounds)]
            overload = send_load(port, pid, request, OVERLOAD_CLIENTS, 10)
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    rows = [[name, f"{value:.4g}", " ".join(f"{one[name]:.4g}" for one in rounds)] for name, value in medians.items()]
    rows += [
        ["p50 of one client: at most 1.2 times + 3 ms", f"{1.2 * medians['bare p50 ms'] + 3:.4g}", ""],
        ["throughput, by the clock", f"{medians['samples/s'] / medians['bare samples/s']:.2f}", ""],
        ["throughput, by processor time", f"{medians['samples/CPU s'] / medians['bare samples/CPU s']:.2f}", ""],
        [f"{OVERLOAD_CLIENTS} clients: p50 and p99 ms of 200", f"{overload.p50:.4g} {overload.p99:.4g}", ""],
        ["time of a full queue, ms", f"{1000 * arguments.queue / medians['samples/s']:.4g}", ""],
        ["answers by status code", str(dict(overload.statuses)), ""],
    ]
    print_table("fusion-pl serve", ["figure", "median", "rounds"], rows)


if __name__ == "__main__":
    main()
