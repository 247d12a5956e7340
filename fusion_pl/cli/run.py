"""Run a command: 0 when it succeeds, one sentence and 2 after a user's mistake, 130 or 143 when it is stopped."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from fusion_pl.cli.errors import user_message
from fusion_pl.cli.fusion_cli import FusionCLI
from fusion_pl.cli.parsing import refuse_repeated
from fusion_pl.cli.runs import LOGGER
from fusion_pl.data.base import FusionData
from fusion_pl.messages import printable
from fusion_pl.module import FusionClassifier
from fusion_pl.training.configuration import KeepConfig
from fusion_pl.training.console import configure_logging
from fusion_pl.training.interrupt import Stopped, StopSignals, exit_code, first_process


def run(subcommand: str, arguments: list[str]) -> int:
    """Run fit, validate, test or predict.

    Args:
        subcommand: which one.
        arguments: what follows it on the command line.

    Returns:
        See ``guarded``.
    """
    stoppable = StopSignals().listening()
    if subcommand == "predict":
        from fusion_pl.cli.predict import predict_command

        return guarded(stoppable(lambda: predict_command(arguments)))

    def command() -> None:
        refuse_repeated(arguments)
        train(subcommand, arguments)

    return guarded(stoppable(command))


def guarded(command: Callable[[], object]) -> int:
    """Run a command and tell a user's mistake in one sentence.

    Returns:
        0, 2 after a mistake that the user can fix, 130 or 143 when stopped.
    """
    try:
        command()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as stop:
        if first_process():
            print(stop, file=sys.stderr)
        return exit_code(stop.signum)
    except Exception as error:
        said = user_message(error)
        if said is None:
            raise
        print(f"fusion-pl: error: {printable(said)}", file=sys.stderr)
        return 2
    return 0


def train(subcommand: str, arguments: list[str], callbacks: Sequence[Callback] = ()) -> FusionCLI:
    """Run fit, validate or test, and return what was built for it.

    Args:
        subcommand: which one.
        arguments: what follows it on the command line.
        callbacks: further ones, which are no part of the configuration.
    """
    configure_logging()
    sys.argv[1:] = [subcommand, *arguments]  # what Lightning starts further processes with
    return command_line(FusionCLI, callbacks)


def command_line(kind: type[FusionCLI], callbacks: Sequence[Callback] = ()) -> FusionCLI:
    """Build Lightning's command line over this project's model and data; its constructor runs the command."""
    return kind(
        FusionClassifier,
        FusionData,
        subclass_mode_data=True,
        trainer_defaults={"logger": LOGGER, "max_epochs": 20, "callbacks": list(callbacks)},
        seed_everything_default=0,
        save_config_callback=KeepConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "fusion-pl", "exit_on_error": False, "allow_abbrev": False},
        auto_configure_optimizers=False,
    )


class _ParserReadyError(Exception):
    """Stops the command line once the parsers are complete; Lightning's constructor would go on to training."""


class _ParserOnly(FusionCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        del parser, args
        raise _ParserReadyError(self._subcommand_parsers)


@functools.cache
def parser_of(subcommand: str) -> LightningArgumentParser:
    """Return the parser of fit, validate or test."""
    try:
        command_line(_ParserOnly)
    except _ParserReadyError as ready:
        parsers: dict[str, LightningArgumentParser] = ready.args[0]
    return parsers[subcommand]
