"""Execute one run of a comparison, and write its configuration, log and result, even if it fails."""

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
from fusion_pl.analysis.folder import RESULT_FILE, run_path
from fusion_pl.analysis.measure import train_and_test
from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.cli.errors import user_message
from fusion_pl.cli.runs import LOGGER

CACHE_FOLDER = "cache"  # folder in which the outputs of frozen encoders are cached
CACHE_LIMIT_GIB = 20.0  # unless the user gives --cache_limit


def execute_run(run: Run, output: Path, extra: Sequence[str]) -> RunResult:
    """Train, test and measure a run, with further arguments of ``fusion-pl fit``.

    The configuration, log, checkpoints and ``result.json`` are written to the run's folder in ``output``.
    """
    folder = run_path(output, run)
    folder.mkdir(parents=True, exist_ok=True)
    config_path = folder / "config.yaml"
    config_path.write_text(yaml.safe_dump(_run_config(run, output, extra), sort_keys=False), encoding="utf-8")
    arguments = ["--config", str(config_path), *extra]
    common = identity_fields(run) | {"command": shlex.join(["fusion-pl", "fit", *arguments])}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # one process executes many runs
    with _redirect_output(folder / "log.txt"):
        try:
            measured = train_and_test([*arguments, "--trainer.enable_progress_bar", "false"])
            result = RunResult(**common, status="done", **measured)
        except (Exception, SystemExit) as error:  # a failed run must not stop the others; its row has the reason
            message = user_message(error)
            result = RunResult(**common, status="failed", reason=message or f"{type(error).__name__}: {error}")
            if message is None:
                traceback.print_exc()
    result.write(folder / RESULT_FILE)
    return result


def identity_fields(run: Run) -> dict[str, Any]:
    """Return the fields of a ``RunResult`` that are known before the run."""
    fields = {name: getattr(run, name) for name in ("class_path", "inputs", "seed", "key")}
    return fields | {"version": __version__}


def _run_config(run: Run, output: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a run, with its own logger and checkpoint folder, and the shared cache folder."""
    config = dict(run.config)
    logger = LOGGER | {"init_args": LOGGER["init_args"] | {"save_dir": str(run_path(output, run))}}
    config["trainer"] = (config.get("trainer") or {}) | {"logger": logger}
    if config.get("checkpoint"):  # in a shared folder, each run would overwrite the checkpoints of the previous run
        config["checkpoint"] = config["checkpoint"] | {"dirpath": None}
    if "cache" not in config and not any(word.partition("=")[0] == "--cache" for word in extra):
        config = {"cache": str(output / CACHE_FOLDER), "cache_limit": CACHE_LIMIT_GIB} | config
    return config


@contextlib.contextmanager
def _redirect_output(path: Path) -> Iterator[None]:
    """Redirect stdout and stderr to a file, including the output of C libraries and worker processes."""
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
