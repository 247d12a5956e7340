"""Small files that would take gigabytes or minutes."""

from __future__ import annotations

import base64
import io
import pickle
import re
import struct
import zipfile

import torch

from fusion_pl.training.stage_metrics import proper_subsets

from ..commands import run_command
from .hostile import TOKENIZER, changed, file, first, part, setting, weight

MORE = 2**30  # bytes of address space that hostile files may take in all, besides the libraries


def with_pickle(path, original, content, method=zipfile.ZIP_STORED):
    """Write an archive like that of torch.save, with another pickle."""
    with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for member in source.infolist():
            name = member.filename
            archive.writestr(name, content if name.endswith("data.pkl") else source.read(name))


def calling(name, *arguments):
    """Return a pickle of a call, as torch writes it."""
    file = io.BytesIO()
    pickler = pickle._Pickler(file, protocol=2)
    file.write(b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n")
    pickler.save(arguments)
    return file.getvalue() + b"R."


def doubling(times):
    """Return a pickle of about 100 bytes whose content doubles ``times`` times."""
    step = b"c_codecs\nencode\n"
    inner = b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R"
    for _ in range(times):
        inner = step + inner + b"X\x03\x00\x00\x00hex\x86R"
    return b"\x80\x02" + inner + b"."


def replacing(content, times):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def template(content):
    content["post_processor"]["special_tokens"]["[CLS]"].update(ids=[0] * 10**4, tokens=["[CLS]"] * 10**4)


CHARSMAP = base64.b64encode(struct.pack("<I", 2**32 - 4) + b"\0" * 4).decode()
# Small files that once took gigabytes or minutes, or ended the process.
LARGE = {
    "10^9 layers in a head": (part("fusion", num_layers=10**9), "a number beyond"),
    "10^6 layers in a head": (part("fusion", num_layers=10**6), "a larger model"),
    "a wide head": (part("fusion", dim=20_000), "a larger model"),
    "30,000 classes": (lambda c: c["fusion_pl"].update(classes=[str(i) for i in range(30_000)]), "a larger model"),
    "a wide encoder": (setting("text", "config.json", hidden_size=50_000), "a larger model"),
    "10^9 layers in an encoder": (setting("text", "config.json", num_hidden_layers=10**9), "num_hidden_layers is"),
    "10^6 layers in an encoder": (setting("text", "config.json", num_hidden_layers=10**6), "a larger model"),
    "a huge vocabulary": (setting("text", "config.json", vocab_size=10**7), "a larger model"),
    "a large picture": (setting("image", "config.json", image_size=30_000), "a larger model"),
    "huge pictures": (setting("image", "preprocessor_config.json", size={"height": 10**6, "width": 10**6}), "size is"),
    "long clips": (
        setting("audio", "preprocessor_config.json", chunk_length=10**6),
        "the longest clip or its spectrogram is larger",
    ),
    "a fine spectrogram": (setting("audio", "preprocessor_config.json", n_fft=60_000), "is inconsistent"),
    "a slow spectrogram": (setting("audio", "preprocessor_config.json", hop_length=1), "is inconsistent"),
    "a normalizer": (setting(*TOKENIZER, normalizer=replacing("a" * 1000, 1)), "lengthens a text"),
    "many normalizers": (setting(*TOKENIZER, normalizer=replacing("aaaaaaa", 20)), "lengthens a text"),
    "a table of 4 GB": (
        setting(*TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": CHARSMAP}),
        "table is truncated",
    ),
    "a template": (file(*TOKENIZER, template), "adds more than"),
    "a stretched weight": (
        lambda c: weight(first(c), lambda w: torch.zeros(1).expand(10**6, 10**6))(c),
        "has no data",
    ),
}
PICKLES = {
    "a bytearray": calling("__builtin__ bytearray", 10**10),
    "a tensor": calling("torch FloatTensor", 10**10),
    "a storage": calling("torch.storage UntypedStorage", 10**10),
    "a doubling": doubling(36),
    "code": calling("posix system", "touch ran"),
}

LIMITED = """
import pathlib, resource, sys
from fusion_pl.predict import Predictor
from fusion_pl.training.stage_metrics import proper_subsets
from fusion_pl.types import UserError
import transformers, fusion_pl.encoders, torch._dynamo
Predictor.from_checkpoint(sys.argv[2], device="cpu")
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
for path in sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_CPU, (int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 20, -1))
    try:
        Predictor.from_checkpoint(path, device="cpu").predict({"text": "a cat sat on a mat", "audio": None})
        print("accepted", flush=True)
    except UserError as error:
        print(str(error).replace(path, ""), flush=True)
"""


def test_small_files_take_little_memory_and_time(originals, full, tmp_path):
    """In one process with limited memory, and 20 seconds per file."""
    expected = []
    for name, (change, match) in LARGE.items():
        torch.save(changed(full, change), tmp_path / str(len(expected)))
        expected.append((name, match))
    for name, content in PICKLES.items():
        with_pickle(tmp_path / str(len(expected)), originals / "small", content)
        expected.append((name, "asks to run|in a form that torch.save does not"))
    with_pickle(tmp_path / str(len(expected)), originals / "small", bytes(2**28), zipfile.ZIP_DEFLATED)
    expected.append(("a deflated pickle", "it is compressed"))
    done = run_command(MORE, originals / "m", *range(len(expected)), code=LIMITED, folder=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected), (expected[len(lines)], done.stderr[-2000:])
    for line, (name, match) in zip(lines, expected, strict=True):
        assert re.search(match, line), (name, line)
    assert not (tmp_path / "ran").exists()
    assert sum((tmp_path / str(n)).stat().st_size for n in range(len(expected))) < len(expected) * 2**22


def test_many_inputs_are_fast():
    """40 inputs have 10^12 subsets."""
    assert len(proper_subsets([str(number) for number in range(40)])) == 80
