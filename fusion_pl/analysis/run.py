"""Execute one run of a comparison: its configuration, its log, and its result, also when it fails."""

from __future__ import annotations

import contextlib
import os
import shlex
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from fusion_pl import __version__
from fusion_pl.analysis.folder import RESULT, run_path
from fusion_pl.analysis.measure import train_and_test
from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.cli.errors import user_message
from fusion_pl.cli.runs import LOGGER

CACHE = "cache"  # folder of the outputs of frozen encoders
CACHE_LIMIT = 20.0  # GiB, unless the user gives --cache_limit


def execute(run: Run, output: Path, extra: Sequence[str]) -> RunResult:
    """Train, test and measure a run of the comparison in the folder ``output``, with further arguments of fit.

    Its folder contains its configuration, log and checkpoints, and ``result.json``.
    """
    folder = run_path(output, run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(run, output, extra), sort_keys=False), encoding="utf-8")
    arguments = ["--config", str(folder / "config.yaml"), *extra]
    common = identity(run) | {"command": shlex.join(["fusion-pl", "fit", *arguments])}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # one process executes many runs
    with _output_to(folder / "log.txt"):
        try:
            measured = train_and_test([*arguments, "--trainer.enable_progress_bar", "false"])
            result = RunResult(**common, status="done", **measured)
        except (Exception, SystemExit) as error:  # a failing head must not stop the others; its row has the reason
            message = user_message(error)
            result = RunResult(**common, status="failed", reason=message or f"{type(error).__name__}: {error}")
            if message is None:
                traceback.print_exc()
    result.write(folder / RESULT)
    return result


def identity(run: Run) -> dict[str, Any]:
    """Return the fields of a ``RunResult`` that are known before the run."""
    known = {name: getattr(run, name) for name in ("class_path", "inputs", "seed", "key")}
    return known | {"version": __version__}


def _config(run: Run, output: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a run, with its logger, its checkpoint folder and the cache of the comparison."""
    config = dict(run.config)
    logger = LOGGER | {"init_args": LOGGER["init_args"] | {"save_dir": str(run_path(output, run))}}
    config["trainer"] = (config.get("trainer") or {}) | {"logger": logger}
    if config.get("checkpoint"):  # in a shared folder, each run would replace the checkpoints of the run before
        config["checkpoint"] = config["checkpoint"] | {"dirpath": None}
    if "cache" not in config and not any(word.partition("=")[0] == "--cache" for word in extra):
        config = {"cache": str(output / CACHE), "cache_limit": CACHE_LIMIT} | config
    return config


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Redirect stdout and stderr to a file, also those of other libraries and of worker processes."""
    with path.open("w", encoding="utf-8") as file:
        originals = {number: os.dup(number) for number in (1, 2)}
        for number in originals:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, original in originals.items():
                os.dup2(original, number)
                os.close(original)
