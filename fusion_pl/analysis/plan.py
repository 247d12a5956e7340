"""The runs of a comparison, and the configuration of each run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import fusion_pl.fusion
from fusion_pl.analysis.keys import run_key
from fusion_pl.messages import did_you_mean
from fusion_pl.metrics import subsets
from fusion_pl.tasks import MultiClass, Task
from fusion_pl.training.model_checks import fits
from fusion_pl.types import MissingFileError, UserError

HEAD_PACKAGE = "fusion_pl.fusion."
BASELINE_HEAD = f"{HEAD_PACKAGE}Concat"  # fusion head of the runs that use fewer inputs
PER_INPUT_OPTIONS = ("inputs", "augment", "input_dropout")  # options of the data section that map input names to values


@dataclass(frozen=True)
class Run:
    """A planned training run: one fusion head, one set of inputs, one seed.

    Attributes:
        class_path: Class path of the fusion head.
        inputs: Input names, in the order of ``model.encoders``.
        seed: Random seed of the run.
        key: Hash of everything that affects the result: configuration, table, library versions. A finished run with
            the same key is not repeated.
        config: Configuration for ``fusion-pl fit --config``.
    """

    class_path: str
    inputs: tuple[str, ...]
    seed: int
    key: str
    config: dict[str, Any] = field(compare=False)  # the key contains its hash

    @property
    def name(self) -> str:
        """Folder name: class name of a built-in head, class path of any other head; then inputs and seed."""
        return f"{self.class_path.removeprefix(HEAD_PACKAGE)}-{'+'.join(self.inputs)}-{self.seed}"


def read_base_config(path: str) -> dict[str, Any]:
    """Read the configuration that all runs share.

    Raises:
        UserError: If the file is not a YAML configuration with encoders and data.
    """
    if not Path(path).is_file():
        raise MissingFileError(
            f"there is no configuration {path}: give --config a YAML file, such as configs/keypad.yaml"
        )
    try:
        base: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    model, data = (base.get(name) if isinstance(base, dict) else None for name in ("model", "data"))
    encoders = model.get("encoders") if isinstance(model, dict) else None
    if not isinstance(encoders, dict) or not encoders or not data:
        raise UserError(f"{path} has no model.encoders or no data: give the configuration of a fusion-pl fit")
    return {**base, "data": {"class_path": data} if isinstance(data, str) else data}


def parse_heads(fusions: str, task: type[Task] = MultiClass) -> list[str]:
    """Parse ``--fusions`` into class paths: ``all``, or names and class paths of heads separated by commas.

    ``all`` is all heads that fit the task.
    """
    known = [name for name in fusion_pl.fusion.__all__ if name != "Fusion"]
    fitting = [name for name in known if fits(getattr(fusion_pl.fusion, name), task)]
    names = fitting if fusions == "all" else [name.strip() for name in fusions.split(",") if name.strip()]
    for name in names:
        if "." not in name and name not in known:
            raise UserError(
                f"--fusions: there is no head {name!r}{did_you_mean(name, known)} "
                f"(all, {', '.join(known)}, or the class path of another head)"
            )
    if not names:
        raise UserError("--fusions is empty: give all, or names of heads, separated by commas")
    return list(dict.fromkeys(name if "." in name else HEAD_PACKAGE + name for name in names))


def parse_input_sets(value: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Parse ``--inputs`` into sets of input names, the full set first.

    Args:
        value: One or more of ``each``, ``all`` and ``subsets``, separated by commas.
        names: Names of all inputs.
    """
    sets: list[tuple[str, ...]] = []
    options: dict[str, list[tuple[str, ...]]] = {"all": [tuple(names)], "each": [(name,) for name in names]}
    options["subsets"] = subsets(names)
    for word in map(str.strip, value.split(",")):
        if word not in options:
            raise UserError(f"--inputs: {word!r} is unknown, expected each, all or subsets, separated by commas")
        sets += options[word]
    return sorted(dict.fromkeys(sets), key=lambda inputs: (len(inputs) != len(names), len(inputs)))


def plan_runs(
    base: dict[str, Any],
    fusions: str,
    inputs: str,
    seeds: int,
    extra: Sequence[str] = (),
    table_hash: str = "",
    task: type[Task] = MultiClass,
) -> list[Run]:
    """Return all runs: for each seed, every head on all inputs, and the baseline head on fewer inputs.

    Args:
        base: Configuration that all runs share.
        fusions: Value of ``--fusions``, see ``parse_heads``.
        inputs: Value of ``--inputs``, see ``parse_input_sets``.
        seeds: Number of seeds, at least 1.
        extra: Further arguments of every ``fusion-pl fit``.
        table_hash: Hash of the data table, see ``fusion_pl.analysis.keys.table_hash``.
        task: Task of the runs, see ``parse_heads``.
    """
    names = tuple(base["model"]["encoders"])
    heads = parse_heads(fusions, task)
    baseline = BASELINE_HEAD if BASELINE_HEAD in heads or len(heads) > 1 else heads[0]
    return [
        make_run(base, head, input_set, seed, extra, table_hash)
        for seed in range(seeds)
        for input_set in parse_input_sets(inputs, names)
        for head in (heads if len(input_set) == len(names) else [baseline])
    ]


def make_run(
    base: dict[str, Any],
    class_path: str,
    inputs: tuple[str, ...],
    seed: int,
    extra: Sequence[str] = (),
    table_hash: str = "",
) -> Run:
    """Return the run of one head on ``inputs`` with one seed; see ``plan_runs`` for the other arguments."""
    config = copy.deepcopy(base)
    model = config["model"]
    data = config["data"]["init_args"] = config["data"].get("init_args") or {}
    configured = model.get("fusion")
    configured = {"class_path": configured} if isinstance(configured, str) else configured or {}
    same_head = class_path in {configured.get("class_path"), f"{HEAD_PACKAGE}{configured.get('class_path')}"}
    # The configured init_args apply only to the configured head.
    model["fusion"] = {**configured, "class_path": class_path} if same_head else {"class_path": class_path}
    if len(inputs) < len(model["encoders"]):
        model["encoders"] = {name: model["encoders"][name] for name in inputs}
        data["drop_empty"] = True
        for option in PER_INPUT_OPTIONS:
            if data.get(option):
                # A key of several inputs, such as left+right, needs all of them.
                keys = [key for key in data[option] if key in inputs or set(key.split("+")) <= set(inputs)]
                data[option] = {key: data[option][key] for key in keys}
    config["seed_everything"] = seed
    return Run(class_path, inputs, seed, run_key(config, extra, table_hash), config)
