"""Damaged checkpoints are refused with one sentence, or read unchanged."""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.cli.run import run
from fusion_pl.messages import escape_unprintable
from fusion_pl.predict import Predictor
from fusion_pl.types import UserError

from .hostile import TOKENIZER, changed, first, put, refused, setting, weight

DAMAGED = {
    "a weight that is not a number": (
        lambda c: weight(first(c), lambda w: w.clone().fill_(float("nan")))(c),
        "infinite",
    ),
    "an infinite weight": (lambda c: weight(first(c), lambda w: w * float("inf"))(c), "infinite or NaN"),
    "no state_dict": (lambda c: c.pop("state_dict"), "lacks the model's state_dict"),
    "a weight that is a text": (lambda c: c["state_dict"].update(x="y"), "x is not a tensor"),
    "no files": (lambda c: c["fusion_pl"].pop("files"), "it lacks files"),
    "a config that is a text": (lambda c: c["fusion_pl"].update(fusion="Mean"), "fusion is not a config"),
    "a config without arguments": (lambda c: c["fusion_pl"]["fusion"].pop("init_args"), "fusion is not a config"),
    "arguments that are a list": (lambda c: c["fusion_pl"]["fusion"].update(init_args=[1]), "is not a dictionary"),
    "columns that are a list": (lambda c: c["fusion_pl"].update(columns=["a"]), "columns is not a dictionary of names"),
    "numbers for classes": (lambda c: c["fusion_pl"].update(classes=[1, 2]), "classes is not a list of names"),
    "files of nobody": (put("nobody", "config.json", b"{}"), "it has files of an encoder that does not exist"),
    "no image processor": (lambda c: c["fusion_pl"]["files"]["image"].pop("preprocessor_config.json"), "lacks config"),
    "no feature extractor": (lambda c: c["fusion_pl"]["files"]["audio"].pop("preprocessor_config.json"), "lacks"),
    "no tokenizer": (lambda c: c["fusion_pl"]["files"]["text"].pop("tokenizer.json"), "is inconsistent"),
    "half a tokenizer": (lambda c: put(*TOKENIZER, c["fusion_pl"]["files"]["text"]["tokenizer.json"][:900])(c), "json"),
    "no model in the tokenizer": (setting(*TOKENIZER, model=5), "no tokenizer could be read"),
    "a tokenizer that is a list": (put(*TOKENIZER, b"[1]"), "not a JSON object"),
    "an odd property": (
        setting(*TOKENIZER, added_tokens=[{"id": 0, "content": "a", "\x1b[2J": 1}]),
        "a token has a prop",
    ),
    "nested JSON": (put("image", "config.json", b'{"a":' * 100_000), "cannot be used"),
    "5000 digits": (put("image", "config.json", b'{"a": ' + b"9" * 5000 + b"}"), "cannot be used"),
    "text that is no UTF-8": (put("image", "config.json", b"\xff\xfe\xff"), "cannot be used"),
    "an unknown model": (setting("image", "config.json", model_type="none"), "is inconsistent"),
    "an odd class path": (
        lambda c: c["fusion_pl"]["fusion"].update(class_path="fusion_pl..\0\x1b[2J"),
        "is not a class path",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_with_one_sentence(name, full, tmp_path, capfd):
    change, match = DAMAGED[name]
    refused(changed(full, change), tmp_path / "x.ckpt", match)
    assert "\x1b" not in "".join(capfd.readouterr())  # tokenizers prints names of properties that it does not know


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "/etc/passwd", "a\0b", "a" * 300, "", "con\x1b[2J", "~"])
def test_embedded_files_need_plain_names(name, full, tmp_path):
    refused(changed(full, put("text", name, b"x")), tmp_path / "x.ckpt", "(?s)named .* is not a plain file name")


def test_flipped_bits_are_detected_or_change_nothing(originals, small, tmp_path):
    """Without checksums, 60 of these 300 files load with other numbers."""
    original, generator, path = (originals / "small").read_bytes(), random.Random(0), tmp_path / "x.ckpt"
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


