"""Parse a command line. An error message contains the option, its value and the expected value."""

from __future__ import annotations

import contextlib
import os
import pydoc
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fusion_pl.cli.options import LINKED_OPTIONS, Option, cli_options, options_of, options_of_class
from fusion_pl.config import RENAMED_ARGUMENTS, missing_module_message
from fusion_pl.messages import did_you_mean, one_line
from fusion_pl.types import UserError

TYPE_DESCRIPTIONS = {
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
SUBCOMMAND_PREFIX = re.compile(r"^(?:fit|validate|test)\.")  # jsonargparse adds this prefix to option keys
FILE_SUFFIXES = (".yaml", ".yml", ".json")
REPEATABLE_OPTIONS = ("config", "c")  # later files override earlier files
RENAMED = {"model.loss.inputs": "auxiliary_weight"} | RENAMED_ARGUMENTS


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a command line; raise a ``UserError`` that contains the wrong option."""
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UserError(explain_parse_error(error, parser, arguments)) from error


def parse_checkpoint_command(
    parser: ArgumentParser, arguments: Sequence[str], with_data_class: bool = False, repeatable: Sequence[str] = ()
) -> Namespace:
    """Parse the command line of a command that reads a checkpoint; refuse what belongs to ``fusion-pl fit``.

    Args:
        parser: parser of the command.
        arguments: the command line.
        with_data_class: whether ``--data`` may be a class.
        repeatable: options that may be repeated.
    """
    refuse_repeated_options(arguments, repeatable)
    for key, value in cli_options(arguments):
        is_file = value.endswith(FILE_SUFFIXES)
        if key == "data" and is_file and not Path(value).is_file():
            raise UserError(
                f"--data {value}: there is no such file; give a YAML file of options, or single options, such as "
                "--data.manifest"
            )
        is_class = not is_file and re.fullmatch(r"[A-Za-z_][\w.]*", value) and not Path(value).exists()
        if key in REPEATABLE_OPTIONS or (key == "data" and is_class and not with_data_class):
            refused = "no --config" if with_data_class else "neither --config nor a class for --data"
            raise UserError(
                f"{parser.prog} takes {refused}, because the checkpoint contains the model and the columns of its "
                "inputs: give the table with --data.manifest" + (", or other data with --data CLASS" * with_data_class)
            )
    return parse(parser, arguments).clone(with_meta=False)  # without the path of a file of options


def refuse_repeated_options(arguments: Iterable[str], repeatable: Iterable[str] = REPEATABLE_OPTIONS) -> None:
    """Raise a ``UserError`` for repeated options that are not ``repeatable``: only the last would have an effect."""
    lists: tuple[str, ...] = ()  # --trainer.callbacks+ A --trainer.callbacks.x 1 --trainer.callbacks+ B …
    seen: dict[str, str] = {}
    for key, value in cli_options(arguments):
        if key.endswith("+"):
            lists += (key[:-1],)
        elif key not in repeatable and not key.startswith(lists):
            if key in seen:
                raise UserError(f"--{key} is given twice ({seen[key]} and {value}): give it once")
            seen[key] = value


def refuse_linked_options(arguments: Iterable[str]) -> None:
    """Raise a ``UserError`` for an option, on the command line or in a file, that another option would override."""
    for key, value in cli_options(arguments):
        content: object = None
        if key in REPEATABLE_OPTIONS and Path(value).is_file():
            with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # reported when the file is parsed
                content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
        for linked, source in LINKED_OPTIONS.items():
            owner, _, name = linked.partition(".")
            section = content.get(owner) if isinstance(content, dict) else None
            given = section.get("init_args") if isinstance(section, dict) else None
            if (
                key == linked
                or key.startswith(f"{linked}.")
                or (isinstance(given, dict) and given.get(name) is not None)
            ):
                raise UserError(f"{linked} is set by {source}: give {source} instead")


def explain_parse_error(error: ArgumentError, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Return a one-sentence message for a parser error, whose chain of causes has one error per level of nesting."""
    chain: list[BaseException] = [error]
    while (parent := chain[-1].__cause__) is not None:
        chain.append(parent)
    cause, messages, options = chain[-1], [str(item) for item in chain], options_of(parser)
    if isinstance(cause, UserError):
        return str(cause)
    return (
        _command_line_error(messages[0], options, arguments)
        or _file_error(cause, messages, options, arguments)
        or _value_error(cause, messages, options, arguments)
        or one_line(messages[0].replace("Parser key ", ""))
    )


def _command_line_error(message: str, options: Iterable[str], arguments: Sequence[str]) -> str | None:
    """Return the message for an option that does not exist or has no value."""
    fallback_hint = "; --help-all shows all options"
    if match := re.match(r"(?!Parser key).*unrecognized arguments: (\S+)", message):
        word = match[1]
        if not word.startswith("-"):
            return (
                f"{word!r} is not the value of an option: put quotation marks around a value with spaces, and commas "
                "without spaces between the items of a list (a,b)"
            )
        key = word.lstrip("-").partition("=")[0]
        return f"there is no option --{key}{did_you_mean(key, options, '--') or fallback_hint}"
    if match := re.search(r"does not accept option '(.+?)'", message):  # in a configuration file
        return f"there is no option {match[1]}{did_you_mean(match[1], options) or fallback_hint}"
    if re.search(r"expected (one|at least one) argument", message):
        empty = next((key for key, value in cli_options(arguments) if not value or value.startswith("--")), "an option")
        return f"--{empty} has no value: write one after it"
    return None


def _file_error(
    cause: BaseException, messages: Sequence[str], options: Iterable[str], arguments: Sequence[str]
) -> str | None:
    """Return the message for a configuration file that is missing or invalid."""
    key = next(iter(_keys_in_messages(messages)), "config")
    if isinstance(cause, yaml.MarkedYAMLError):
        return _yaml_error(cause, arguments)
    if messages[0].startswith("Unexpected config"):
        return "--config must be the path of a YAML file with keys such as model, data and trainer"
    if match := re.search(r"File does not exist: '(.+)'", str(cause)):
        return f"there is no file {os.path.relpath(match[1])} (looked for {match[1]}): check --{key}"
    if match := re.search(r"Path is not a file: '(.+)'", str(cause)):
        return f"--{key} {os.path.relpath(match[1])} is a folder, expected a YAML file"
    if match := re.search(r"Unable to load config ['\"](.+?)['\"]", messages[0]):
        example = next((f", such as --{option}" for option in options if option.startswith(f"{key}.")), "")
        return f"--{key} {match[1]}: there is no such file; give a YAML file of options, or single options{example}"
    return None


def _value_error(
    cause: BaseException, messages: Sequence[str], options: dict[str, Option], arguments: Sequence[str]
) -> str | None:
    """Return the message for an invalid value of an option."""
    keys = _keys_in_messages(messages)
    if match := re.search(r"arguments? (?:is|are) required: (.+)", str(cause)):
        return _required_error(match[1], keys)
    option = options.get(keys[0]) if keys else None
    if option is None:
        return None
    unknown = re.match(r"Option '(.+?)' is not accepted|unrecognized arguments: --([^=\s]+)", str(cause))
    path = (unknown[1] or unknown[2]).split(".") if unknown else keys[-1:]  # of a dictionary: with a key in it
    paths = [path for message in messages for path in re.findall(r"class_path[ =]'([\w.]+)'", message)[-1:]]
    cls = None
    with contextlib.suppress(pydoc.ErrorDuringImport):  # reported below by _class_error
        cls = pydoc.locate(paths[0]) if paths else None
    class_options: dict[str, Option] = {}
    if isinstance(cls, type) and (len(keys) > 1 or unknown):
        class_options = {key.rpartition(".")[2]: inner for key, inner in options_of_class(cls, option).items()}
    last = path[0] if unknown and class_options and path[0] not in class_options else path[-1]
    nested = [key for key, _ in cli_options(arguments) if key.startswith(f"{keys[0]}.")]
    full = next((key for key in nested if key.endswith(f".{last}")), ".".join(dict.fromkeys([keys[0], last])))
    if unknown and paths:
        new = RENAMED.get(full) or RENAMED.get(last)
        hint = f": it is called {new} now" if new else did_you_mean(last, class_options)
        owner = full.removesuffix(f".{last}")
        return f"there is no option {last!r} for {owner}{hint}; {paths[0]} takes {', '.join(class_options)}"
    if "is abstract" in str(cause):
        first = next(iter(nested), option.key)
        owner = first.rpartition(".")[0] if get_origin(option.type) is dict else option.key
        return f"--{first} has no class: give a class first, {_class_example(option, owner)}, or --config"
    if full not in nested and class_options and get_origin(option.type) is dict:
        full = f"{last} of {paths[0]} in {option.key}"  # the error does not contain the key in the dictionary
    option = class_options.get(last, option)
    return (
        _ambiguous_class_error(messages, full)
        or _class_error(cause, messages, full, option)
        or _type_error(messages, full, option)
    )


def _keys_in_messages(messages: Iterable[str]) -> list[str]:
    """Return the keys on the path to the wrong value, outermost first."""
    matches = (re.match(r'Parser key "([^"]+)"', message) for message in messages)
    return list(dict.fromkeys(SUBCOMMAND_PREFIX.sub("", match[1]) for match in matches if match))


def _innermost_message(messages: Sequence[str]) -> str:
    """Return the message about the wrong value itself, which follows the message with the innermost key."""
    last = max((index for index, message in enumerate(messages) if message.startswith("Parser key")), default=-1)
    return next(iter(messages[last + 1 :]), messages[-1])


def _ambiguous_class_error(messages: Sequence[str], key: str) -> str | None:
    match = re.search(r"Multiple subclasses with name (\w+)\. .*?: (.+?)\.?$", "\n".join(messages), re.MULTILINE)
    return match and f"{key}: several classes are called {match[1]}: give the class path of one of them, {match[2]}"


def _class_error(cause: BaseException, messages: Sequence[str], key: str, option: Option) -> str | None:
    """Return the message for a class that cannot be imported or is not a subclass of the expected base."""
    detail = _innermost_message(messages)
    bases = " or ".join(f"{'an' if base.__name__[0] in 'AEIO' else 'a'} {base.__name__}" for base in option.bases)
    if match := re.match(r"Expected '([\w.]+)' to be a subclass of|Import path ([\w.]+) does not ", str(cause)):
        return f"{key}: {match[1] or match[2]} is not {bases}; give a class {_class_example(option, key)}"
    prefix = r"(?:Expected a dot import path string: |Got value: |Given value: )(?:(?:Namespace\(|\{.)class_path\W+)?"
    value = re.search(prefix + r"([\w.]+(?=')|\S+)", detail)
    if not option.bases or not value:
        return None
    if isinstance(cause, ModuleNotFoundError):
        return f"{key}: {missing_module_message(cause, value[1])}"
    if isinstance(cause, ImportError):
        return f"{key}: {value[1]} cannot be imported: {cause}"
    other_types = set(re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", detail)) - {"NoneType"}
    if isinstance(cause, AttributeError) or ("dot import path" in detail and not other_types):
        hint = did_you_mean(value[1].rpartition(".")[2], [cls.__name__ for cls in option.classes])
        return f"{key}: there is no class {value[1]!r}{hint or f'; give {bases} {_class_example(option, key)}'}"
    return None


def _class_example(option: Option, key: str) -> str:
    """Return an example of a class as the value of an option, from fusion_pl if possible."""
    ours = [cls.__name__ for base in option.bases if base.__module__.startswith("fusion_pl.") for cls in option.classes]
    return f"such as --{key} {ours[0]}" if ours else "by its class path"


def _type_error(messages: Sequence[str], key: str, option: Option) -> str | None:
    """Return the message for a value of a wrong type, with the expected types."""
    detail = _innermost_message(messages)
    values = re.findall(r"(?:Given value|Got value): (.+?)$", detail, re.MULTILINE)
    # jsonargparse removes the value from the text, so that "a" is lost if it is the value, too.
    types = re.findall(
        r"(?:Expected an? |Expected (?=<class )|Not of type )(.+?)(?:\. Got value.*|: .*)?$", detail, re.MULTILINE
    )
    types = [name for name in types if name != "Path" and "path but" not in name]  # jsonargparse lists str as well
    expected = [_type_name(name) for name in types if option.bases or not name.startswith("dot import path")]
    if not values or not expected:
        return None
    if nested := re.match(r"NestedArg\(key='(.+?)', val=(.+)\)", values[-1]):
        key, values = key if key.endswith(f".{nested[1]}") else f"{key}.{nested[1]}", [nested[2]]
    if "a number" in expected:
        expected = [name for name in expected if name != "a whole number"]
    container = f" in {values[-1]}" if len(values) > 1 else ""
    return f"{key} is {values[0]}{container}, expected {' or '.join(dict.fromkeys(expected))}"


def _type_name(name: str) -> str:
    """Describe a type such as ``<class 'int'>`` or ``typing.Literal['a', 'b']`` in words."""
    if match := re.match(r"<class '(?:\w+\.)*(\w+)'>", name):
        return TYPE_DESCRIPTIONS.get(match[1], match[1])
    if match := re.match(r"typing\.Literal\[(.+)\]", name):
        return f"one of {match[1]}" if ", " in match[1] else match[1]
    return "a class path" if name.startswith("dot import path") else TYPE_DESCRIPTIONS.get(name, name)


def _required_error(names: str, keys: Sequence[str]) -> str:
    """Return the message for missing required options, with a usage hint."""
    owner = [key for key in keys if key != "config"][:1]
    options = [SUBCOMMAND_PREFIX.sub("", ".".join([*owner, name])) for name in names.split(", ")]
    hint = "" if owner or "data" not in options else ", or --config with a file such as configs/keypad.yaml"
    return f"required: {', '.join(options)}; give {' '.join(f'--{name} …' for name in options)}{hint}"


def _yaml_error(error: yaml.MarkedYAMLError, arguments: Sequence[str]) -> str:
    """Return the message for a file or value that is not valid YAML, with its position."""
    source = "the value of an option"
    for key, value in cli_options(arguments):
        if (key in REPEATABLE_OPTIONS or value.endswith(FILE_SUFFIXES)) and os.path.isfile(value):
            try:
                yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                source = value
                break
    mark = error.problem_mark
    position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{source}{position} is not YAML: {one_line(str(error.problem))}"
