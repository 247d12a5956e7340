"""Damage checkpoints, media files and tables at random, load each, and count the outcomes.

    python -m benchmarks.fuzz --cases 100000 --seed 0 --minutes 60

Each case is a function of seed and number. The worker process has a memory and a time limit per case; a worker that
crashes or hangs is counted and replaced. Outcomes in FAULTS are printed, and their files saved with ``--keep``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.fuzz_check import check_damaged_table, check_file, cut
from benchmarks.fuzz_originals import IMAGE_SUFFIXES, IMAGES, SOUNDS, TABLES, write_originals
from fusion_pl.data import ManifestData
from fusion_pl.messages import escape_unprintable
from fusion_pl.predict import Predictor
from fusion_pl.processors.audio import read_audio
from fusion_pl.processors.image import read_image
from fusion_pl.types import UserError

TIMEOUT, MEMORY = 30.0, 2**30  # seconds per case; bytes of address space in addition to the libraries
FAULTS = ("traceback", "not one sentence", "out of memory", "crash", "hang", "different numbers")
ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 10**6, 10**9, 10**18, 1e308, math.nan, "", "a" * 1000, "..", "\0", "\x1b[2J", [],
    {}, [[]], b"", "fusion_pl.fusion.Mean", "os.system", [1] * 100, {"a": {}}, 0.5, "\ud800",
]  # fmt: skip


def damage(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, truncate, delete, insert or repeat bytes, once or a few times."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 16, 256])
        change = rng.randrange(7)
        if change == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at : at + size] = rng.randbytes(len(data[at : at + size]))
        elif change == 2:
            data[at : at + size] = rng.choice([b"\xff", b"\0", b"\x7f", b"9", b"["]) * len(data[at : at + size])
        elif change == 3:
            del data[at:]
        elif change == 4:
            del data[at : at + size]
        elif change == 5:
            data[at:at] = rng.randbytes(size)
        else:
            data[at:at] = data[rng.randrange(len(data) + 1) :][:size]
    return bytes(data)


def rewrite(content: bytes, rng: random.Random) -> bytes:
    """Replace values in the configuration or the embedded files of a checkpoint, and save it with valid checksums."""
    checkpoint = copy.deepcopy(torch.load(io.BytesIO(content), weights_only=True))
    files = checkpoint["fusion_pl"]["files"]["text"]
    for _ in range(rng.choice([1, 1, 2, 3])):
        if files and rng.random() < 0.7:
            name = rng.choice(sorted(files))
            parsed = json.loads(files[name]) if name in files else {}
            _replace(parsed, rng)
            with contextlib.suppress(TypeError):  # bytes are not JSON
                files[name] = json.dumps(parsed).encode("utf-8", "surrogatepass")
        else:
            _replace(checkpoint["fusion_pl"], rng)
            files = {}
    out = io.BytesIO()
    torch.save(checkpoint, out)
    return out.getvalue()


def _replace(value: Any, rng: random.Random) -> None:
    """Replace, remove or add one entry somewhere in nested dictionaries and lists."""
    while isinstance(value, (dict, list)) and value:
        key = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
        inner = value[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            value = inner
            continue
        change = rng.random()
        if change < 0.75:
            value[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif change < 0.9:
            del value[key]
        elif isinstance(value, dict):
            value[rng.choice(["auto_map", "backbone", "evil", "..", "\0", "a" * 300])] = copy.deepcopy(
                rng.choice(ODD_VALUES)
            )
        return


def load_file(path: Path, kind: str) -> Any:
    """Load a file as users do, and return a value that can be compared."""
    if kind in {"checkpoint", "config"}:
        prediction = Predictor.from_checkpoint(path, device="cpu").predict({"text": "the cat sat on a mat"})
        return prediction.error or tuple(prediction.probabilities.values())
    if kind == "table":
        data = ManifestData(str(path), inputs={"text": "text"}, num_workers=0, val_fraction=0.2, test_fraction=0.2)
        return tuple(data.classes)
    if kind == "checked table":
        return check_damaged_table(path)
    if kind in {"checked file", "cut file"}:
        return check_file(path, is_image=path.suffix[1:] in IMAGE_SUFFIXES)
    value = read_image(path) if kind == "picture" else read_audio(path)
    return value.tobytes() if kind == "picture" else value.samples.numpy().tobytes()


KINDS: dict[str, tuple[list[str], Callable[[bytes, random.Random], bytes]]] = {
    "checkpoint": (["small.ckpt", "small.ckpt", "bert.ckpt"], damage),
    "config": (["small.ckpt", "bert.ckpt", "bert.ckpt"], rewrite),
    "picture": (IMAGES, damage),
    "sound": (SOUNDS, damage),
    "table": (TABLES, damage),
    "checked file": ([*IMAGES, *SOUNDS], damage),
    "cut file": ([*IMAGES, *SOUNDS], cut),
    "checked table": (TABLES, damage),
}
EXACT = ("checkpoint", "cut file")  # kinds whose damage must be noticed, unless it changes nothing


def make_case(folder: Path, seed: int, number: int) -> tuple[str, str, bytes]:
    """Return kind, original file name and content of a case."""
    rng = random.Random(f"{seed}/{number}")
    kind = list(KINDS)[number % len(KINDS)]
    names, change = KINDS[kind]
    name = rng.choice(names)
    return kind, name, change((folder / name).read_bytes(), rng)


def outcome(path: Path, kind: str, expected: Any) -> tuple[str, str]:
    """Load a damaged file; return the outcome and the message."""
    try:
        value = load_file(path, kind)
    except UserError as error:
        message = str(error)
        if "allocate" in message or "MemoryError" in message:
            return "out of memory", message
        is_sentence = "table" in kind or "\n" not in message  # problems of a table have a line each
        valid = is_sentence and message and "weights_only" not in message
        return ("sentence" if valid else "not one sentence"), message
    except MemoryError as error:
        return "out of memory", repr(error)
    except Exception as error:
        return "traceback", repr(error)
    if value == expected:
        return "same", ""
    return ("different numbers" if kind in EXACT else "other contents"), ""


def serve(pipe: Any, folder: Path, seed: int, limit: bool) -> None:
    """Receive numbers of cases and send outcomes, until the pipe closes."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings of libraries
    expected = {
        (kind, name): load_file(folder / name, kind) for kind, (names, _) in KINDS.items() for name in set(names)
    }
    if limit:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    pipe.send("ready")
    path = folder / f"case-{os.getpid()}"
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        kind, name, content = make_case(folder, seed, number)
        case = path.with_suffix(Path(name).suffix)
        case.write_bytes(content)
        pipe.send(outcome(case, kind, expected[kind, name]))