def test_a_tokenizer_of_another_model_is_refused(full, tmp_path):
    """A token without an embedding, a missing token, and a panic of the library."""

    def predict(**values):
        torch.save(changed(full, setting(*TOKENIZER, **values)), tmp_path / "x")
        Predictor.from_checkpoint(tmp_path / "x", device="cpu").predict({"text": "a cat " + "a" * 28 + "!"})

    model = json.loads(full["fusion_pl"]["files"]["text"]["tokenizer.json"])["model"]
    with pytest.raises(UserError, match=r"returns token 4294967295, but the model has tokens 0 to 63|Missing \[UNK\]"):
        predict(model=model | {"vocab": model["vocab"] | {"cat": 2**32 - 1}})
    with pytest.raises(UserError, match=r"cannot process a text: .*Missing \[UNK\]"):
        predict(model=model | {"unk_token": "[NO]"})
    with pytest.raises(UserError, match=r"cannot process a text: .*retry-limit"):
        predict(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""})


BROKEN = """
from fusion_pl.encoders import TinyText


class Broken(TinyText):
    def __init__(self, dim, fault):
        super().__init__(dim=dim)
        raise {"attribute": AttributeError, "import": ImportError, "type": TypeError}[fault]("of the user's own")
"""


@pytest.mark.parametrize("fault", ["attribute", "import", "type"])
def test_an_error_of_a_trusted_class_keeps_its_traceback(fault, small, tmp_path, monkeypatch):
    (tmp_path / "broken_encoder.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_encoder", raising=False)

    def change(checkpoint):
        part = {"class_path": "broken_encoder.Broken", "init_args": {"dim": 8, "fault": fault}}
        checkpoint["fusion_pl"]["encoders"]["text"] = part

    torch.save(changed(small, change), tmp_path / "x")
    with pytest.raises((AttributeError, ImportError, TypeError), match="of the user's own"):
        Predictor.from_checkpoint(tmp_path / "x", trust=["broken_encoder"])
    torch.save(
        changed(small, lambda c: (change(c), c["fusion_pl"]["encoders"]["text"]["init_args"].pop("fault"))),
        tmp_path / "x",
    )
    with pytest.raises(UserError, match="is inconsistent"):  # the arguments' fault, not the class's
        Predictor.from_checkpoint(tmp_path / "x", trust=["broken_encoder"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be unpacked: No space left on device"),
        (MemoryError(), "not enough memory to build"),
        (ImportError("needs the library words"), "cannot be used here: needs the library words: install"),
        (UserError("a long reason " + 300 * "x"), 300 * "x"),
    ],
)
def test_faults_of_the_machine_are_not_called_damage(error, message, originals, monkeypatch):
    """Simulate a fault of the folder for temporary files."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(tempfile, "TemporaryDirectory", fail)
    with pytest.raises(UserError, match=message) as caught:
        Predictor.from_checkpoint(originals / "small", device="cpu")
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output error"),
        (MemoryError(), "not enough memory to read"),
    ],
)
def test_a_failing_disk_is_not_called_damage(error, message, originals, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(originals / "small")
    assert "damaged" not in str(caught.value)


def test_an_internal_error_is_not_called_damage(originals, monkeypatch):
    def fail(data):
        raise AttributeError("of our own")

    monkeypatch.setattr("fusion_pl.torch_files._check_pickle", fail)
    with pytest.raises(AttributeError, match="of our own"):
        read_checkpoint(originals / "small")


def test_weights_that_overflow_give_an_error(small, tmp_path):
    def change(checkpoint):
        for key, value in checkpoint["state_dict"].items():
            checkpoint["state_dict"][key] = value.clone().fill_(3e38) if value.is_floating_point() else value

    torch.save(changed(small, change), tmp_path / "x")
    prediction = Predictor.from_checkpoint(tmp_path / "x", device="cpu").predict({"text": "a"})
    assert prediction.label is None
    assert "NaN or infinite" in prediction.error


def test_escape_sequences_do_not_reach_the_terminal(tmp_path, capsys, small):
    assert run("predict", ["--ckpt_path", "\x1b[2Jx\u202e", "--data.manifest", "m.csv", "--output", "o.csv"]) == 2
    message = capsys.readouterr().err
    assert "\\x1b[2Jx\\u202e" in message
    assert escape_unprintable(message) == message


def test_pipes_folders_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match=r"there is no checkpoint .* it is not a file"):
            read_checkpoint(path)
