"""Convert checkpoints of format 1, in which some modules and arguments have other names."""

from __future__ import annotations

from typing import Any

from fusion_pl.config import RENAMED_ARGUMENTS

RENAMED_MODULES = {
    "deciders": "auxiliary_heads",
    "stand_ins": "missing_embeddings",
    "decide": "unimodal",
    "depth": "layer_mixing",
    "join_heads": "output_projection",
    "places": "position_embedding",
}


def convert(checkpoint: Any) -> None:
    """Rename modules and arguments of a checkpoint of format 1, in place; other checkpoints stay unchanged."""
    config = checkpoint.get("fusion_pl") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or config.get("format") != 1:
        return
    encoders, weights = config.get("encoders"), checkpoint.get("state_dict")
    if not (isinstance(encoders, dict) and isinstance(weights, dict)):
        return
    for part in (config.get("fusion"), *encoders.values()):
        if isinstance(part, dict) and isinstance(args := part.get("init_args"), dict):
            part["init_args"] = {RENAMED_ARGUMENTS.get(name, name): value for name, value in args.items()}
    checkpoint["state_dict"] = {_new_name(key, set(encoders)): tensor for key, tensor in weights.items()}
    config["format"] = 2


def _new_name(key: Any, inputs: set[Any]) -> Any:
    """Rename the modules in the name of a parameter, but not the inputs."""
    if not isinstance(key, str):
        return key
    parts = key.split(".")
    is_input = [part in inputs if parts[0] != "encoders" else index == 1 for index, part in enumerate(parts)]
    return ".".join(
        part if name else RENAMED_MODULES.get(part, part) for part, name in zip(parts, is_input, strict=True)
    )
