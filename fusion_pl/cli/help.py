"""Text of ``fusion-pl COMMAND --help``, which shows the main options, and of ``--help-all``, which shows all."""

from __future__ import annotations

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

from fusion_pl.analysis.arguments import compare_parser
from fusion_pl.cli.options import Option, all_options, cli_options, options_of, options_of_class
from fusion_pl.cli.run import command_parser
from fusion_pl.cli.shard import shard_parser
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data_check.command import check_parser
from fusion_pl.evaluate.command import evaluate_parser
from fusion_pl.explain.command import explain_parser
from fusion_pl.export.command import export_parser
from fusion_pl.prediction.options import predict_parser
from fusion_pl.serve.command import serve_parser

DESCRIPTIONS = {
    "fit": "Train a model with a configuration. An option overrides the --config files before it, a --config overrides "
    "everything before it, and an option that is given twice is refused.",
    "validate": "Evaluate a checkpoint on the validation split, with the configuration of its training.",
    "test": "Evaluate a checkpoint on the test split, with the configuration of its training.",
    "predict": "Classify the rows of a table with a checkpoint file alone, without a configuration or the hub. Rows "
    "are written in the order of the table as they are predicted; after a kill, the same command continues. --input "
    "gives a single sample instead, and --select the rows that are most worth labelling. The exit code is 0 if at "
    "least one row could be predicted, 1 if none could, 2 if an option is wrong.",
    "explain": "Explain the predictions for the rows of a table with a checkpoint file alone: how much each input "
    "contributes (Shapley values), whether inputs are needed together, and which words, parts of a picture and moments "
    "of a sound matter. Effects are changes of the log-odds of the explained class: +0.69 doubles its odds. The result "
    "is a page, explanation.html, and explanations.jsonl. With --ids s3,s7 --target cat it is why the model "
    "says cat, or does not, for two rows. The exit code is that of predict.",
    "evaluate": "Write one page about a checkpoint, on the labelled rows of a table: metrics with intervals, "
    "confusion, calibration, the hardest and the most doubtful samples, metrics by group with a warning for groups "
    "on which the model is worse, and a second checkpoint beside it. The same command continues after it was stopped.",
    "serve": "Answer HTTP requests with the predictions of a checkpoint: POST /predict takes JSON or multipart, GET "
    "/openapi.json describes it, /health, /ready, /info and /metrics are for its operator. Samples of concurrent "
    "requests are predicted together. Only this machine can reach the server unless --host is given. Ctrl-C and "
    "SIGTERM stop it after it has answered what it has accepted; the exit code is then 0.",
    "export": "Write a folder with which the model of a checkpoint runs without it. The format onnx has model.onnx, "
    "whose batch size and lengths are variable, with missing inputs and calibrated probabilities; preprocess.json; and "
    "runner.py, which predicts with fusion_pl_preprocess.py, without torch and without fusion-pl. The formats torch, "
    "safetensors and ckpt are for torch, the Hugging Face hub and fusion-pl.",
    "compare": "Train heads and single inputs with one configuration over several seeds, and report which is best. "
    "Options of fusion-pl fit (--trainer.max_epochs 5) apply to every run.",
    "data check": "Open every row and file of a table in parallel, before anything is trained, with the configuration "
    "and the options of fusion-pl fit. Errors, which stop a run or make its metrics wrong, are wrong labels and paths, "
    "damaged, truncated, empty and oversized files, and samples that are in two splits. Warnings are other duplicates, "
    "images that look alike, silent sounds, black images, wrong endings, imbalanced classes, missing inputs, and what "
    "the encoders would cut off. The exit code is 1 if there are errors, 0 if there are only warnings, 2 if an option "
    "is wrong.",
    "data shard": "Write the table and its files to shards, a few large files that fusion_pl.data.ShardData reads from "
    "a folder or a URL: for file systems and object stores that are slow with many small files. The table is checked "
    "first; the split and the hash of every row are kept. The same command continues after it was stopped.",
}
EXAMPLES = {
    "fit": "--config configs/keypad.yaml --data.batch_size 16 --trainer.max_epochs 5 --model.fusion CrossAttention",
    "validate": "--config configs/keypad.yaml",
    "test": "--config configs/keypad.yaml --ckpt_path best",
    "predict": "--ckpt_path best.ckpt --data.manifest new.csv --output predictions.csv",
    "explain": "--ckpt_path best.ckpt --data.manifest new.csv --output reports/why",
    "evaluate": "--ckpt_path best.ckpt --data.manifest rows.csv --groups speaker,source --output reports/best",
    "serve": "--ckpt_path best.ckpt --port 8000 --workers 2 --token_file token.txt",
    "export": "--ckpt_path best.ckpt --output exported",
    "compare": "--config configs/keypad.yaml --fusions Concat,LowRank --output reports/keypad",
    "data check": "--config configs/own.yaml --output reports/check --cleaned data/cleaned.csv",
    "data shard": "--config configs/own.yaml --output data/shards",
}
RUN_OPTIONS = (
    *("ckpt_path", "seed_everything", "trainer.logger.name", "trainer.logger.save_dir", "cache", "threads", "dry_run"),
)
DATA_COMMAND_OPTIONS = {"data check": ("output", "cleaned"), "data shard": ("output", "shard_size", "shuffle")}
TRAINING_DATA_OPTIONS = {  # without effect on the commands of data, which take the configuration of fit
    *("data.batch_size", "data.sampling", "data.bucket_by_length", "data.augment", "data.input_dropout"),
    "data.on_bad_file",
}
HARDWARE_OPTIONS = ("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision")
MODEL_OPTIONS = (
    *("model.encoders", "model.fusion", "model.task", "model.missing", "model.calibration"),
    "model.pretrained_lr_factor",
    *("model.loss.criterion", "model.loss.label_smoothing", "model.loss.class_weights", "model.loss.auxiliary_weight"),
)
TRAINING_OPTIONS = (
    *("trainer.max_epochs", "model.optimizer", "model.optimizer.lr", "model.optimizer.weight_decay"),
    *("model.lr_scheduler", "model.lr_scheduler.warmup", "trainer.accumulate_grad_batches"),
    *("trainer.gradient_clip_val", "early_stopping.monitor", "early_stopping.patience", "checkpoint.monitor"),
)
# Commands whose options are not those of fit.
STANDALONE_PARSERS = {
    "predict": predict_parser,
    "explain": explain_parser,
    "evaluate": evaluate_parser,
    "serve": serve_parser,
    "export": export_parser,
    "compare": compare_parser,
}
CONFIG_OPTION = Option("config", str, None, "YAML file of options, which override those given before it", False)
MAX_WIDTH, KEY_WIDTH = 120, 46  # of the text and of its first column, in characters


