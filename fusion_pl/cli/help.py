"""``fusion-pl VERB --help``: what users set, with the defaults of the parser itself; ``--help-all`` has the rest."""

from __future__ import annotations

import itertools
import pydoc
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser

from fusion_pl.analysis.compare import compare_parser
from fusion_pl.cli.options import Option, options_of, options_of_class, walk
from fusion_pl.cli.predict import predict_parser
from fusion_pl.cli.run import parser_of
from fusion_pl.data.manifest import ManifestData

ABOUT = {
    "fit": "Train a model. Give a configuration, and on the command line what differs from it; what comes later wins.",
    "validate": "Measure a checkpoint on the validation split, with the configuration that it was trained with.",
    "test": "Measure a checkpoint on the test split, with the configuration that it was trained with.",
    "predict": "Classify the rows of a table with a checkpoint alone: no configuration, no hub.",
    "compare": "Train heads and single inputs with one configuration over several seeds, and report which is best. "
    "Options of fusion-pl fit (--trainer.max_epochs 5) go to every run.",
}
EXAMPLES = {
    "fit": "--config configs/keypad.yaml --data.batch_size 16 --trainer.max_epochs 5 --model.fusion CrossAttention",
    "validate": "--config configs/keypad.yaml",
    "test": "--config configs/keypad.yaml --ckpt_path best",
    "predict": "--ckpt_path best.ckpt --data.manifest new.csv --output predictions.csv",
    "compare": "--config configs/keypad.yaml --fusions Concat,LowRank --output reports/keypad",
}
RUN = ("ckpt_path", "seed_everything", "trainer.logger.name", "trainer.logger.save_dir", "cache", "threads")
HARDWARE = ("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision")
MODEL = (
    *("model.encoders", "model.fusion", "model.missing", "model.pretrained_lr_factor"),
    *("model.loss.label_smoothing", "model.loss.class_weights", "model.loss.auxiliary_weight"),
)
TRAINING = (
    *("trainer.max_epochs", "model.optimizer", "model.optimizer.lr", "model.optimizer.weight_decay"),
    *("model.lr_scheduler", "model.lr_scheduler.warmup", "trainer.accumulate_grad_batches"),
    *("trainer.gradient_clip_val", "early_stopping.monitor", "early_stopping.patience", "checkpoint.monitor"),
)
CONFIG = Option("config", str, None, "YAML file of options, laid over those that were given before it", False)
WIDEST, NAMES = 120, 46


def text(subcommand: str, arguments: Sequence[str], everything: bool = False) -> str:
    """Return the help of a subcommand.

    Args:
        subcommand: which one.
        arguments: of the command; its ``--data`` and ``--config`` say for which data set help is wanted.
        everything: whether to list all options, with all that is known of them.
    """
    lines = [f"usage: fusion-pl {subcommand} {EXAMPLES[subcommand].partition(' ')[0]} … [--OPTION VALUE …]", ""]
    lines += [
        *textwrap.wrap(ABOUT[subcommand], _width()),
        "",
        "example:",
        f"  fusion-pl {subcommand} {EXAMPLES[subcommand]}",
        "",
    ]
    for title, options in sections(subcommand, arguments, everything):
        lines += [f"{title}:", *(line for option in options for line in _lines(option, everything)), ""]
    if subcommand in {"predict", "compare"}:
        return "\n".join(lines)
    last = "In YAML, --a.b 1 is written a: {b: 1}, and a class's own options stand below init_args."
    last = last if everything else f"--help-all has all options, and those of every class. {last}"
    return "\n".join([*lines, *textwrap.wrap(last, _width())])


def sections(subcommand: str, arguments: Sequence[str], everything: bool = False) -> Iterator[tuple[str, list[Option]]]:
    """Yield the groups of options that the help of a subcommand shows."""
    if subcommand == "predict":
        yield "options", list(options_of(predict_parser()).values())
        return
    if subcommand == "compare":
        yield "options", list(options_of(compare_parser()).values())
        return
    parser = parser_of(subcommand)
    if everything:
        yield from _all(parser)
        return
    every: dict[str, Option] = {}
    for option, _ in walk(parser):
        every.setdefault(option.key, option)
    data = data_class(every["data"], arguments)
    rows = [every["data"], *options_of_class(data, every["data"]).values()]
    yield textwrap.shorten(f"data ({data.__name__}: {_first(data.__doc__ or '')})", WIDEST, placeholder=" …"), rows
    yield "model", [every[key] for key in MODEL]
    if subcommand == "fit":
        yield "training", [every[key] for key in TRAINING]
    yield "hardware", [every[key] for key in HARDWARE]
    yield "run", [CONFIG, *(every[key] for key in RUN)]


