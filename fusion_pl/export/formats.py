"""The formats of ``fusion-pl export`` besides ONNX."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fusion_pl.export.graph import trace
from fusion_pl.messages import error_reason
from fusion_pl.module import FusionClassifier
from fusion_pl.types import UserError

TRAINING_STATE = ("optimizer_states", "lr_schedulers", "callbacks", "MixedPrecision")


def write_torch(model: FusionClassifier, folder: Path) -> None:
    """Write ``model.pt2``, a graph for ``torch.export.load``, with the names of classes and inputs in ``model.json``.

    Args:
        model: a trained classifier, in evaluation mode.
        folder: existing folder.
    """
    names = {"classes": model.classes, "inputs": list(model.processors)}
    program = trace(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about internals of the exporter
        torch.export.save(program, folder / "model.pt2", extra_files={"model.json": json.dumps(names)})


def write_ckpt(checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Write ``model.ckpt``, the checkpoint without the state of the optimizer and of callbacks."""
    content = {key: value for key, value in checkpoint.items() if key not in TRAINING_STATE}
    torch.save(content, folder / "model.ckpt")


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder to a model of the Hugging Face hub, and return its address; a new model is private.

    The token is that of ``hf auth login``, or of the environment variable HF_TOKEN.

    Raises:
        UserError: if the hub refuses it, or there is no connection; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name)
    except Exception as error:  # huggingface_hub has no common class of errors
        raise UserError(
            f"{folder} is written, but cannot be uploaded to {name} ({error_reason(error)}): log in with `hf auth "
            f"login`, and upload it with `hf upload --private {name} {shlex.quote(str(folder))}`"
        ) from error
    return str(address)