def help_text(subcommand: str, arguments: Sequence[str], everything: bool = False) -> str:
    """Return the help text of a command.

    Args:
        subcommand: name of the command.
        arguments: words after the command; ``--data`` and ``--config`` select the data set whose options are shown.
        everything: whether to show all options with full descriptions instead of the main options.
    """
    lines = [
        f"usage: fusion-pl {subcommand} {EXAMPLES[subcommand].partition(' ')[0]} … [--OPTION VALUE …]",
        "",
        *textwrap.wrap(DESCRIPTIONS[subcommand], _terminal_width()),
        "",
        "example:",
        f"  fusion-pl {subcommand} {EXAMPLES[subcommand]}",
        "",
    ]
    for title, options in sections(subcommand, arguments, everything):
        lines += [f"{title}:", *(line for option in options for line in _option_lines(option, everything)), ""]
    if subcommand in STANDALONE_PARSERS:
        return "\n".join(lines)
    note = "In YAML, --a.b 1 is written a: {b: 1}, and the options of a class are under init_args."
    note = note if everything else f"--help-all shows all options, and those of every class. {note}"
    return "\n".join([*lines, *textwrap.wrap(note, _terminal_width())])


def sections(subcommand: str, arguments: Sequence[str], everything: bool = False) -> Iterator[tuple[str, list[Option]]]:
    """Yield the title and the options of each section of a command's help."""
    if subcommand in STANDALONE_PARSERS:
        options = options_of(STANDALONE_PARSERS[subcommand]())
        yield "options", list(options.values())
        if subcommand == "predict":
            yield _data_section(options["data"], arguments)
        return
    data_parsers = {"data check": check_parser, "data shard": shard_parser}
    parser = data_parsers[subcommand]() if subcommand in data_parsers else command_parser(subcommand)
    if everything:
        yield from _all_sections(parser)
        return
    options = {}
    for option, _ in all_options(parser):
        options.setdefault(option.key, option)
    title, data_options = _data_section(options["data"], arguments)
    data_options = [options["data"], *data_options]
    if subcommand in data_parsers:
        yield "options", [CONFIG_OPTION, *(options[key] for key in DATA_COMMAND_OPTIONS[subcommand])]
        data_options = [option for option in data_options if option.key not in TRAINING_DATA_OPTIONS]
    yield title, data_options
    if subcommand in data_parsers:
        yield "model", [options["model.encoders"]]
        return
    yield "model", [options[key] for key in MODEL_OPTIONS]
    if subcommand == "fit":
        yield "training", [options[key] for key in TRAINING_OPTIONS]
    yield "hardware", [options[key] for key in HARDWARE_OPTIONS]
    yield "run", [CONFIG_OPTION, *(options[key] for key in RUN_OPTIONS)]


