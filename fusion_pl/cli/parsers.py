"""The parsers of fit, validate and test, without running them."""

from __future__ import annotations

import functools
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from fusion_pl.cli.fusion_cli import FusionCLI
from fusion_pl.cli.run import command_line


class _Reader(FusionCLI):
    """Builds the parsers of all verbs and nothing else."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        del parser, args
        raise _BuiltError(self._subcommand_parsers)


class _BuiltError(Exception):
    """Carries the parsers out of the constructor, which else goes on to training."""


@functools.cache
def parser_of(subcommand: str) -> LightningArgumentParser:
    """Return the parser of fit, validate or test."""
    try:
        command_line(_Reader)
    except _BuiltError as built:
        parsers: dict[str, LightningArgumentParser] = built.args[0]
    return parsers[subcommand]
