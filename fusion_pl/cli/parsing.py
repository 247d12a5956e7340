"""Parse a command line; an error in it is one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fusion_pl.cli.options import options_on
from fusion_pl.cli.parse_errors import explain
from fusion_pl.types import UserError

CONFIG = ("config", "c")  # later files override earlier ones


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a command line.

    Raises:
        UserError: names the option that is wrong.
    """
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(explain(error, parser, arguments)) from error


def refuse_repeated(arguments: Iterable[str], repeatable: Iterable[str] = CONFIG) -> None:
    """Refuse an option that is given twice: only the last would have an effect.

    Args:
        arguments: what follows the subcommand on the command line.
        repeatable: options that may be given more than once.

    Raises:
        UserError: names the first one.
    """
    lists: tuple[str, ...] = ()  # --trainer.callbacks+ A --trainer.callbacks.x 1 --trainer.callbacks+ B …
    seen: dict[str, str] = {}
    for key, value in options_on(arguments):
        if key.endswith("+"):
            lists += (key[:-1],)
        elif key not in repeatable and not key.startswith(lists):
            if key in seen:
                raise UserError(f"--{key} is given twice ({seen[key]} and {value}): give it once")
            seen[key] = value