def _data_section(option: Option, arguments: Sequence[str]) -> tuple[str, list[Option]]:
    """Return the title and the options of the data class that the arguments select."""
    data = selected_data_class(option, arguments)
    title = f"data ({data.__name__}: {_first_sentence(data.__doc__ or '')})"
    return textwrap.shorten(title, MAX_WIDTH, placeholder=" …"), list(options_of_class(data, option).values())


def _all_sections(parser: ArgumentParser) -> Iterator[tuple[str, list[Option]]]:
    sections: dict[str, list[Option]] = {}
    for option, cls in all_options(parser):
        prefix, _, last = option.key.rpartition(".")
        group = option.key.partition(".")[0] if prefix or last == "data" else "run"
        title = group if cls is None else f"{prefix} of {cls.__module__}.{cls.__qualname__}"
        sections.setdefault(title, []).append(option)
    yield from sections.items()


def selected_data_class(option: Option, arguments: Sequence[str]) -> type:
    """Return the data class that ``--data``, or the data section of the last ``--config`` file, selects."""
    name = None
    for key, value in cli_options(arguments):
        if key in {"config", "c"} and Path(value).is_file():
            try:
                content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue  # help must not fail
            data = content.get("data") if isinstance(content, dict) else None
            path = data.get("class_path") if isinstance(data, dict) else data
            name = path if isinstance(path, str) else name
        if key in {"data", "data.class_path"}:
            name = value
    cls = {cls.__name__: cls for cls in option.classes}.get(name or "") or pydoc.locate(name or "")
    return cls if isinstance(cls, type) else ManifestData


def _option_lines(option: Option, everything: bool) -> list[str]:
    """Format key, value, description and default of an option, as one line unless ``everything`` is set."""
    is_flag = option.type is None and option.default is False
    key = f"  --{option.key}" if is_flag else f"  --{option.key} {_value_placeholder(option)}"
    default = "" if is_flag or option.default in (None, "", []) else f"default: {_format_default(option.default)}"
    default = "required" if option.required else default
    description = _strip_markup(option.help).removesuffix(f" ({option.default})")
    if names := project_classes(option):
        first = "data set" if description.startswith("One or more arguments") else _first_sentence(description)
        description = f"{first}, such as {', '.join(names)}"
    if not everything:
        room = _terminal_width() - KEY_WIDTH - len(default) - 3 * bool(default)
        description = textwrap.shorten(_first_sentence(description), max(room, 20), placeholder=" …")
    body = f"{description} ({default})" if default and description else description or f"({default})" * bool(default)
    if len(key) >= KEY_WIDTH and not everything:
        return [f"{key}  {textwrap.shorten(body, max(_terminal_width() - len(key) - 2, 20), placeholder=' …')}"]
    wrapped = [" " * KEY_WIDTH + line for line in textwrap.wrap(body, _terminal_width() - KEY_WIDTH) or [""]]
    if len(key) >= KEY_WIDTH:
        return [key, *wrapped]
    return [(key + wrapped[0][len(key) :]).rstrip(), *wrapped[1:]]


def _terminal_width() -> int:
    return min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 50)).columns)


def _strip_markup(text: str) -> str:
    """Remove reStructuredText markup and the default value from a description."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "").replace("`", "")
    return re.sub(r"\s*Default: .*$|\s*\(default: [^)]*\)", "", " ".join(text.split()))


def project_classes(option: Option) -> list[str]:
    """Return the names of the fusion_pl classes that an option accepts."""
    bases = [base for base in option.bases if base.__module__.startswith("fusion_pl.")]
    return [cls.__name__ for cls in option.classes if issubclass(cls, tuple(bases)) and bases != [cls]]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z\d)\]])[.;](?: |$)", " ".join(text.split()), maxsplit=1)[0]


def _format_default(default: Any) -> str:
    if isinstance(default, dict) and "class_path" in default:
        return str(default["class_path"]).rpartition(".")[2]
    return str(default).lower() if isinstance(default, bool) else str(default)


def _value_placeholder(option: Option) -> str:
    """Return the placeholder of an option's value: its choices if they are few, and its types."""
    words = [str(choice) for choice in option.choices] if len(option.choices) < 4 else []
    union = get_origin(option.type) in (Union, UnionType)
    hints = [get_origin(hint) or hint for hint in (get_args(option.type) if union else [option.type])]
    if option.bases and str not in hints:
        words.append("'{NAME: CLASS}'" if dict in hints else "CLASS")
    else:
        types = [hint for hint in hints if isinstance(hint, type) and hint is not bool]
        for base, word in ((float, "X"), (int, "N"), (str, "TEXT"), (list, "LIST"), (dict, "'{NAME: …}'")):
            words += [word] * any(issubclass(hint, base) for hint in types)
    return "|".join(words[:3]) or "VALUE"
