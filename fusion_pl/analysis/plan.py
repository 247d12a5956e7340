"""Which runs a comparison consists of, and the configuration of each."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import fusion_pl.fusion
from fusion_pl.analysis.content import key_of
from fusion_pl.metrics import subsets
from fusion_pl.types import MissingFileError, UserError

OURS = "fusion_pl.fusion."
BASELINE = f"{OURS}Concat"  # the head of the runs with fewer inputs
OF_INPUTS = ("inputs", "augment", "input_dropout")  # the data's options that are keyed by input


@dataclass(frozen=True)
class Trial:
    """One head on some of the inputs with one seed.

    Attributes:
        fusion: class path of the head.
        inputs: names, in the order of ``model.encoders``.
        seed: of the run.
        key: of everything that decides the outcome: configuration, table, versions of the libraries. A finished run
            with the same key is not repeated.
        config: what ``fusion-pl fit --config`` gets.
    """

    fusion: str
    inputs: tuple[str, ...]
    seed: int
    key: str
    config: dict[str, Any] = field(compare=False)  # the key stands for it

    @property
    def name(self) -> str:
        """Name of its folder: our heads by their class, others by their whole path, so that two Means stay apart."""
        return f"{self.fusion.removeprefix(OURS)}-{'+'.join(self.inputs)}-{self.seed}"


def read_base(path: str) -> dict[str, Any]:
    """Read the configuration that all runs share.

    Raises:
        UserError: where it is not a configuration with encoders and data.
    """
    if not Path(path).is_file():
        raise MissingFileError(
            f"there is no configuration {path}: give --config a YAML file, such as configs/keypad.yaml"
        )
    try:
        base: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    model, data = (base.get(key) if isinstance(base, dict) else None for key in ("model", "data"))
    encoders = model.get("encoders") if isinstance(model, dict) else None
    if not isinstance(encoders, dict) or not encoders or not data:
        raise UserError(f"{path} has no model.encoders or no data: give the configuration of a fusion-pl fit")
    return {**base, "data": {"class_path": data} if isinstance(data, str) else data}


def heads(wanted: str) -> list[str]:
    """Return the class paths that ``all``, or names and class paths with commas between them, mean."""
    known = [name for name in fusion_pl.fusion.__all__ if name != "Fusion"]
    names = known if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if "." not in name and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"--fusions: there is no head {name!r}"
                + (f"; did you mean {close[0]}?" if close else "")
                + f" (all, {', '.join(known)}, or the class path of your own)"
            )
    if not names:
        raise UserError("--fusions names no head: give all, or names with commas between them")
    return list(dict.fromkeys(name if "." in name else OURS + name for name in names))


def input_sets(wanted: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sets of inputs that ``each``, ``all``, ``each,all`` or ``subsets`` mean; the full one first."""
    chosen: list[tuple[str, ...]] = []
    for word in wanted.split(","):
        if word.strip() == "all":
            chosen.append(tuple(names))
        elif word.strip() == "each":
            chosen += [(name,) for name in names]
        elif word.strip() == "subsets":
            chosen += subsets(names)
        else:
            raise UserError(f"--inputs: {word.strip()!r} is none of each, all, subsets (commas between them)")
    return sorted(dict.fromkeys(chosen), key=lambda one: (len(one) != len(names), len(one)))


def plan(
    base: dict[str, Any], fusions: str, inputs: str, seeds: int, extra: Sequence[str] = (), table: str = ""
) -> list[Trial]:
    """Return all runs: every head on all inputs, the baseline's on fewer, over the seeds.

    Args:
        base: the shared configuration.
        fusions: see ``heads``.
        inputs: see ``input_sets``.
        seeds: how many, 1 or more.
        extra: further arguments of every ``fusion-pl fit``.
        table: hash of the table that they read.
    """
    names = tuple(base["model"]["encoders"])
    chosen = heads(fusions)
    baseline = BASELINE if BASELINE in chosen or len(chosen) > 1 else chosen[0]
    pairs = [
        (fusion, one)
        for one in input_sets(inputs, names)
        for fusion in (chosen if len(one) == len(names) else [baseline])
    ]
    return [trial_of(base, fusion, one, seed, extra, table) for seed in range(seeds) for fusion, one in pairs]


def trial_of(
    base: dict[str, Any],
    fusion: str,
    inputs: tuple[str, ...],
    seed: int,
    extra: Sequence[str] = (),
    table: str = "",
) -> Trial:
    """Return one run.

    Args:
        base: the shared configuration.
        fusion: class path of the head.
        inputs: names, some of those of the configuration in its order.
        seed: of the run.
        extra: further arguments of every ``fusion-pl fit``.
        table: hash of the table that it reads.
    """
    config = copy.deepcopy(base)
    model = config["model"]
    data = config["data"]["init_args"] = config["data"].get("init_args") or {}
    own = model.get("fusion")
    own = {"class_path": own} if isinstance(own, str) else own or {}
    same = fusion in {own.get("class_path"), f"{OURS}{own.get('class_path')}"}
    model["fusion"] = {**own, "class_path": fusion} if same else {"class_path": fusion}  # its arguments are its own
    if len(inputs) < len(model["encoders"]):
        model["encoders"] = {name: model["encoders"][name] for name in inputs}
        data["drop_empty"] = True
        for option in OF_INPUTS:
            if data.get(option):
                data[option] = {name: value for name, value in data[option].items() if name in inputs}
    config["seed_everything"] = seed
    return Trial(fusion, inputs, seed, key_of(config, extra, table), config)
