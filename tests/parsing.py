"""Parse a command like the command line does, and stop before anything is built."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from fusion_pl.analysis.arguments import read_arguments
from fusion_pl.analysis.plan import plan_runs, read_base_config
from fusion_pl.cli.fusion_cli import FusionCLI
from fusion_pl.cli.run import run, run_reporting_errors
from fusion_pl.cli.shard import shard_command
from fusion_pl.data_check.command import check_command
from fusion_pl.evaluate.command import evaluate_command
from fusion_pl.explain.command import explain_command
from fusion_pl.export.command import export_command
from fusion_pl.serve.command import serve_command

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "explain": explain_command,
    "evaluate": evaluate_command,
    "serve": serve_command,
    "export": export_command,
    "data check": check_command,
    "data shard": shard_command,
}


class ParsedError(Exception):
    """Carries the parsed options out of the command."""


def parse(subcommand, *arguments):
    """Return the configuration of a command; fail with its error message where it is refused."""
    if subcommand == "data":
        subcommand, *arguments = f"data {arguments[0]}", *arguments[1:]

    if subcommand == "compare":
        given, extra = read_arguments(list(arguments))
        return plan_runs(read_base_config(given.config), given.fusions, given.inputs, given.seeds, extra)

    def stop_training(cli):
        raise ParsedError(cli.config[cli.config.subcommand])

    def stop_predicting(*arguments):
        raise ParsedError(arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fusion-pl"])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text,label\na,b\n")))  # for --data.manifest -
        patch.setattr(FusionCLI, "before_instantiate_classes", stop_training)
        patch.setattr("fusion_pl.cli.checkpoint_options.find_checkpoint", stop_predicting)
        try:
            if subcommand in COMMANDS:
                code = run_reporting_errors(lambda: COMMANDS[subcommand](list(arguments)))
            else:
                code = run(subcommand, list(arguments))
        except ParsedError as parsed:
            return parsed.args[0]
    raise AssertionError(f"fusion-pl {subcommand} {' '.join(arguments)} ended with {code} before anything was built")
