"""Run a command and report errors; exit code 0, 1 if no row is predicted, 2 after an error, 130 or 143 if stopped."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from fusion_pl.cli.errors import user_message
from fusion_pl.cli.fusion_cli import FusionCLI
from fusion_pl.cli.parsing import refuse_repeated_options
from fusion_pl.cli.runs import LOGGER
from fusion_pl.data.base import FusionData
from fusion_pl.messages import escape_unprintable
from fusion_pl.module import FusionClassifier
from fusion_pl.training.console import configure_logging
from fusion_pl.training.interrupt import StoppedBySignal, StopSignals, exit_code, is_rank_zero
from fusion_pl.training.run_files import WriteConfig

CLI = TypeVar("CLI", bound=FusionCLI)


def run(subcommand: str, arguments: list[str]) -> int:
    """Run fit, validate, test or predict, and return the exit code of ``run_reporting_errors``."""

    @StopSignals().handle_signals()
    def command() -> int:
        if subcommand == "predict":
            from fusion_pl.prediction.command import predict_command

            return predict_command(arguments)
        refuse_repeated_options(arguments)
        run_trainer(subcommand, arguments)
        return 0

    return run_reporting_errors(command)


def run_reporting_errors(command: Callable[[], int | None]) -> int:
    """Run a command, print a user error as one sentence, and return the exit code.

    Returns:
        The result of the command, 0 for None; 2 after an error that the user can fix; 130 or 143 if stopped by Ctrl-C
        or SIGTERM.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except StoppedBySignal as stop:
        if is_rank_zero():
            print(stop, file=sys.stderr)
        return exit_code(stop.signum)
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        print(f"fusion-pl: error: {escape_unprintable(message)}", file=sys.stderr)
        return 2


def run_trainer(subcommand: str, arguments: list[str], callbacks: Sequence[Callback] = ()) -> FusionCLI:
    """Run fit, validate or test, and return the ``FusionCLI`` with its trainer, model and data.

    ``callbacks`` are added to the configured callbacks, but not to the saved configuration.
    """
    configure_logging()
    sys.argv[1:] = [subcommand, *arguments]  # Lightning starts other processes with these arguments
    return build_cli(FusionCLI, subcommand, callbacks)


def build_cli(cls: type[CLI], subcommand: str = "fit", callbacks: Sequence[Callback] = ()) -> CLI:
    """Construct a ``FusionCLI``, whose constructor runs the command."""
    return cls(
        subcommand,
        FusionClassifier,
        FusionData,
        subclass_mode_data=True,
        trainer_defaults={"logger": LOGGER, "max_epochs": 20, "callbacks": list(callbacks)},
        seed_everything_default=0,
        save_config_callback=WriteConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "fusion-pl", "exit_on_error": False, "allow_abbrev": False},
        auto_configure_optimizers=False,
    )


class _ParserReadyError(Exception):
    """Raised when the parser is complete, so that the constructor of LightningCLI ends before it runs the command."""


class ParserOnly(FusionCLI):
    """Command line that ends when its parser is complete, see ``build_parser``."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """End the constructor."""
        del parser, args
        (ready,) = self._subcommand_parsers.values()
        raise _ParserReadyError(ready)


def build_parser(cls: type[ParserOnly], subcommand: str = "fit") -> LightningArgumentParser:
    """Return the parser of a command."""
    try:
        build_cli(cls, subcommand)
    except _ParserReadyError as ready:
        parser: LightningArgumentParser = ready.args[0]
    return parser


@functools.cache
def command_parser(subcommand: str) -> LightningArgumentParser:
    """Return the argument parser of fit, validate or test."""
    return build_parser(ParserOnly, subcommand)
