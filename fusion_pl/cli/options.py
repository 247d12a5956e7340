"""The options of a parser, and of the classes that its options name, with type, default and help."""

from __future__ import annotations

import argparse
import collections.abc
import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

PLAIN_TYPES = (str, int, float, bool, type(None), Path, timedelta, dict, list, tuple, Tensor)  # not given by class path


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        key: as in ``--key``; ``NAME`` in it is the name of an input.
        type: its annotation.
        default: None where there is none.
        help: from the docstring, in one line.
        required: whether a command without it is refused.
    """

    key: str
    type: Any
    default: Any
    help: str
    required: bool

    @property
    def choices(self) -> list[Any]:
        """The allowed values, where the type lists them."""
        return list(_choices(self.type))

    @property
    def bases(self) -> list[type]:
        """The base classes of the classes that may be given."""
        return list(dict.fromkeys(_bases(self.type)))

    @property
    def classes(self) -> list[type]:
        """The imported concrete classes that may be given."""
        return list(dict.fromkeys(cls for base in self.bases for cls in _concrete_subclasses(base)))


def options_of(parser: argparse.ArgumentParser) -> dict[str, Option]:
    """Return the options of a parser by key, without ``--help`` and those that read a configuration file."""
    options = {}
    for action in parser._actions:
        is_file = type(action).__name__ == "ActionConfigFile"
        if action.option_strings and action.default != argparse.SUPPRESS and not is_file:
            hint = getattr(action, "_typehint", action.type)
            text = " ".join((action.help or "").split())
            default = action.default.as_dict() if isinstance(action.default, Namespace) else action.default
            options[action.dest] = Option(action.dest, hint, default, text, bool(action.required) and default is None)
    return options


def options_of_class(cls: type, option: Option) -> dict[str, Option]:
    """Return the options of a class that an option names: ``data.batch_size`` of ``data``.

    Arguments of the option's callable type (``dims`` of a head) are no options.
    """
    hints = (option.type, *get_args(option.type))
    positional: Any = next((get_args(hint)[0] for hint in hints if _is_callable(hint)), [])
    key = f"{option.key}.NAME" if get_origin(option.type) is dict else option.key
    options = dict(_constructor_options(cls, key, len(positional)))
    default = option.default if isinstance(option.default, dict) else {}
    is_default = default.get("class_path", "").rpartition(".")[2] == cls.__name__
    for name, value in (default.get("init_args") or {} if is_default else {}).items():
        if (full := f"{key}.{name}") in options:
            options[full] = options[full]._replace(default=value, required=False)
    return options


@functools.cache
def _constructor_options(cls: type, key: str, positional: int) -> dict[str, Option]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, key, fail_untyped=False, skip={positional} if positional else None)
    return options_of(parser)


def all_options(parser: argparse.ArgumentParser) -> Iterator[tuple[Option, type | None]]:
    """Yield every option of a parser with None, and every option of the classes that it names with its class.

    Of these classes, only this project's and the default are listed.
    """
    for option in options_of(parser).values():
        yield option, None
        default = option.default.get("class_path") if isinstance(option.default, dict) else None
        if option.key != "trainer.callbacks":  # the command adds this project's callbacks by itself
            for cls in option.classes:
                if cls.__module__.startswith("fusion_pl.") or (default or "").rpartition(".")[2] == cls.__name__:
                    yield from ((inner, cls) for inner in options_of_class(cls, option).values())


def cli_options(arguments: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield every option of a command line, without its dashes and ``init_args``, with the word that follows it."""
    words = list(arguments)
    for at, word in enumerate(words):
        if word.startswith("-") and not re.match(r"-(\d|\.\d|$)", word):
            option, equals, value = word.partition("=")
            key = option.lstrip("-").replace(".init_args.", ".")
            yield key, value if equals else " ".join(words[at + 1 : at + 2])


def _is_callable(hint: Any) -> bool:
    return get_origin(hint) is collections.abc.Callable


def _choices(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif hint is bool:
        yield from ("true", "false")
    elif not _is_callable(hint) and get_origin(hint) not in (dict, list):
        for inner in get_args(hint):
            yield from _choices(inner)


def _bases(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and not get_args(hint):
        if not issubclass(hint, PLAIN_TYPES):
            yield hint
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint)[-1:] if _is_callable(hint) else get_args(hint):
            yield from _bases(inner)


def _concrete_subclasses(base: type) -> Iterator[type]:
    if not inspect.isabstract(base) and not base.__name__.startswith("_") and "<locals>" not in base.__qualname__:
        yield base
    subclasses: list[type] = base.__subclasses__()
    for cls in subclasses:
        yield from _concrete_subclasses(cls)
