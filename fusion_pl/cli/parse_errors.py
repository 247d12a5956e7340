"""Say in one sentence what a parser refuses: which option, what it was given, what it expects."""

from __future__ import annotations

import difflib
import os
import pydoc
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from fusion_pl.cli.options import Option, options_of, options_of_class, options_on
from fusion_pl.config import RENAMED_ARGUMENTS, no_module
from fusion_pl.messages import one_line
from fusion_pl.types import UserError

TYPES = {
    "int": "a whole number",
    "PositiveInt": "a whole number of at least 1",
    "Seed": "a whole number from 0 to 4294967295",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list such as '[a, b]'",
    "tuple": "a list of values such as '[0.9, 0.999]'",
    "dict": "a dictionary such as '{name: value}'",
    "timedelta": "a time such as 0:30:00",
    "Iterable": "a list of them",
}
PATHS = {"Path"}  # a text, which jsonargparse lists as well
VERBS = ("fit.", "validate.", "test.")
RENAMED = {"model.loss.inputs": "auxiliary_weight"} | RENAMED_ARGUMENTS


def explain(error: ArgumentError, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Say in a sentence what a parser refuses.

    Args:
        error: that the parser raised. What it was raised from, one exception for each level of a nested value, says
            which part of it is wrong.
        parser: of the command.
        arguments: that it was given.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)  # type: ignore[arg-type]
    leaf, messages = chain[-1], [str(one) for one in chain]
    if isinstance(leaf, UserError):
        return str(leaf)
    return (
        _of_line(messages[0], options_of(parser), arguments)
        or _of_file(leaf, messages, options_of(parser), arguments)
        or _of_value(leaf, messages, options_of(parser), arguments)
        or one_line(messages[0].replace("Parser key ", ""))
    )


def _of_line(message: str, known: Iterable[str], arguments: Sequence[str]) -> str | None:
    """Say what is wrong with the command line itself, whatever the values."""
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        word = found[1]
        if not word.startswith("-"):
            return f"{word!r} belongs to no option: one takes one value; put quotation marks around one with spaces"
        key = word.lstrip("-").partition("=")[0]
        near = guess(key, known, "--") or "; --help-all lists them"
        return f"there is no option --{key}{near}"
    if found := re.search(r"does not accept option '(.+?)'", message):  # in a file
        return f"there is no option {found[1]}{guess(found[1], known) or '; --help-all lists them'}"
    if re.search(r"expected (one|at least one) argument", message):
        empty = next((key for key, value in options_on(arguments) if not value or value.startswith("--")), "an option")
        return f"--{empty} has no value: write one after it"
    return None


def _of_file(
    leaf: BaseException, messages: Sequence[str], known: Iterable[str], arguments: Sequence[str]
) -> str | None:
    """Say what is wrong with a configuration file."""
    key = next(iter(_keys(messages)), "config")
    if isinstance(leaf, yaml.MarkedYAMLError):
        return _not_yaml(leaf, arguments)
    if messages[0].startswith("Unexpected config"):
        return "--config must name a YAML file with keys such as model, data and trainer; this one holds something else"
    if found := re.search(r"File does not exist: '(.+)'", str(leaf)):
        return f"there is no file {os.path.relpath(found[1])} (looked for {found[1]}): check --{key}"
    if found := re.search(r"Path is not a file: '(.+)'", str(leaf)):
        return f"--{key} {os.path.relpath(found[1])} is a folder, expected a YAML file"
    if found := re.search(r"Unable to load config ['\"](.+?)['\"]", messages[0]):
        example = next((f", such as --{one}" for one in known if one.startswith(f"{key}.")), "")
        return f"--{key} {found[1]}: there is no such file; give one with its options, or each by itself{example}"
    return None


def _of_value(
    leaf: BaseException, messages: Sequence[str], known: dict[str, Option], arguments: Sequence[str]
) -> str | None:
    """Say what is wrong with the value of an option."""
    keys = _keys(messages)
    if found := re.search(r"arguments? (?:is|are) required: (.+)", str(leaf)):
        return _required(found[1], keys)
    option = known.get(keys[0]) if keys else None
    if option is None:
        return None
    refused = re.match(r"Option '(.+?)' is not accepted", str(leaf))
    last = refused[1].rpartition(".")[2] if refused else keys[-1]
    path = next((named[-1] for one in messages if (named := re.findall(r"class_path[ =]'([\w.]+)'", one))), None)
    cls = pydoc.locate(path) if path else None
    inner: dict[str, Option] = {}
    if isinstance(cls, type) and (len(keys) > 1 or refused):
        inner = {key.rpartition(".")[2]: one for key, one in options_of_class(cls, option).items()}
    under = [key for key, _ in options_on(arguments) if key.startswith(f"{keys[0]}.")]
    full = next((key for key in under if key.endswith(f".{last}")), ".".join(dict.fromkeys([keys[0], last])))
    if refused:
        near = f": it is called {new} now" if (new := RENAMED.get(full) or RENAMED.get(last)) else guess(last, inner)
        return f"there is no option {last!r} for {full.removesuffix(f'.{last}')}{near}; {path} takes {', '.join(inner)}"
    if "is abstract" in str(leaf):
        first = next(iter(under), option.key)
        place = first.rpartition(".")[0] if get_origin(option.type) is dict else option.key
        return f"--{first} is of no class yet: name that first {_offered(option, place)}, or give --config"
    if full not in under and inner and get_origin(option.type) is dict:
        full = f"{last} of {path} in {option.key}"  # of which entry is not told
    option = inner.get(last, option)
    return _ambiguous(messages, full) or _no_class(leaf, messages, full, option) or _wrong(messages, full, option)


