"""Checkpoints that are damaged or hostile: refused in a sentence, with nothing run and little memory taken."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import pickle
import pty
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.cli import run
from fusion_pl.encoders import AudioEncoder, ImageEncoder, TextEncoder, TinyText
from fusion_pl.fusion import CrossAttention, Mean
from fusion_pl.messages import printable
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.training.measures import fewer
from fusion_pl.types import UserError

from .encoders.models import save_audio, save_image, save_text

MORE = 2**30  # bytes of address space that hostile files may take in all, besides the libraries


def write(model, path):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of three pretrained encoders, and a small one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for save, name, where in ((save_text, "bert", "t"), (save_image, "vit", "i"), (save_audio, "whisper", "a")):
        save(name, folder / where)
    torch.manual_seed(0)
    encoders = {
        "text": TextEncoder(str(folder / "t"), max_tokens=16),
        "image": ImageEncoder(str(folder / "i")),
        "audio": AudioEncoder(str(folder / "a")),
    }
    write(FusionClassifier(encoders, lambda dims, count: CrossAttention(dims, count, dim=16), ["a", "b"]), folder / "m")
    write(FusionClassifier({"text": TinyText(dim=8)}, lambda d, c: Mean(d, c, dim=8), ["a", "b"]), folder / "small")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return torch.load(folder / "m", weights_only=True)


@pytest.fixture(scope="module")
def small(folder):
    return torch.load(folder / "small", weights_only=True)


def changed(checkpoint, change):
    """Return a copy with another recipe, other files or other weights."""
    given = dict(
        checkpoint, fusion_pl=copy.deepcopy(checkpoint["fusion_pl"]), state_dict=dict(checkpoint["state_dict"])
    )
    change(given)
    return given


def refused(checkpoint, path, match, trust=()):
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=match) as caught:
        Predictor.from_checkpoint(path, device="cpu", trust=trust)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def part(key, **values):
    return lambda c: c["fusion_pl"][key]["init_args"].update(values)


def file(encoder, name, edit):
    """Edit a JSON file that an encoder embeds."""

    def change(checkpoint):
        files = checkpoint["fusion_pl"]["files"][encoder]
        content = json.loads(files[name])
        edit(content)
        files[name] = json.dumps(content).encode()

    return change


def setting(encoder, name, **values):
    return file(encoder, name, lambda content: content.update(values))


def put(encoder, name, content):
    return lambda c: c["fusion_pl"]["files"].setdefault(encoder, {}).update({name: content})


def weight(key, value):
    return lambda c: c["state_dict"].update({key: value(c["state_dict"][key])})


def first(checkpoint):
    return next(iter(checkpoint["state_dict"]))


TOKENIZER = ("text", "tokenizer.json")
DAMAGED = {
    "a weight that is not a number": (
        lambda c: weight(first(c), lambda w: w.clone().fill_(float("nan")))(c),
        "infinite",
    ),
    "an infinite weight": (lambda c: weight(first(c), lambda w: w * float("inf"))(c), "infinite or not numbers"),
    "no state_dict": (lambda c: c.pop("state_dict"), "lacks the model's state_dict"),
    "a weight that is a text": (lambda c: c["state_dict"].update(x="y"), "x is not a tensor"),
    "no files": (lambda c: c["fusion_pl"].pop("files"), "it lacks files"),
    "a recipe that is a text": (lambda c: c["fusion_pl"].update(fusion="Mean"), "fusion is not a recipe"),
    "a recipe without arguments": (lambda c: c["fusion_pl"]["fusion"].pop("init_args"), "fusion is not a recipe"),
    "arguments that are a list": (lambda c: c["fusion_pl"]["fusion"].update(init_args=[1]), "is not a dictionary"),
    "columns that are a list": (lambda c: c["fusion_pl"].update(columns=["a"]), "columns does not name"),
    "numbers for classes": (lambda c: c["fusion_pl"].update(classes=[1, 2]), "classes is not a list of names"),
    "files of nobody": (put("nobody", "config.json", b"{}"), "files belong to no encoder"),
    "no image processor": (lambda c: c["fusion_pl"]["files"]["image"].pop("preprocessor_config.json"), "lacks config"),
    "no feature extractor": (lambda c: c["fusion_pl"]["files"]["audio"].pop("preprocessor_config.json"), "lacks"),
    "no tokenizer": (lambda c: c["fusion_pl"]["files"]["text"].pop("tokenizer.json"), "does not hold together"),
    "half a tokenizer": (lambda c: put(*TOKENIZER, c["fusion_pl"]["files"]["text"]["tokenizer.json"][:900])(c), "json"),
    "no model in the tokenizer": (setting(*TOKENIZER, model=5), "no tokenizer could be read"),
    "a tokenizer that is a list": (put(*TOKENIZER, b"[1]"), "not a JSON object"),
    "an odd property": (
        setting(*TOKENIZER, added_tokens=[{"id": 0, "content": "a", "\x1b[2J": 1}]),
        "a token has prop",
    ),
    "nested JSON": (put("image", "config.json", b'{"a":' * 100_000), "cannot be used"),
    "5000 digits": (put("image", "config.json", b'{"a": ' + b"9" * 5000 + b"}"), "cannot be used"),
    "text that is no UTF-8": (put("image", "config.json", b"\xff\xfe\xff"), "cannot be used"),
    "an unknown model": (setting("image", "config.json", model_type="none"), "does not hold together"),
    "an odd class path": (lambda c: c["fusion_pl"]["fusion"].update(class_path="fusion_pl..\0\x1b[2J"), "not the name"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(name, whole, tmp_path, capfd):
    change, match = DAMAGED[name]
    refused(changed(whole, change), tmp_path / "x.ckpt", match)
    assert "\x1b" not in "".join(capfd.readouterr())  # tokenizers prints names of properties that it does not know


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "/etc/passwd", "a\0b", "a" * 300, "", "con\x1b[2J", "~"])
def test_embedded_names_are_plain(name, whole, tmp_path):
    refused(
        changed(whole, put("text", name, b"x")), tmp_path / "x.ckpt", "(?s)named .* points out of its folder or is no"
    )


def test_flipped_bytes_are_noticed_or_change_nothing(folder, small, tmp_path):
    """60 of 300 such files were once loaded with other numbers."""
    original, generator, path = (folder / "small").read_bytes(), random.Random(0), tmp_path / "x.ckpt"
    accepted = 0
    for _ in range(300):
        content = bytearray(original)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            found = read_checkpoint(path)
        except UserError:
            continue
        accepted += 1
        assert found["fusion_pl"] == small["fusion_pl"]
        assert all(torch.equal(found["state_dict"][key], value) for key, value in small["state_dict"].items())
    assert accepted < 150  # what is accepted lies in padding between tensors and in dates


def evil(marker):
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nraise RuntimeError\n".encode()


def test_code_among_the_files_is_neither_run_nor_asked_about(whole, tmp_path):
    """On a terminal, transformers once asked "Do you wish to run the custom code? [y/N]"; here somebody says yes."""
    marker, path = tmp_path / "ran", tmp_path / "x.ckpt"

    def change(checkpoint):
        put("text", "evil.py", evil(marker))(checkpoint)
        for name in ("config.json", "tokenizer_config.json"):
            classes = {"AutoConfig": "evil.E", "AutoModel": "evil.E", "AutoTokenizer": ["evil.E", "evil.E"]}
            setting("text", name, auto_map=classes, model_type="evil", tokenizer_class="Evil")(checkpoint)

    torch.save(changed(whole, change), path)
    (tmp_path / "m.csv").write_text("text,image,audio\na cat,,\n")
    main, terminal = pty.openpty()
    os.write(main, b"y\ny\ny\n")
    command = [sys.executable, "-m", "fusion_pl", "predict", "--ckpt_path", path, "--data.manifest", tmp_path / "m.csv"]
    done = subprocess.run(
        [*command, "--output", tmp_path / "o.csv"],
        stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180, check=False,
    )  # fmt: skip
    os.close(main)
    os.close(terminal)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert "y/N" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("fusion-pl: error: ")
    assert "a file evil.py, which fusion-pl does not write" in done.stdout
    assert not marker.exists()
    # Neither does the name of code do anything where the code itself is not there: the model is built without it.
    torch.save(changed(whole, setting("image", "config.json", auto_map={"AutoModel": "evil.E"})), path)
    assert Predictor.from_checkpoint(path, device="cpu").predict({"text": "a cat"}).error is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"backbone": "somebody/else", "model_type": "dpt"}),
        ("config.json", {"backbone_config": {"backbone": "somebody/else", "model_type": "timm_backbone"}}),
        ("config.json", {"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/else"}),
    ],
)
def test_other_repositories_are_not_obeyed(name, values, whole, tmp_path, monkeypatch):
    def contact(*args, **kwargs):
        raise AssertionError("somebody was contacted")

    monkeypatch.setattr("socket.socket.connect", contact)
    monkeypatch.setattr("socket.getaddrinfo", contact)
    refused(
        changed(whole, setting("image", name, **values)), tmp_path / "x.ckpt", "of another repository, which is not"
    )


def test_what_a_checkpoint_holds_of_code_is_left_out_when_it_is_written(folder, tmp_path):
    config = json.loads((folder / "i" / "config.json").read_text())
    for name in ("preprocessor_config.json", "model.safetensors"):
        os.link(folder / "i" / name, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "somebody/else--a.B"}}))
    files = ImageEncoder(str(tmp_path)).files()
    assert not any(b"auto_map" in content for content in files.values())


def with_pickle(path, original, content, method=zipfile.ZIP_STORED):
    """Write an archive like torch's whose pickle is ours."""
    with zipfile.ZipFile(original) as given, zipfile.ZipFile(path, "w", method, compresslevel=1) as made:
        for member in given.infolist():
            name = member.filename
            made.writestr(name, content if name.endswith("data.pkl") else given.read(name))


