"""The seed of a run: the given one, that of the run that is resumed, or a random one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import yaml
from lightning.fabric.utilities.rank_zero import _get_rank

from fusion_pl.types import UserError


def choose_seed(seed: bool | int, checkpoint: str | None, num_nodes: int) -> int:
    """Return the seed, which is the same in all processes of a run.

    Args:
        seed: value of ``--seed_everything``; true or false: the seed of the resumed run, or of a new run a random one.
        checkpoint: path of the checkpoint to resume from.
        num_nodes: number of nodes of the Trainer.

    Raises:
        UserError: if a random seed is required, and other processes would draw another one.
    """
    if not isinstance(seed, bool):
        return seed
    previous = _read_seed(Path(checkpoint).parent.parent / "config.yaml") if checkpoint else None
    if previous is not None:
        return previous
    if _get_rank() is None and num_nodes == 1:
        return secrets.randbelow(2**32)
    if (common := os.environ.get("PL_GLOBAL_SEED", "")).isdecimal():  # Lightning started this process
        return int(common)
    raise UserError(
        f"--seed_everything {str(seed).lower()} draws a random seed, which would be another one in each process that a "
        "launcher such as torchrun or SLURM starts: give a number, such as --seed_everything 1"
    )


def _read_seed(path: Path) -> int | None:
    """Return the seed in the ``config.yaml`` of a run; None if it has none."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    seed = config.get("seed_everything") if isinstance(config, dict) else None
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