def _keys(messages: Iterable[str]) -> list[str]:
    """Return the keys that lead to the wrong value, the outermost first."""
    found = [one[1] for message in messages if (one := re.match(r'Parser key "([^"]+)"', message))]
    for subcommand in VERBS:
        found = [key.removeprefix(subcommand) for key in found]
    return list(dict.fromkeys(found))


def _detail(messages: Sequence[str]) -> str:
    """Return what is said of the wrong value itself: the first message below the innermost key."""
    last = max((at for at, message in enumerate(messages) if message.startswith("Parser key")), default=-1)
    return next(iter(messages[last + 1 :]), messages[-1])


def _ambiguous(messages: Sequence[str], key: str) -> str | None:
    """Say that several classes have the name that was given."""
    found = re.search(r"Multiple subclasses with name (\w+)\. .*?: (.+?)\.?$", "\n".join(messages), re.MULTILINE)
    return found and f"{key}: several classes are called {found[1]}: give the whole path of one of them, {found[2]}"


def _no_class(leaf: BaseException, messages: Sequence[str], key: str, option: Option) -> str | None:
    """Say that a class cannot be found, or is of another kind."""
    detail = _detail(messages)
    kind = " or ".join(f"{'an' if base.__name__[0] in 'AEIO' else 'a'} {base.__name__}" for base in option.bases)
    if found := re.match(r"Expected '([\w.]+)' to be a subclass of|Import path ([\w.]+) does not ", str(leaf)):
        return f"{key}: {found[1] or found[2]} is not {kind}; name one {_offered(option, key)}"
    given = re.search(r"(?:Expected a dot import path string: |Got value: |Given value: )(\S+)", detail)
    if not option.bases or not given:
        return None
    if isinstance(leaf, ModuleNotFoundError):
        return f"{key}: {no_module(leaf, given[1])}"
    if isinstance(leaf, ImportError):
        return f"{key}: {given[1]} cannot be imported: {leaf}"
    if isinstance(leaf, AttributeError) or ("dot import path" in detail and not _plain_types(detail)):
        close = difflib.get_close_matches(given[1].rpartition(".")[2], [cls.__name__ for cls in option.classes], n=1)
        did = f"did you mean {close[0]}?" if close else f"name {kind} {_offered(option, key)}"
        return f"{key}: there is no class {given[1]!r}; {did}"
    return None


def _offered(option: Option, key: str) -> str:
    """Say how a class is named, with one of this project where it has some."""
    ours = [cls.__name__ for base in option.bases if base.__module__.startswith("fusion_pl.") for cls in option.classes]
    return f"such as --{key} {ours[0]}" if ours else "by its class path"


def _plain_types(detail: str) -> list[str]:
    """Return the names of the types, other than classes to be built, that would have been accepted."""
    return [name for name in re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", detail) if name != "NoneType"]


def _wrong(messages: Sequence[str], key: str, option: Option) -> str | None:
    """Say what a value is, and what was expected."""
    detail = _detail(messages)
    given = re.findall(r"(?:Given value|Got value): (.+?)$", detail, re.MULTILINE)
    lines = re.findall(r"(?:Expected an? |Not of type )(.+?)(?:\. Got value.*|: .*)?$", detail, re.MULTILINE)
    lines = [name for name in lines if name not in PATHS and "path but" not in name]
    expected = [_type(name) for name in lines if option.bases or not name.startswith("dot import path")]
    if not given or not expected:
        return None
    if nested := re.match(r"NestedArg\(key='(.+?)', val=(.+)\)", given[-1]):
        key, given = key if key.endswith(f".{nested[1]}") else f"{key}.{nested[1]}", [nested[2]]
    if "a number" in expected:
        expected = [name for name in expected if name != "a whole number"]
    inside = f" in {given[-1]}" if len(given) > 1 else ""
    return f"{key} is {given[0]}{inside}, expected {' or '.join(dict.fromkeys(expected))}"


def _type(name: str) -> str:
    """Turn <class 'int'> and typing.Literal['a', 'b'] into words."""
    if found := re.match(r"<class '(?:\w+\.)*(\w+)'>", name):
        return TYPES.get(found[1], found[1])
    if found := re.match(r"typing\.Literal\[(.+)\]", name):
        return f"one of {found[1]}" if ", " in found[1] else found[1]
    return "a class path" if name.startswith("dot import path") else TYPES.get(name, name)


def _required(names: str, keys: Sequence[str]) -> str:
    """Say what is missing, and how to give it."""
    inside = [key for key in keys if key != "config"][:1]
    wanted = [".".join([*inside, name]) for name in names.split(", ")]
    for subcommand in VERBS:
        wanted = [name.removeprefix(subcommand) for name in wanted]
    hint = "" if inside or "data" not in wanted else ", or --config with a file such as configs/keypad.yaml"
    return f"required: {', '.join(wanted)}; give {' '.join(f'--{name} …' for name in wanted)}{hint}"


def _not_yaml(error: yaml.MarkedYAMLError, arguments: Sequence[str]) -> str:
    """Say where a file, or a value of the command line, is not YAML."""
    what = "the value of an option"
    for _, value in options_on(arguments):
        if os.path.isfile(value):
            try:
                yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                what = value
    mark = error.problem_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{what}{place} is not YAML: {one_line(str(error.problem))}"


def guess(name: str, known: Iterable[str], before: str = "") -> str:
    """Return "; did you mean …?" where a known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {before}{close[0]}?" if close else ""