def calling(name, *arguments):
    """Return a pickle, as torch writes them, of a call."""
    file = io.BytesIO()
    pickler = pickle._Pickler(file, protocol=2)
    file.write(b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n")
    pickler.save(arguments)
    return file.getvalue() + b"R."


def doubling(times):
    """A pickle of some 100 bytes whose bytes double ``times`` times."""
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
    "long clips": (setting("audio", "preprocessor_config.json", chunk_length=10**6), "a clip would become larger"),
    "a fine spectrogram": (setting("audio", "preprocessor_config.json", n_fft=60_000), "does not hold together"),
    "a slow spectrogram": (setting("audio", "preprocessor_config.json", hop_length=1), "does not hold together"),
    "a normalizer": (setting(*TOKENIZER, normalizer=replacing("a" * 1000, 1)), "lengthens a text"),
    "many normalizers": (setting(*TOKENIZER, normalizer=replacing("aaaaaaa", 20)), "lengthens a text"),
    "a table of 4 GB": (
        setting(*TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": CHARSMAP}),
        "table is cut off",
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
from fusion_pl.training.measures import fewer
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


def test_small_files_take_little_memory_and_time(folder, whole, tmp_path):
    """All in one process that may not have more than some gigabytes, nor 20 seconds for each."""
    expected = []
    for name, (change, match) in LARGE.items():
        torch.save(changed(whole, change), tmp_path / str(len(expected)))
        expected.append((name, match))
    for name, content in PICKLES.items():
        with_pickle(tmp_path / str(len(expected)), folder / "small", content)
        expected.append((name, "asks to run|in a form that torch.save does not"))
    with_pickle(tmp_path / str(len(expected)), folder / "small", bytes(2**28), zipfile.ZIP_DEFLATED)
    expected.append(("a deflated pickle", "it is compressed"))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(MORE), folder / "m", *(str(n) for n in range(len(expected)))],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert len(said) == len(expected), (expected[len(said)], done.stderr[-2000:])
    for line, (name, match) in zip(said, expected, strict=True):
        assert re.search(match, line), (name, line)
    assert not (tmp_path / "ran").exists()
    assert sum((tmp_path / str(n)).stat().st_size for n in range(len(expected))) < len(expected) * 2**22


def test_a_tokenizer_of_another_model_is_told_with_the_text(whole, tmp_path):
    """A token that the model has no vector for, a token that is missing, and a panic of the library."""

    def predict(**values):
        torch.save(changed(whole, setting(*TOKENIZER, **values)), tmp_path / "x")
        Predictor.from_checkpoint(tmp_path / "x", device="cpu").predict({"text": "a cat " + "a" * 28 + "!"})

    model = json.loads(whole["fusion_pl"]["files"]["text"]["tokenizer.json"])["model"]
    with pytest.raises(UserError, match="gives token 4294967295, and the model knows 0 to 63"):
        predict(model=model | {"vocab": model["vocab"] | {"cat": 2**32 - 1}})
    with pytest.raises(UserError, match=r"cannot process a text: .*Missing \[UNK\]"):
        predict(model=model | {"unk_token": "[NO]"})
    with pytest.raises(UserError, match=r"cannot process a text: .*retry-limit"):
        predict(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""})


def test_weights_that_overflow_are_no_prediction(small, tmp_path):
    def change(checkpoint):
        for key, value in checkpoint["state_dict"].items():
            checkpoint["state_dict"][key] = value.clone().fill_(3e38) if value.is_floating_point() else value

    torch.save(changed(small, change), tmp_path / "x")
    prediction = Predictor.from_checkpoint(tmp_path / "x", device="cpu").predict({"text": "a"})
    assert prediction.label is None
    assert "not a number" in prediction.error


def test_escape_sequences_do_not_reach_the_terminal(tmp_path, capsys, small):
    assert run("predict", ["--ckpt_path", "\x1b[2Jx\u202e", "--data.manifest", "m.csv", "--output", "o.csv"]) == 2
    said = capsys.readouterr().err
    assert "\\x1b[2Jx\\u202e" in said
    assert printable(said) == said


def test_pipes_folders_and_devices_are_no_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match=r"there is no checkpoint .* it is no file"):
            read_checkpoint(path)


def test_many_inputs_do_not_take_for_ever():
    """All subsets of 40 inputs would be 10^12."""
    assert len(fewer([str(number) for number in range(40)])) == 80


def test_a_part_without_transformers_may_embed_any_plain_file(small, tmp_path):
    """The list of names is for what transformers reads."""
    torch.save(changed(small, put("text", "words.npy", b"123")), tmp_path / "x")
    assert Predictor.from_checkpoint(tmp_path / "x", device="cpu").predict({"text": "a"}).error is None
