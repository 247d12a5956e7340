"""Read type, default and help of the options of a parser, and of the constructors that its options accept."""

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

# Types whose values are given directly on the command line, not by a class path.
PLAIN_TYPES = (str, int, float, bool, type(None), Path, timedelta, dict, list, tuple, Tensor)

LINKED_OPTIONS = {"data.task": "model.task"}  # option -> option that sets it


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        key: name without dashes, such as ``model.encoders.NAME``, where ``NAME`` is the name of an input.
        type: type annotation.
        default: default value; None if there is none.
        help: description from the docstring, as one line.
        required: whether the command fails without this option.
        skipped: constructor arguments of its classes that are no options.
    """

    key: str
    type: Any
    default: Any
    help: str
    required: bool
    skipped: frozenset[str] = frozenset()

    @property
    def choices(self) -> list[Any]:
        """Allowed values, if the type is a ``Literal`` or ``bool``."""
        return list(_choices(self.type))

    @property
    def bases(self) -> list[type]:
        """Classes of which the option accepts any subclass as ``class_path``."""
        return list(dict.fromkeys(_base_classes(self.type)))

    @property
    def classes(self) -> list[type]:
        """Accepted classes that are imported and not abstract."""
        return list(dict.fromkeys(cls for base in self.bases for cls in _concrete_subclasses(base)))


def options_of(parser: argparse.ArgumentParser) -> dict[str, Option]:
    """Return the options of a parser by key, without ``--help`` and ``--config``."""
    options = {}
    for action in parser._actions:
        is_file = type(action).__name__ == "ActionConfigFile"
        if action.option_strings and action.default != argparse.SUPPRESS and not is_file:
            hint = getattr(action, "_typehint", action.type)
            text = " ".join((action.help or "").split()).replace("%%", "%")  # doubled for argparse
            default = action.default.as_dict() if isinstance(action.default, Namespace) else action.default
            required = bool(action.required) and default is None
            skipped = frozenset(getattr(action, "sub_add_kwargs", {}).get("skip") or ())
            options[action.dest] = Option(action.dest, hint, default, text, required, skipped)
    return options


def options_of_class(cls: type, option: Option) -> dict[str, Option]:
    """Return the constructor arguments of a class as nested options, such as ``data.batch_size`` for ``data``.

    Positional arguments of a factory (such as ``dims`` of a fusion head) are not options.
    """
    hints = (option.type, *get_args(option.type))
    positional: Any = next((get_args(hint)[0] for hint in hints if _is_callable_type(hint)), [])
    key = f"{option.key}.NAME" if get_origin(option.type) is dict else option.key
    options = dict(_constructor_options(cls, key, len(positional)))
    default = option.default if isinstance(option.default, dict) else {}
    skipped = {*LINKED_OPTIONS, *(f"{key}.{name}" for name in option.skipped)}
    options = {name: inner for name, inner in options.items() if name not in skipped}
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
    """Yield every option of a parser with None, and every constructor option of the accepted classes with its class.

    Only classes of fusion_pl and the default class are included.
    """
    for option in options_of(parser).values():
        yield option, None
        default = option.default.get("class_path") if isinstance(option.default, dict) else None
        if option.key != "trainer.callbacks":  # the command adds the callbacks of fusion_pl itself
            for cls in option.classes:
                if cls.__module__.startswith("fusion_pl.") or (default or "").rpartition(".")[2] == cls.__name__:
                    yield from ((inner, cls) for inner in options_of_class(cls, option).values())


def cli_options(arguments: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield key and value of every option of a command line; keys are without dashes and ``init_args``."""
    words = list(arguments)
    for index, word in enumerate(words):
        if word.startswith("-") and not re.match(r"-(\d|\.\d|$)", word):
            option, equals, value = word.partition("=")
            key = option.lstrip("-").replace(".init_args.", ".")
            yield key, value if equals else " ".join(words[index + 1 : index + 2])


def _is_callable_type(hint: Any) -> bool:
    return get_origin(hint) is collections.abc.Callable


def _choices(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif hint is bool:
        yield from ("true", "false")
    elif not _is_callable_type(hint) and get_origin(hint) not in (dict, list):
        for inner in get_args(hint):
            yield from _choices(inner)


def _base_classes(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and not get_args(hint):
        if not issubclass(hint, PLAIN_TYPES):
            yield hint
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint)[-1:] if _is_callable_type(hint) else get_args(hint):
            yield from _base_classes(inner)


def _concrete_subclasses(base: type) -> Iterator[type]:
    if not inspect.isabstract(base) and not base.__name__.startswith("_") and "<locals>" not in base.__qualname__:
        yield base
    subclasses: list[type] = base.__subclasses__()
    for cls in subclasses:
        yield from _concrete_subclasses(cls)
