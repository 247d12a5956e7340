"""The folders of runs, and the checkpoints in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.module import FusionClassifier
from fusion_pl.types import MissingFileError, UserError

LOGGER: dict[str, Any] = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "lightning_logs", "name": "", "default_hp_metric": False},
}


def find_checkpoint(wanted: str | None, logger: Namespace | bool | None) -> str | None:
    """Return the file that ``best``, ``last`` or a path means.

    Args:
        wanted: a path, or the name of a file among the newest run's checkpoints without its ending.
        logger: the run's logger configuration, which says where runs are.

    Raises:
        MissingFileError: where there is no such file.
    """
    if wanted is None:
        return None
    if wanted not in {"best", "last"}:
        if not Path(wanted).is_file():
            raise MissingFileError(f"there is no checkpoint {wanted}: check --ckpt_path, or give best or last")
        return wanted
    runs = runs_folder(logger)
    found = sorted(runs.glob(f"version_*/checkpoints/{wanted}.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MissingFileError(
            f"there is no {wanted}.ckpt below {runs}/version_*/checkpoints: train first with fusion-pl fit, or give "
            "--ckpt_path a file"
        )
    return str(found[-1])


def runs_folder(logger: Namespace | bool | None) -> Path:
    """Return the folder of which every run makes a new ``version_<n>``."""
    args = logger.init_args if isinstance(logger, Namespace) else LOGGER["init_args"]
    return Path(args["save_dir"]) / (args.get("name") or "")


def check_model(model: FusionClassifier, path: str) -> dict[str, Any]:
    """Refuse a checkpoint of another model in a sentence, instead of a list of tensors that do not fit; return it."""
    checkpoint = read_checkpoint(path)
    saved, wanted = (_outline(recipe) for recipe in (checkpoint["fusion_pl"], model.recipe()))
    for key, value in wanted.items():
        if saved[key] != value:
            raise UserError(
                f"{path} was trained with other {key} ({saved[key]}) than this configuration asks for ({value}): "
                "give the config.yaml that lies beside its run's logs"
            )
    return checkpoint


def _outline(recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "classes": recipe["classes"],
        "encoders": {name: part["class_path"] for name, part in recipe["encoders"].items()},
        "fusion": recipe["fusion"]["class_path"],
    }
