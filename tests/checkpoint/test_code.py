"""Checkpoints that try to run code or to contact a server."""

from __future__ import annotations

import json
import os

import pytest
import torch

from fusion_pl.encoders import ImageEncoder
from fusion_pl.predict import Predictor

from ..terminal import Terminal
from .hostile import changed, put, refused, setting


def evil(marker):
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nraise RuntimeError\n".encode()


def test_embedded_code_is_not_run_and_shows_no_prompt(full, tmp_path):
    """Transformers may ask "Do you wish to run the custom code? [y/N]" in a terminal; the answer here is yes."""
    marker, path = tmp_path / "ran", tmp_path / "x.ckpt"

    def change(checkpoint):
        put("text", "evil.py", evil(marker))(checkpoint)
        for name in ("config.json", "tokenizer_config.json"):
            classes = {"AutoConfig": "evil.E", "AutoModel": "evil.E", "AutoTokenizer": ["evil.E", "evil.E"]}
            setting("text", name, auto_map=classes, model_type="evil", tokenizer_class="Evil")(checkpoint)

    torch.save(changed(full, change), path)
    (tmp_path / "m.csv").write_text("text,image,audio\na cat,,\n")
    command = ["predict", "--ckpt_path", path, "--data.manifest", tmp_path / "m.csv", "--output", tmp_path / "o.csv"]
    with Terminal(command, columns=1000) as terminal:
        terminal.press(b"y\ny\ny\n")
        assert terminal.ended() == 2, terminal.text
    assert "Traceback" not in terminal.text
    assert "y/N" not in terminal.text
    assert terminal.text.splitlines()[-1].startswith("fusion-pl: error: ")
    assert "a file evil.py, which fusion-pl does not write" in terminal.text
    assert not marker.exists()
    # Neither does the name of code do anything where the code itself is not there: the model is built without it.
    torch.save(changed(full, setting("image", "config.json", auto_map={"AutoModel": "evil.E"})), path)
    assert Predictor.from_checkpoint(path, device="cpu").predict({"text": "a cat"}).error is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"backbone": "somebody/else", "model_type": "dpt"}),
        ("config.json", {"backbone_config": {"backbone": "somebody/else", "model_type": "timm_backbone"}}),
        ("config.json", {"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/else"}),
    ],
)
def test_other_repositories_are_not_read(name, values, full, tmp_path, monkeypatch):
    def contact(*args, **kwargs):
        raise AssertionError("somebody was contacted")

    monkeypatch.setattr("socket.socket.connect", contact)
    monkeypatch.setattr("socket.getaddrinfo", contact)
    refused(changed(full, setting("image", name, **values)), tmp_path / "x.ckpt", "of another repository, which is not")


def test_names_of_code_are_not_written_to_a_checkpoint(originals, tmp_path):
    config = json.loads((originals / "i" / "config.json").read_text())
    for name in ("preprocessor_config.json", "model.safetensors"):
        os.link(originals / "i" / name, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "somebody/else--a.B"}}))
    files = ImageEncoder(str(tmp_path)).files()
    assert not any(b"auto_map" in content for content in files.values())


def test_a_part_without_transformers_may_embed_any_plain_file(small, tmp_path):
    """The list of file names is for transformers."""
    torch.save(changed(small, put("text", "words.npy", b"123")), tmp_path / "x")
    assert Predictor.from_checkpoint(tmp_path / "x", device="cpu").predict({"text": "a"}).error is None


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "additional.txt"])
def test_a_file_that_an_earlier_version_embedded_is_ignored(name, full, tmp_path):
    torch.save(changed(full, put("text", name, b"{{ evil }}")), tmp_path / "x")
    assert Predictor.from_checkpoint(tmp_path / "x", device="cpu").predict({"text": "a cat"}).error is None


@pytest.mark.parametrize("name", ["evil.PY", "vocab.pkl", "pytorch_model.bin", "run.so"])
def test_code_and_pickles_are_refused(name, full, tmp_path):
    refused(changed(full, put("text", name, b"x")), tmp_path / "x", f"{name}, which fusion-pl does not write")
