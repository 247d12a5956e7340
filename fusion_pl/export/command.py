"""``fusion-pl export``, which writes a folder with which a model runs without its checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.filesize import decimal

from fusion_pl.checkpoint import build_model, read_checkpoint
from fusion_pl.checkpoint.folder import write_model_folder
from fusion_pl.cli.checkpoint_options import add_checkpoint_option, add_loading_options, checkpoint_path
from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.export.card import write_card
from fusion_pl.export.formats import push_folder, write_ckpt, write_torch
from fusion_pl.export.onnx_model import write_onnx
from fusion_pl.extras import check_extra
from fusion_pl.files import PARTIAL
from fusion_pl.messages import escape_unprintable
from fusion_pl.training.interrupt import StopSignals
from fusion_pl.types import UserError

Format = Literal["onnx", "torch", "safetensors", "ckpt"]
# Option -> the format that has it.
OPTION_FORMATS = {"quantize": "onnx", "metrics": "safetensors", "push": "safetensors"}


def export_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl export``."""
    parser = ArgumentParser(prog="fusion-pl export", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=str, required=True, help="folder to write, which does not exist yet")
    parser.add_argument(
        "--format",
        type=Format,
        default="onnx",
        help="onnx: for onnxruntime, without torch; torch: a graph of torch.export; safetensors: the layout of the "
        "Hugging Face hub, with a model card; ckpt: a checkpoint without the state of the optimizer",
    )
    parser.add_argument(
        "--quantize",
        type=Literal["int8"] | None,
        default=None,
        help="int8: 8-bit weights of linear layers and embeddings (onnx)",
    )
    parser.add_argument(
        "--metrics",
        type=str | None,
        default=None,
        help="metrics.json of a run, or results.json of evaluate, for the model card (safetensors); by default that of "
        "the run",
    )
    parser.add_argument(
        "--push",
        type=str | None,
        default=None,
        help="name of a model on the Hugging Face hub, owner/name, to which the folder is uploaded (safetensors)",
    )
    add_loading_options(parser)
    return parser


@StopSignals().handle_signals()
def export_command(arguments: list[str]) -> int:
    """Run ``fusion-pl export``."""
    config = parse_checkpoint_command(export_parser(), arguments)
    output = Path(config.output)
    check_output(output)
    for option, name in OPTION_FORMATS.items():
        if config[option] is not None and config.format != name:
            raise UserError(f"--{option} belongs to --format {name}, not to --format {config.format}: leave it out")
    if config.format == "onnx":
        check_extra("export", "--format onnx needs", "onnx", "onnxscript", "onnxruntime")
    path = checkpoint_path(config, config.ckpt_path)
    checkpoint = read_checkpoint(path)
    with atomic_folder(output) as folder:
        write_format(config, checkpoint, Path(path), folder)
    files = [f"{file.name} ({decimal(file.stat().st_size)})" for file in sorted(output.iterdir()) if file.is_file()]
    lines = [f"{path} is exported to {output}: {', '.join(files)}"]
    if config.push is not None:
        lines.append(f"uploaded to {push_folder(output, config.push)}")
    Console(stderr=True).print(escape_unprintable("\n".join(lines)), highlight=False, markup=False, soft_wrap=True)
    return 0


def write_format(config: Namespace, checkpoint: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Write the files of the chosen format."""
    if config.format == "ckpt":
        write_ckpt(checkpoint, folder)
    elif config.format == "safetensors":
        write_model_folder(checkpoint, folder)
        metrics = run_metrics(path) if config.metrics is None else Path(config.metrics)
        write_card(checkpoint, metrics, config.push or Path(config.output).name, folder)
    else:
        model = build_model(dict(checkpoint), path, config.trust).eval()
        if config.format == "torch":
            write_torch(model, folder)
        else:
            write_onnx(model, folder, config.quantize is not None)


def run_metrics(checkpoint: Path) -> Path | None:
    """Return ``metrics.json`` of the run of a checkpoint, if it is about this checkpoint."""
    metrics = checkpoint.absolute().parent.parent / "metrics.json"
    try:
        measured = Path(json.loads(metrics.read_bytes())["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return metrics if measured.name == checkpoint.name else None


def check_output(output: Path) -> None:
    """Raise a ``UserError`` if a folder cannot be written, before the model is loaded."""
    if not output.name:
        raise UserError(f"--output {output} is the folder in which you are: give one that does not exist yet")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} exists: give a folder that does not exist yet, or remove it")
    if any(parent.is_file() for parent in output.parents):
        raise UserError(f"--output {output} lies below a file: give a folder")


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to ``output`` if the block succeeds, and removed otherwise."""
    partial = output.with_name(output.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
