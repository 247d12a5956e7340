"""Functions that modify checkpoints, for tests of damaged and malicious files."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from fusion_pl.predict import Predictor
from fusion_pl.types import UserError

TOKENIZER = ("text", "tokenizer.json")


def changed(checkpoint, change):
    """Return a copy with another config, other files or other weights."""
    copied = dict(
        checkpoint, fusion_pl=copy.deepcopy(checkpoint["fusion_pl"]), state_dict=dict(checkpoint["state_dict"])
    )
    change(copied)
    return copied


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
