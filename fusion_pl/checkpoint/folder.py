"""A model as a folder in the layout of the Hugging Face hub: plain data and tensors, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fusion_pl.checkpoint.contents import FILE_NAME, check_contents
from fusion_pl.encoders.saved_files import MAX_FILE_SIZE
from fusion_pl.messages import error_reason, truncate
from fusion_pl.types import MissingFileError, UserError

WEIGHTS, CONFIG, FILES = "model.safetensors", "config.json", "encoders"
TENSOR = "tensor"  # key of a dictionary that stands for a tensor in the configuration
STATE, STATISTICS = "state_dict.", "statistics."  # prefixes of the weights, and of tensors of the configuration
ENTRIES = ("validation_scores", "outlier_detectors")  # entries of the configuration that contain tensors


def write_model_folder(checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Write ``model.safetensors``, ``config.json``, and the files of the encoders in ``encoders/0``, ``encoders/1``, ….

    Args:
        checkpoint: result of ``read_checkpoint``.
        folder: existing folder.
    """
    config = dict(checkpoint["fusion_pl"])
    files = config.pop("files")
    names = list(config["encoders"])
    tensors = {f"{STATE}{name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    for entry in ENTRIES:
        config[entry] = _take_tensors(config.get(entry), f"{STATISTICS}{entry}", tensors)
    # Tied weights and views have a common memory, which a file of safetensors cannot represent.
    content = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    (folder / WEIGHTS).write_bytes(content)  # save_file would let nobody else read the file
    for name, contents in files.items():
        for file, content in contents.items():
            path = folder / FILES / str(names.index(name)) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    text = json.dumps({"library_name": "fusion-pl", "fusion_pl": config}, ensure_ascii=False, indent=2)
    (folder / CONFIG).write_text(text, encoding="utf-8")


def read_model_folder(source: str | Path) -> tuple[dict[str, Any], Path]:
    """Return the content of a checkpoint from a folder, or from a model of the hub, and the path of its weights.

    Raises:
        MissingFileError: if the folder does not exist, or lacks a file.
        UserError: if the model cannot be downloaded, or its content is damaged.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _download(str(source))
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"the folder {source} has no {name}: give a folder that fusion-pl export --format safetensors wrote"
            )
    path = folder / WEIGHTS
    try:
        config = _read_config(folder / CONFIG)
        tensors = load_file(path)
        for entry in ENTRIES:
            config[entry] = _put_tensors(config.get(entry), tensors)
        config["files"] = _read_files(folder, list(config["encoders"]))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the folder {source} cannot be read ({error_reason(error)}): download or export it again"
        ) from error
    weights = {name.removeprefix(STATE): tensor for name, tensor in tensors.items() if name.startswith(STATE)}
    checkpoint = {"state_dict": weights, "fusion_pl": config}
    check_contents(checkpoint, path)
    return checkpoint, path


def _take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value of the configuration with names instead of tensors, which are added to ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict):
        return {key: _take_tensors(item, f"{name}.{key}", tensors) for key, item in value.items()}
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {TENSOR}:
            return tensors[value[TENSOR]]
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    return value


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_FILE_SIZE:
        raise ValueError(f"{CONFIG} is larger than {MAX_FILE_SIZE} bytes")
    config = json.loads(path.read_bytes())["fusion_pl"]
    if not isinstance(config, dict):
        raise TypeError(f"{CONFIG} describes no model of fusion-pl")
    return config


def _read_files(folder: Path, names: list[str]) -> dict[str, dict[str, bytes]]:
    """Return the files of each encoder, of at most ``MAX_FILE_SIZE`` bytes."""
    files: dict[str, dict[str, bytes]] = {name: {} for name in names}
    for index, name in enumerate(names):
        paths = sorted((folder / FILES / str(index)).glob("*"))
        for path in paths[:100]:
            if not FILE_NAME.fullmatch(path.name) or not path.is_file() or path.stat().st_size > MAX_FILE_SIZE:
                raise ValueError(f"{truncate(path.name)} is not a file of an encoder")
            files[name][path.name] = path.read_bytes()
    return files


def _download(name: str) -> Path:
    """Return the folder of a model of the hub in the cache of huggingface_hub."""
    from huggingface_hub import snapshot_download

    if name.startswith((".", "~", "/")) or not 1 <= name.count("/") + 1 <= 2:
        raise MissingFileError(f"there is no folder {name}: give a folder, or the name of a model of the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, f"{FILES}/*/*"]))
    except Exception as error:  # huggingface_hub has no common class of errors
        raise UserError(
            f"there is no folder {name}, and the model cannot be downloaded from the hub ({error_reason(error)}): "
            "check the name, or give a folder"
        ) from error
