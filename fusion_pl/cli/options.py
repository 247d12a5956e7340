"""What a parser takes: each option with its type, default and help, also those of the classes that options name."""

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

NOT_BUILT = (str, int, float, bool, type(None), Path, timedelta, dict, list, tuple, Tensor)


class Option(NamedTuple):
    """One option.

    Attributes:
        key: as in ``--key``; ``NAME`` stands for an input's name.
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
        """What it may be, where its type lists that."""
        return list(_choices(self.type))

    @property
    def bases(self) -> list[type]:
        """Whose subclasses it may name, where it takes a class."""
        return list(dict.fromkeys(_bases(self.type)))

    @property
    def classes(self) -> list[type]:
        """The concrete classes that it may name, of those that are loaded."""
        return list(dict.fromkeys(cls for base in self.bases for cls in _concrete(base)))


def options_of(parser: argparse.ArgumentParser) -> dict[str, Option]:
    """Return a parser's own options by key, without those that only ask it for something (help) or load a file."""
    found = {}
    for action in parser._actions:
        if action.option_strings and action.default != argparse.SUPPRESS and not _reads_file(action):
            hint = getattr(action, "_typehint", action.type)
            text = " ".join((action.help or "").split())
            default = _plain(action.default)
            found[action.dest] = Option(action.dest, hint, default, text, bool(action.required) and default is None)
    return found


def options_of_class(cls: type, option: Option) -> dict[str, Option]:
    """Return the options of a class that an option names: ``data.batch_size`` of ``data``.

    Args:
        cls: the class.
        option: that names it. What its callable is given later (a head's ``dims``) is not the user's to give.
    """
    callable_args: Any = next((get_args(one)[0] for one in (option.type, *get_args(option.type)) if _calls(one)), [])
    key = f"{option.key}.NAME" if get_origin(option.type) is dict else option.key
    found = _options_of_class(cls, key, len(callable_args))
    default = option.default if isinstance(option.default, dict) else {}
    given = default.get("init_args") or {} if default.get("class_path", "").rpartition(".")[2] == cls.__name__ else {}
    return {
        name: one._replace(default=given[last], required=False) if (last := name.rpartition(".")[2]) in given else one
        for name, one in found.items()
    }


@functools.cache
def _options_of_class(cls: type, key: str, skipped: int) -> dict[str, Option]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, key, fail_untyped=False, skip={skipped} if skipped else None)
    return options_of(parser)


def walk(parser: argparse.ArgumentParser) -> Iterator[tuple[Option, type | None]]:
    """Yield every option, and after one that takes a class those of each class of this project, and of its default.

    Yields:
        The option, and the class that it belongs to (None: the command itself).
    """
    for option in options_of(parser).values():
        yield option, None
        default = option.default.get("class_path") if isinstance(option.default, dict) else None
        if option.key != "trainer.callbacks":  # ours are not the user's to give
            for cls in option.classes:
                if cls.__module__.startswith("fusion_pl.") or (default or "").rpartition(".")[2] == cls.__name__:
                    yield from ((one, cls) for one in options_of_class(cls, option).values())


def options_on(arguments: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield every option of a command line, without its dashes and ``init_args``, with the word that follows it."""
    words = list(arguments)
    for at, word in enumerate(words):
        if word.startswith("-") and not re.match(r"-(\d|\.\d|$)", word):
            option, equals, value = word.partition("=")
            key = option.lstrip("-").replace(".init_args.", ".")
            yield key, value if equals else " ".join(words[at + 1 : at + 2])


def _reads_file(action: argparse.Action) -> bool:
    return type(action).__name__ == "ActionConfigFile"


def _calls(hint: Any) -> bool:
    return get_origin(hint) is collections.abc.Callable


def _choices(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif hint is bool:
        yield from ("true", "false")
    elif not _calls(hint) and get_origin(hint) not in (dict, list):
        for one in get_args(hint):
            yield from _choices(one)


def _bases(hint: Any) -> Iterator[type]:
    if get_origin(hint) is Literal:
        return
    if isinstance(hint, type) and not get_args(hint):
        if not issubclass(hint, NOT_BUILT):
            yield hint
        return
    for one in get_args(hint)[-1:] if _calls(hint) else get_args(hint):
        yield from _bases(one)


def _concrete(base: type) -> Iterator[type]:
    if not inspect.isabstract(base) and not base.__name__.startswith("_") and "<locals>" not in base.__qualname__:
        yield base
    subclasses: list[type] = base.__subclasses__()
    for cls in subclasses:
        yield from _concrete(cls)


def _plain(default: Any) -> Any:
    return default.as_dict() if isinstance(default, Namespace) else default