class Worker:
    """A process that is replaced when it crashes or hangs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.arguments = folder, seed
        self._start()

    def _start(self) -> None:
        self.pipe, child_pipe = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process
        self.process = process(target=serve, args=(child_pipe, *self.arguments, sys.platform == "linux"), daemon=True)
        self.process.start()
        child_pipe.close()
        assert self.pipe.recv() == "ready"

    def run(self, number: int) -> tuple[str, str]:
        """Return the outcome and the message of a case."""
        self.pipe.send(number)
        try:
            if self.pipe.poll(TIMEOUT):
                return self.pipe.recv()
            result = "hang", f"more than {TIMEOUT:.0f} s"
        except EOFError:
            result = "crash", ""
        self.process.kill()
        self.process.join()
        if result[0] == "crash":
            result = "crash", f"exit code {self.process.exitcode}"
        self._start()
        return result


def fuzz(cases: range, seed: int, keep: Path | None = None) -> Counter[tuple[str, str]]:
    """Run cases in one worker; return the number of cases by kind and outcome."""
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_originals(folder)
        worker = Worker(folder, seed)
        for number in cases:
            result, message = worker.run(number)
            kind = list(KINDS)[number % len(KINDS)]
            counts[kind, result] += 1
            if result in FAULTS:
                print(
                    escape_unprintable(f"case {number}, {kind}: {result}: {message[:300]}").replace("\n", " "),
                    flush=True,
                )
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}").write_bytes(make_case(folder, seed, number)[2])
        worker.pipe.close()
        worker.process.join()
    return counts


def main() -> int:
    """Print the counts; return 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the files of faults")
    args = parser.parse_args()
    start, counts, number = time.monotonic(), Counter[tuple[str, str]](), args.first
    while number < args.first + args.cases and time.monotonic() - start < 60 * args.minutes:
        end = min(number + 2000, args.first + args.cases)
        counts += fuzz(range(number, end), args.seed, args.keep)
        number = end
    for (kind, result), count in sorted(counts.items()):
        print(f"{kind:14}{result:20}{count:8}")
    faults = sum(count for (_, result), count in counts.items() if result in FAULTS)
    print(f"{counts.total()} cases in {time.monotonic() - start:.0f} s, {faults} of them faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
