"""Convert checkpoints of format 1, which have old names of modules and arguments."""

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
    "classify": "classifier",
    "project": "projection",
    "weigh": "weighting",
    "listen": "target_linear",
    "tell": "source_linear",
    "write": "generator",
    "meet": "bilinear",
    "add": "linear",
    "read": "cross_attention",
    "think": "self_attention",
    "join": "joint_layer",
    "merge": "factors",
    "stack": "meta_classifier",
    "route": "router",
    "modulate": "modulation",
    "widen": "expansion",
    "shorten": "downsample",
    "embed": "embedding",
}


def convert_checkpoint(checkpoint: Any) -> None:
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
    checkpoint["state_dict"] = {_rename_modules(key, set(encoders)): tensor for key, tensor in weights.items()}
    config["format"] = 2


def _rename_modules(key: Any, inputs: set[Any]) -> Any:
    """Replace old module names in the name of a parameter, except names of inputs and modules of a pretrained model."""
    if not isinstance(key, str):
        return key
    parts = key.split(".")
    if parts[0] == "encoders":
        end = parts.index("model", 2) if "model" in parts[2:] else len(parts)
        return ".".join([*parts[:2], *(RENAMED_MODULES.get(part, part) for part in parts[2:end]), *parts[end:]])
    return ".".join(part if part in inputs else RENAMED_MODULES.get(part, part) for part in parts)