def _all(parser: ArgumentParser) -> Iterator[tuple[str, list[Option]]]:
    groups: dict[str, list[Option]] = {}
    for option, cls in walk(parser):
        place = "run" if "." not in option.key and option.key != "data" else option.key.partition(".")[0]
        title = place if cls is None else f"{option.key.rpartition('.')[0]} of {cls.__module__}.{cls.__qualname__}"
        groups.setdefault(title, []).append(option)
    yield from groups.items()


def data_class(option: Option, arguments: Sequence[str]) -> type:
    """Return the data set that a command names, in ``--data`` or in its last ``--config`` that has one.

    Args:
        option: ``data`` of the parser.
        arguments: of the command.
    """
    named = None
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for before, word in itertools.pairwise(words):
        if before in {"--config", "-c"} and Path(word).is_file():
            try:
                content = yaml.safe_load(Path(word).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue  # help is wanted, not a refusal
            data = content.get("data") if isinstance(content, dict) else None
            found = data.get("class_path") if isinstance(data, dict) else data
            named = found if isinstance(found, str) else named
        if before in {"--data", "--data.class_path"}:
            named = word
    found = {cls.__name__: cls for cls in option.classes}.get(named or "") or pydoc.locate(named or "")
    return found if isinstance(found, type) else ManifestData


def _lines(option: Option, everything: bool) -> list[str]:
    head = f"  --{option.key} {_value(option)}"
    default = "required" if option.required else f"default: {_shown(option.default)}"
    default = "" if option.default in (None, "", []) and not option.required else default
    said = _plain(option.help).removesuffix(f" ({option.default})")
    if ours := own_classes(option):
        said = f"{'data set' if said.startswith('One or more arguments') else _first(said)}, such as {', '.join(ours)}"
    if not everything:
        said = _first(said)
        room = _width() - NAMES - len(default) - 3 * bool(default)
        said = textwrap.shorten(said, max(room, 20), placeholder=" …")
    body = f"{said} ({default})" if default and said else said or f"({default})" * bool(default)
    wrapped = textwrap.wrap(body, _width() - NAMES) or [""]
    first = [f"{head:<{NAMES}}{wrapped[0]}".rstrip()] if len(head) < NAMES else [head, " " * NAMES + wrapped[0]]
    if len(head) >= NAMES and not everything:
        first = [f"{head}  {textwrap.shorten(body, max(_width() - len(head) - 2, 20), placeholder=' …')}"]
        wrapped = wrapped[:1]
    return [*first, *(" " * NAMES + line for line in wrapped[1:])]


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size((WIDEST, 50)).columns)


def _plain(said: str) -> str:
    """Take the marks of reStructuredText away, and the default, which is shown by itself."""
    said = re.sub(r":\w+:`~?([^`]+)`", r"\1", said).replace("``", "").replace("`", "")
    return re.sub(r"\s*Default: .*$|\s*\(default: [^)]*\)", "", " ".join(said.split()))


def own_classes(option: Option) -> list[str]:
    """Return the classes of this project that an option may name, those that it needs only."""
    bases = [base for base in option.bases if base.__module__.startswith("fusion_pl.")]
    return [cls.__name__ for cls in option.classes if issubclass(cls, tuple(bases)) and bases != [cls]]


def _first(said: str) -> str:
    """Return the first sentence."""
    return re.split(r"(?<=[a-z\d)\]])[.;](?: |$)", " ".join(said.split()), maxsplit=1)[0]


def _shown(default: Any) -> str:
    if isinstance(default, dict) and "class_path" in default:
        return str(default["class_path"]).rpartition(".")[2]
    return str(default).lower() if isinstance(default, bool) else str(default)


def _value(option: Option) -> str:
    """Return what stands for a value: its choices where they are few, and the kinds that it may have."""
    words = [str(one) for one in option.choices] if len(option.choices) < 4 else []
    union = get_origin(option.type) in (Union, UnionType)
    hints = [get_origin(one) or one for one in (get_args(option.type) if union else [option.type])]
    if option.bases and str not in hints:
        words.append("'{NAME: CLASS}'" if dict in hints else "CLASS")
    else:
        kinds = [one for one in hints if isinstance(one, type) and one is not bool]
        for kind, word in ((float, "X"), (int, "N"), (str, "TEXT"), (list, "LIST"), (dict, "'{NAME: …}'")):
            words += [word] * any(issubclass(one, kind) for one in kinds)
    return "|".join(words[:3]) or "VALUE"
